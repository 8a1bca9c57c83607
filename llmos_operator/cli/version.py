"""`llmos version`: what runs here and what runs in the cluster."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from llmos_operator import __version__
from llmos_operator.api import names
from llmos_operator.cli import render, session
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Target
from llmos_operator.cluster.port import Kind

_DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment")


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of both ends; the cluster's are "" when none can be reached."""

    client: str
    api: str
    python: str
    kubernetes: str = ""
    components: tuple[str, ...] = ()  # images of the installation
    cluster_error: str = ""


def command(as_json: AsJson = False, kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Show the versions of this command, of the cluster and of the installation in it."""
    found = collect(Target(kubeconfig, context))
    if as_json:
        render.print_json(found)
        return
    console = render.console()
    console.print(f"llmos       {found.client} (API {found.api}, Python {found.python})")
    console.print(f"kubernetes  {found.kubernetes or found.cluster_error}")
    for image in found.components:
        console.print(f"            {image}")


def collect(target: Target) -> Versions:
    """Return the versions; a cluster that cannot be reached is a finding, not a failure."""
    python = platform.python_version()

    async def ask(connected: session.Session) -> Versions:
        version = await connected.transport.request("GET", "/version")
        items = await connected.every(_DEPLOYMENTS, namespace=names.SYSTEM_NAMESPACE)
        images = {
            str(container.get("image", ""))
            for item in items
            for container in render.dig(item, "spec", "template", "spec", "containers", default=[])
        }
        return Versions(
            __version__,
            names.API_VERSION,
            python,
            str(version.get("gitVersion", "")),
            tuple(sorted(image for image in images if "/llmos-" in image)),
        )

    try:
        return session.run(target, ask)
    except CommandFailed as error:
        first = str(error).splitlines()[0]
        return Versions(__version__, names.API_VERSION, python, cluster_error=first)

"""From a container's spec to a command line: image, environment, paths, working directory."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.api.names import ENV_DEVICES
from llmos_operator.errors import Permanent
from llmos_operator.local.kubelet.environment import ConfigProblem, build_environment, expand, with_addresses
from llmos_operator.local.kubelet.logs import log_file
from llmos_operator.local.kubelet.objects import environment_references
from llmos_operator.local.kubelet.probes import Target, ports_by_name
from llmos_operator.local.kubelet.process import Launch
from llmos_operator.local.layout import ENV_CLUSTER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.local.images import Image
    from llmos_operator.local.kubelet.context import PodContext
    from llmos_operator.local.kubelet.model import ContainerView, Json
    from llmos_operator.local.kubelet.objects import Data

# A name of lower-case components, with a registry's port, a tag and a digest (distribution/reference).
_REFERENCE = re.compile(
    r"(?:[\w.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[\w][\w.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,})?",
    re.ASCII,
)
_TERMINATION_BYTES = 4096
_TERMINATION_LINES = 80
_FALLBACK_BYTES = 2048


class ImageProblem(Exception):  # noqa: N818 - reads as what the status says
    """No such image in the table: the text becomes the message of a container that waits for ``reason``."""

    def __init__(self, text: str, reason: str = "ErrImagePull") -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container ready to be started."""

    launch: Launch
    target: Target
    image_id: str
    container_id: str
    termination_log: Path


async def prepare(context: PodContext, view: ContainerView) -> Prepared:
    """Resolve everything a container refers to.

    Raises :class:`ImageProblem`, :class:`ConfigProblem` (a user's mistake or something not there yet), `Retryable`.
    """
    spec = view.spec
    image = _image(context, spec)
    home = context.folder / "containers" / view.name
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    termination_log = home / f"termination-log-{view.restarts}"
    termination_log.touch()
    data = await _referenced(context, spec)
    plain = _asked(context, spec, data, str)
    try:
        paths = context.mount_map(spec, termination_log, plain)
    except (ValueError, KeyError) as error:
        msg = f"volume mounts: {error}"
        raise ConfigProblem(msg) from error
    asked = _asked(context, spec, data, paths.rewrite)
    environment = _base(context, view, home, image) | asked
    # Only what the pod says is rewritten: the image's own program may well lie below a path that a pod mounts over.
    words = [paths.rewrite(expand(word, asked)) for word in spec.get("command") or []]
    arguments = [paths.rewrite(expand(word, asked)) for word in spec.get("args") or []]
    command = image.command(words, arguments)
    marker = f"{context.uid}/{view.name}/{view.restarts}"
    cwd = Path(paths.rewrite(spec["workingDir"])) if spec.get("workingDir") else home
    return Prepared(
        launch=Launch(
            command, environment, cwd, log_file(context.log_folder, view.name, view.restarts), marker
        ),
        target=Target(context.pod_ip, ports_by_name(spec), environment, cwd, paths.rewrite),
        image_id=f"table:{image.repository}",
        container_id="process://" + hashlib.sha256(marker.encode()).hexdigest(),
        termination_log=termination_log,
    )


def _asked(
    context: PodContext,
    spec: Json,
    data: Mapping[tuple[str, str], Data],
    rewrite: Callable[[str], str],
) -> dict[str, str]:
    """Return the variables of the spec and of Services, with mount paths as ``rewrite`` leaves them."""
    namespace = context.pod["metadata"]["namespace"]
    links = context.pod["spec"].get("enableServiceLinks", True)
    services = context.shared.service_variables(namespace) if links else {}
    asked = build_environment(spec, context, lambda kind, name: data.get((kind, name)), services, rewrite)
    return with_addresses(
        asked,
        namespace,
        context.pod["spec"].get("subdomain") or "",
        lambda host: context.shared.pod_address(namespace, host),
    )


def _image(context: PodContext, spec: Json) -> Image:
    reference = spec.get("image") or ""
    if not _REFERENCE.fullmatch(reference):
        problem = f'couldn\'t parse image name "{reference}": invalid reference format'
        msg = f'Failed to apply default image tag "{reference}": {problem}'
        raise ImageProblem(msg, "InvalidImageName")
    try:
        image = context.shared.images.find(reference)
    except Permanent as error:
        raise ImageProblem(str(error)) from error
    if image is None and spec.get("imagePullPolicy") == "Never":
        msg = f'Container image "{reference}" is not present with pull policy of Never'
        raise ImageProblem(msg, "ErrImageNeverPull")
    if image is None:
        msg = (
            f'image "{reference}" is not in the image table of the local cluster; add it with '
            f"--image {reference}=COMMAND or in {context.shared.paths.images}"
        )
        raise ImageProblem(msg)
    return image


async def _referenced(context: PodContext, spec: Json) -> dict[tuple[str, str], Data]:
    namespace = context.pod["metadata"]["namespace"]
    found = {}
    for kind, name in environment_references(spec):
        data = await context.shared.objects.data(kind, namespace, name)
        if data is not None:
            found[kind, name] = data
    return found


def _base(context: PodContext, view: ContainerView, home: Path, image: Image) -> dict[str, str]:
    """Return what a container runtime and the image set before the spec's own variables."""
    environment = {
        "PATH": context.shared.base_path,
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "HOSTNAME": context.pod["spec"].get("hostname") or context.pod["metadata"]["name"],
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        ENV_CLUSTER: str(context.shared.paths.root),
    } | image.env
    environment |= _devices(context, view.spec)
    kubeconfig = context.volumes.kubeconfig(view.spec, context.shared.api_url, context.shared.authority)
    if kubeconfig is not None:
        environment["KUBECONFIG"] = str(kubeconfig)
    return environment


def _devices(context: PodContext, spec: Json) -> Mapping[str, str]:
    """Return what a device plugin would set: the UUIDs of the devices the pod holds."""
    limits = (spec.get("resources") or {}).get("limits") or {}
    ledger = context.node.ledger
    held = ledger.devices_of(context.uid)
    return {ENV_DEVICES: ",".join(held)} if ledger.devices.keys() & limits.keys() and held else {}


def termination_message(prepared: Prepared, spec: Json, exit_code: int) -> str:
    """Return what the container left as its last words: the message file, else (if asked for) the end of its log."""
    try:
        text = prepared.termination_log.read_bytes()[:_TERMINATION_BYTES].decode(errors="replace")
    except OSError:
        text = ""
    if text or spec.get("terminationMessagePolicy") != "FallbackToLogsOnError" or exit_code == 0:
        return text
    try:
        tail = prepared.launch.log.read_bytes()[-_FALLBACK_BYTES:]
    except OSError:
        return ""
    return b"\n".join(tail.splitlines()[-_TERMINATION_LINES:]).decode(errors="replace")

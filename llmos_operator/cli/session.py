"""One command's connection to a cluster: credentials, lists, and errors people can act on."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmos_operator.api import names
from llmos_operator.cli.failures import NOT_INSTALLED, UNREACHABLE, CommandFailed, unknown
from llmos_operator.cluster import port
from llmos_operator.cluster.credentials import SERVICE_ACCOUNT, BadCredentials
from llmos_operator.cluster.failures import Forbidden, NotFound
from llmos_operator.cluster.transport import Transport, connect
from llmos_operator.errors import Retryable
from llmos_operator.local.layout import ClusterPaths, default_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llmos_operator.cli.options import Target
    from llmos_operator.cluster.port import Json, Kind

T = TypeVar("T")


class Session:
    """A connected command."""

    def __init__(self, transport: Transport, target: Target) -> None:
        self.transport = transport
        self.namespace = target.namespace or transport.credentials.namespace
        self.scope = "" if target.all_namespaces else self.namespace

    async def every(self, kind: Kind, *, namespace: str = "", labels: str = "") -> list[Json]:
        """Return all objects of ``kind``; of all namespaces if none is given."""
        try:
            found: list[Json] = []
            async for page in self.transport.list_pages(kind, namespace=namespace, label_selector=labels):
                found.extend(page.items)
        except NotFound as error:
            raise _not_installed(self.transport, kind) from error
        return found

    async def several(self, *kinds: Kind) -> dict[Kind, list[Json]]:
        """Return all objects of several kinds, asked for at the same time."""
        answers = await asyncio.gather(*(self.every(kind) for kind in kinds))
        return dict(zip(kinds, answers, strict=True))

    async def scoped(self, kind: Kind) -> list[Json]:
        """Return the objects of ``kind`` in the namespaces the command is about."""
        return await self.every(kind, namespace=self.scope)

    async def workload(self, name: str) -> Json:
        """Return one ModelWorkload. Raises `CommandFailed` that names those whose names are near."""
        try:
            return await self.transport.get(port.MODEL_WORKLOADS, name, namespace=self.namespace)
        except NotFound:
            everywhere = await self.every(port.MODEL_WORKLOADS)  # tells a missing CRD from a missing object
        known = [key(item) for item in everywhere]
        raise unknown("workload", f"{self.namespace}/{name}", known)


def key(item: Json) -> str:
    """Return `namespace/name` of an object, or its name if it has no namespace."""
    meta = item.get("metadata") or {}
    namespace, name = meta.get("namespace", ""), meta.get("name", "")
    return f"{namespace}/{name}" if namespace else str(name)


def run(target: Target, command: Callable[[Session], Awaitable[T]]) -> T:
    """Connect to the target's cluster, run ``command`` and close. Raises `CommandFailed` only (and bugs)."""

    async def main() -> T:
        async with session(target) as connected:
            return await command(connected)

    return asyncio.run(main())


@asynccontextmanager
async def session(target: Target) -> AsyncIterator[Session]:
    """Connect to the target's cluster and translate what goes wrong on the way."""
    try:
        transport = await connect(kubeconfig_for(target), context=target.context, process="llmos-cli")
    except BadCredentials as error:
        hint = "" if target.kubeconfig else "\nTo try LLMOS on this machine: llmos local up"
        raise CommandFailed(f"{error}{hint}", status=UNREACHABLE) from error
    try:
        yield Session(transport, target)
    except Forbidden as error:
        raise CommandFailed(f"the cluster does not allow this: {error}") from error
    except Retryable as error:
        raise CommandFailed(
            f"{error}\nIs the cluster up, and is {transport.credentials.server} its address? "
            "(--kubeconfig and --context choose another; llmos local status shows the local one)",
            status=UNREACHABLE,
        ) from error
    finally:
        await transport.close()


def kubeconfig_for(target: Target) -> str:
    """Return the kubeconfig to use; "" leaves the choice to the usual places.

    Where nothing else is configured the local cluster of this machine is meant, if there is one.
    """
    configured = (
        target.kubeconfig
        or os.environ.get("KUBECONFIG")
        or (SERVICE_ACCOUNT / "token").exists()
        or Path("~/.kube/config").expanduser().exists()
    )
    local = ClusterPaths(default_state()).kubeconfig
    return target.kubeconfig if configured or not local.exists() else str(local)


def _not_installed(transport: Transport, kind: Kind) -> CommandFailed:
    if kind.group != names.GROUP:
        return CommandFailed(f"{transport.credentials.server} does not know {kind.plural}.{kind.group}")
    return CommandFailed(
        f"LLMOS is not installed in this cluster: {transport.credentials.server} does not know "
        f"{kind.plural}.{kind.group}. Install the chart (helm install llmos-operator helm/llmos-operator), "
        "or choose another cluster with --context.",
        status=NOT_INSTALLED,
    )

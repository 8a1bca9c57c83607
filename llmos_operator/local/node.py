"""The node process: kubelet and Service proxy of all simulated nodes, in one event loop.

Started by the supervisor as ``python -m llmos_operator.local.node STATE_DIRECTORY``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.clock import SystemClock
from llmos_operator.cluster import port
from llmos_operator.cluster.credentials import from_kubeconfig
from llmos_operator.cluster.events import EventRecorder
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.cluster.transport import Transport
from llmos_operator.errors import Retryable
from llmos_operator.local.addresses import PORT_API, AddressBlock
from llmos_operator.local.claims import ClaimBinder
from llmos_operator.local.images import ImageTable
from llmos_operator.local.kubelet.admission import NodeLedger, amounts
from llmos_operator.local.kubelet.context import Node, Shared
from llmos_operator.local.kubelet.kubelet import AddressPool, Kubelet, ServiceCache, pod_reflector
from llmos_operator.local.kubelet.logs import LogKeeper
from llmos_operator.local.kubelet.memory import MemoryWatch
from llmos_operator.local.kubelet.objects import ObjectSource
from llmos_operator.local.kubelet.probes import Checker
from llmos_operator.local.kubelet.process import kill_containers
from llmos_operator.local.kubelet.server import KubeletServer
from llmos_operator.local.layout import ENV_CLUSTER, ClusterPaths
from llmos_operator.local.nodes import NodeAgent, capacity, labels, plugin_devices
from llmos_operator.local.proxy.proxy import ServiceProxy, can_bind_privileged
from llmos_operator.local.spec import ClusterSpec, NodeSpec
from llmos_operator.observability.logging import logger, setup

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from llmos_operator.local.kubelet.model import Json

log = logger(__name__)

_REGISTER_RETRY_SECONDS = 0.2
_RENEW_SECONDS = 10.0


def make_node(spec: NodeSpec, address: str) -> Node:
    """Return a node with an empty ledger."""
    quantities = capacity(spec)
    allocatable = {name: text for name, text in quantities.items() if name != "pods"}
    ledger = NodeLedger(amounts(allocatable), spec.pods, plugin_devices(spec), labels(spec))
    return Node(spec.name, address, quantities, ledger)


class NodeProcess:
    """Everything the node process runs."""

    def __init__(self, paths: ClusterPaths) -> None:
        self._paths = paths
        self._spec = ClusterSpec.read(paths.spec)
        self._block = AddressBlock(self._spec.index)
        self._clock = SystemClock()
        self._transport = Transport(
            from_kubeconfig(str(paths.component_kubeconfig("node"))), process="llmos-node"
        )
        self._recorder = EventRecorder(
            self._transport, self._clock, instance="llmos-local", component="kubelet"
        )
        self._memory = MemoryWatch()
        self._objects = ObjectSource(self._transport, self._source_changed)
        self._claims = ClaimBinder(self._transport, paths.claims)
        block = self._block
        self._proxy = ServiceProxy(
            block.api_service,
            (block.control_plane, PORT_API),
            privileged=can_bind_privileged(block.api_service),
        )
        self._services = ServiceCache(self._proxy.port_of)
        self._checker = Checker()
        self._shared = self._make_shared()
        self._nodes = {
            spec.name: make_node(spec, block.node(ordinal)) for ordinal, spec in enumerate(self._spec.nodes)
        }
        self._kubelet = Kubelet(self._shared, self._nodes, AddressPool(block.pods()))
        self._server = KubeletServer(self._kubelet, paths)

    def _make_shared(self) -> Shared:
        paths, spec = self._paths, self._spec
        return Shared(
            transport=self._transport,
            clock=self._clock,
            recorder=self._recorder,
            objects=self._objects,
            images=ImageTable(paths.images),
            memory=self._memory,
            checker=self._checker,
            logs=LogKeeper(spec.keep_pod_logs),
            paths=paths,
            api_url=self._block.api_url,
            authority=(paths.pki / "ca.crt").read_bytes(),
            service_variables=self._services.variables,
            pod_address=self._pod_address,
            crash_backoff_initial=spec.crash_backoff_initial,
            crash_backoff_max=spec.crash_backoff_max,
            base_path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        )

    def _pod_address(self, namespace: str, host: str) -> str:
        return self._kubelet.address_of(namespace, host)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set, then end all pods' processes."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._transport.close)
            stack.push_async_callback(self._checker.close)
            agents = [
                NodeAgent(self._transport, self._clock, spec, self._nodes[spec.name].address)
                for spec in self._spec.nodes
            ]
            await _register(agents)
            await self._server.start(node.address for node in self._nodes.values())
            stack.push_async_callback(self._server.stop)
            stack.push_async_callback(self._kubelet.stop)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) for work in self._work(agents)]
                log.info("nodes are up", nodes=len(agents))
                await stop.wait()
                for task in tasks:
                    task.cancel()

    def _work(self, agents: Sequence[NodeAgent]) -> list[Coroutine[Any, Any, None]]:
        services = Reflector(self._transport, Mirror(port.SERVICES, self._observe_service))
        pods = pod_reflector(self._shared, self._observe_pod)
        step = _RENEW_SECONDS / max(1, len(agents))
        return [
            *(
                reflector.run()
                for reflector in (services, pods, self._claims.reflector(), *self._objects.reflectors())
            ),
            *(agent.run(ordinal * step) for ordinal, agent in enumerate(agents)),
            self._recorder.run(),
            self._memory.run(),
            self._proxy.run(),
            self._claims.run(),
            self._kubelet.bound_logs(),
        ]

    def _observe_service(self, change: Change, service: Json) -> None:
        self._services.observe(change, service)
        self._proxy.observe_service(change, service)

    def _observe_pod(self, change: Change, pod: Json) -> None:
        self._kubelet.observe_pod(change, pod)
        self._proxy.observe_pod(change, pod)

    def _source_changed(self, kind: str, namespace: str, name: str) -> None:
        self._kubelet.observe_source(kind, namespace, name)


async def _register(agents: Sequence[NodeAgent]) -> None:
    """Register all nodes; the API server may have been started only now."""
    waiting = list(agents)
    while waiting:
        try:
            await waiting[0].register()
        except Retryable as error:
            log.debug("cannot register yet", error=error)
            await asyncio.sleep(_REGISTER_RETRY_SECONDS)
        else:
            waiting.pop(0)


async def _main(folder: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await NodeProcess(ClusterPaths(folder)).run(stop)


def main(argv: Sequence[str]) -> int:
    """Run the node process of the cluster whose state directory is the only argument."""
    setup("info", "text", process="node")
    if left := kill_containers(f"{ENV_CLUSTER}={argv[0]}"):
        log.warning("ended containers of an earlier node process", processes=left)
    asyncio.run(_main(Path(argv[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The kubelet of all simulated nodes: gives each pod bound to one of them a worker."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from llmos_operator.cluster import port
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.local.kubelet.environment import service_variables
from llmos_operator.local.kubelet.logs import bound
from llmos_operator.local.kubelet.objects import volume_references
from llmos_operator.local.kubelet.pod import PodWorker
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from llmos_operator.local.kubelet.context import Node, Shared
    from llmos_operator.local.kubelet.model import ContainerView, Json

log = logger(__name__)

_LOG_CHECK_SECONDS = 10.0
_STOP_TIMEOUT_SECONDS = 10.0


class AddressPool:
    """Pod addresses, handed out in turn so that one is not reused soon after it was freed."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._order = list(addresses)
        self._next = 0
        self._used: set[str] = set()

    def take(self, preferred: str = "") -> str:
        """Return a free address, ``preferred`` if that is free. Raises RuntimeError when all are taken."""
        if preferred and preferred not in self._used and preferred in self._order:
            self._used.add(preferred)
            return preferred
        for _ in self._order:
            address = self._order[self._next]
            self._next = (self._next + 1) % len(self._order)
            if address not in self._used:
                self._used.add(address)
                return address
        msg = f"all {len(self._order)} pod addresses are in use"
        raise RuntimeError(msg)

    def free(self, address: str) -> None:
        """Take an address back; one that was never handed out is no error."""
        self._used.discard(address)


class Kubelet:
    """Pods of ``nodes``; :meth:`observe_pod` and the others are fed by watches."""

    def __init__(self, shared: Shared, nodes: Mapping[str, Node], addresses: AddressPool) -> None:
        self.nodes = nodes
        self._shared = shared
        self._addresses = addresses
        self._workers: dict[str, PodWorker] = {}  # by UID
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # -- feeding

    def observe_pod(self, change: Change, pod: Json) -> None:
        """Take a change of a pod of any node."""
        meta = pod["metadata"]
        worker = self._workers.get(meta["uid"])
        if change is Change.DELETED:
            if worker is not None:
                worker.forget()
        elif worker is not None:
            worker.update(pod)
        elif (node := self.nodes.get(pod["spec"].get("nodeName") or "")) is not None:
            self._start(node, pod)

    def observe_source(self, kind: str, namespace: str, name: str) -> None:
        """Take a change of a Secret or ConfigMap."""
        for worker in self._workers.values():
            pod = worker.context.pod
            if pod["metadata"]["namespace"] == namespace and (kind, name) in volume_references(pod["spec"]):
                worker.source_changed()

    def _start(self, node: Node, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        worker = PodWorker(self._shared, node, pod, self._new_address, self._addresses.free)
        task = asyncio.create_task(worker.run(), name=f"worker {worker.context.key}")
        self._workers[uid], self._tasks[uid] = worker, task
        task.add_done_callback(lambda done: self._ended(uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        worker = self._workers.pop(uid)
        self._tasks.pop(uid)
        if not task.cancelled() and (error := task.exception()) is not None:
            trace = "".join(traceback.format_exception(error))
            log.error("pod worker failed", pod=worker.context.key, error=repr(error), trace=trace)

    def _new_address(self, pod: Json) -> str:
        if pod["spec"].get("hostNetwork"):
            return self.nodes[pod["spec"]["nodeName"]].address
        return self._addresses.take((pod.get("status") or {}).get("podIP") or "")

    # -- life

    def worker(self, namespace: str, name: str) -> PodWorker | None:
        """Return the worker of a pod by name; the newest if an older one of that name is still ending."""
        found = [
            worker
            for worker in self._workers.values()
            if worker.context.pod["metadata"]["namespace"] == namespace
            and worker.context.pod["metadata"]["name"] == name
        ]
        return found[-1] if found else None

    def address_of(self, namespace: str, host: str) -> str:
        """Return the address of a pod by its host name; "" if there is none, or only one that is being deleted."""
        for worker in reversed(self._workers.values()):
            meta, spec = worker.context.pod["metadata"], worker.context.pod["spec"]
            if meta.get("deletionTimestamp") or meta["namespace"] != namespace:
                continue
            if (spec.get("hostname") or meta["name"]) == host:
                return worker.context.pod_ip
        return ""

    def running(self) -> int:
        """Return how many pods have a worker."""
        return len(self._workers)

    async def bound_logs(self) -> None:
        """Keep logs of running containers within their bound, until cancelled."""
        while True:
            await asyncio.sleep(_LOG_CHECK_SECONDS)
            for worker, view in list(self._containers()):
                path = worker.log_path(view)
                if bound(path):
                    log.info("log cut", pod=worker.context.key, container=view.name)

    def _containers(self) -> Iterator[tuple[PodWorker, ContainerView]]:
        for worker in self._workers.values():
            for view in worker.views.all():
                yield worker, view

    async def stop(self) -> None:
        """End all containers without touching the API: the node goes, the pods stay bound to it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_TIMEOUT_SECONDS)


class ServiceCache:
    """Services by namespace, for variables of containers."""

    def __init__(self, port_of: Callable[[str, int], int]) -> None:
        self._services: dict[tuple[str, str], Json] = {}
        self._port_of = port_of

    def observe(self, change: Change, service: Json) -> None:
        """Take a change of a Service."""
        key = (service["metadata"]["namespace"], service["metadata"]["name"])
        if change is Change.DELETED:
            self._services.pop(key, None)
        else:
            self._services[key] = service

    def variables(self, namespace: str) -> dict[str, str]:
        """Return the variables a container of ``namespace`` gets: its Services and the API server's."""
        wanted = [
            service
            for (owner, name), service in sorted(self._services.items())
            if owner == namespace or (owner, name) == ("default", "kubernetes")
        ]
        return service_variables(wanted, self._port_of)


def pod_reflector(shared: Shared, sink: Callable[[Change, Json], None]) -> Reflector:
    """Return the watch of all pods: the kubelet and the Service proxy share it."""
    return Reflector(shared.transport, Mirror(port.PODS, sink))

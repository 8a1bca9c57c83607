"""Keeps the catalog current: two watches, one of workloads and one of runtime pods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import MODEL_WORKLOADS, PODS
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.errors import Permanent
from llmos_operator.gateway import objects
from llmos_operator.gateway.catalog import WorkloadKey
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.gateway.balance import Balancer
    from llmos_operator.gateway.catalog import Catalog
    from llmos_operator.gateway.metrics import Metrics

    Json = Mapping[str, Any]

log = logger(__name__)


class Watches:
    """Feeds catalog and balancer from the API server."""

    def __init__(self, port: ClusterPort, catalog: Catalog, balancer: Balancer, metrics: Metrics) -> None:
        self._catalog = catalog
        self._balancer = balancer
        self._metrics = metrics
        self._ports: dict[str, int] = {}  # workload UID -> serving port
        workloads = Mirror(MODEL_WORKLOADS, self.on_workload)
        pods = Mirror(PODS, self.on_pod)
        self.reflectors = (
            Reflector(port, workloads),
            Reflector(port, pods, label_selector=objects.RUNTIME_ROLE),
        )

    @property
    def synced(self) -> bool:
        """Whether both lists are complete: before that, an unknown model may just not have been read yet."""
        return all(reflector.mirror.synced for reflector in self.reflectors)

    def age(self) -> float:
        """Seconds since the stalest watch last gave a sign of life; infinity before the first."""
        return max(reflector.mirror.age() for reflector in self.reflectors)

    def on_workload(self, change: Change, obj: Json) -> None:
        """Take one change of a ModelWorkload."""
        meta = obj["metadata"]
        key = WorkloadKey(str(meta.get("namespace", "")), str(meta["name"]))
        found = (
            None
            if change is Change.DELETED
            else self._read("ModelWorkload", str(key), lambda: objects.workload(obj))
        )
        if found is None:
            self._forget(key, str(meta.get("uid", "")))
        else:
            self._ports[found.uid] = found.port
            self._catalog.put_workload(found)
        self._metrics.workloads.set(sum(1 for _ in self._catalog.workloads()))

    def on_pod(self, change: Change, obj: Json) -> None:
        """Take one change of a runtime pod."""
        meta = obj["metadata"]
        name = f"{meta.get('namespace', '')}/{meta['name']}"
        found = None
        if change is not Change.DELETED:
            found = self._read("Pod", name, lambda: objects.replica(obj, self._ports))
        if found is None:
            self._catalog.remove_replica(str(meta.get("uid", "")))
            self._balancer.forget(self._catalog.replica_uids())
        else:
            self._catalog.put_replica(found)
        self._metrics.replicas.set(self._catalog.replica_count())

    def _forget(self, key: WorkloadKey, uid: str) -> None:
        known = self._catalog.find(key)
        # A workload made anew under its name must survive the late news of its predecessor's end.
        if known is not None and uid in {"", known.uid}:
            self._catalog.remove_workload(key)
            self._metrics.forget(key)
        self._ports.pop(uid, None)

    def _read(self, kind: str, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Permanent as error:
            self._metrics.objects_skipped.labels(kind).inc()
            log.warning("object cannot be read, left out", kind=kind, name=name, error=error)
            return None

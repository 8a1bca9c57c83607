"""Takes objects from mirrors into the store and the records: the only way facts come in.

One sink per kind. A sink converts, applies, marks what has to be looked at and triggers a cycle if a decision could
change. It never raises and never waits: an object that cannot be understood is counted and told in its status, and
everything else goes on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster import port
from llmos_operator.cluster.mirror import Change
from llmos_operator.control.history import PERMANENT_REASONS, failure_of, preemption_of
from llmos_operator.control.jobs import tries_of
from llmos_operator.control.records import Record
from llmos_operator.errors import Permanent
from llmos_operator.manifests.observed import Refusal
from llmos_operator.observability.logging import logger
from llmos_operator.state import convert
from llmos_operator.state.alike import Alike
from llmos_operator.state.convert.replicas import replica as read_replica
from llmos_operator.state.types import Kind, Model, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.actuators.support import Support
    from llmos_operator.cluster.port import Json
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.records import Records
    from llmos_operator.state.store import Store

log = logger(__name__)

# Kinds of the API and what the store calls them.
STORE_KINDS: Mapping[port.Kind, Kind] = {
    port.NODES: Kind.NODE,
    port.GPU_NODES: Kind.GPU_NODE,
    port.PODS: Kind.POD,
    port.MODEL_WORKLOADS: Kind.WORKLOAD,
    port.WORKLOAD_QUEUES: Kind.QUEUE,
    port.MODEL_PROFILES: Kind.PROFILE,
    port.PRIORITY_CLASSES: Kind.PRIORITY_CLASS,
    port.POD_DISRUPTION_BUDGETS: Kind.DISRUPTION_BUDGET,
    port.NAMESPACES: Kind.NAMESPACE,
    port.RESOURCE_SLICES: Kind.RESOURCE_SLICE,
    port.RESOURCE_CLAIMS: Kind.RESOURCE_CLAIM,
    port.VOLUME_CLAIMS: Kind.VOLUME_CLAIM,
    port.VOLUMES: Kind.VOLUME,
}

# What a converter says of an object it does not understand, and what it may trip over where it was not careful enough:
# an object that raised here would be raised anew by every list, in every process that tries to lead.
_UNREADABLE = (Permanent, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)


class Intake:
    """Sinks for all kinds."""

    def __init__(
        self,
        store: Store,
        records: Records,
        support: Callable[[], Support],
        metrics: OperatorMetrics,
        *,
        namespace: str,
        now: Callable[[], float],
        changed: Callable[[], None],
        review: Callable[[str], None],
        gone: Callable[[Record], None],
        idle: Callable[[str], bool],
    ) -> None:
        """`namespace` is the operator's own, where holder pods are. `changed` triggers a cycle, `review` marks a workload to be looked at, `gone` tells of a deleted one, `idle` whether this process has seen a workload (by UID) idle itself."""
        self._store = store
        self._records = records
        self._support = support
        self._metrics = metrics
        self._namespace = namespace
        self._now = now
        self._changed = changed
        self._review = review
        self._gone = gone
        self._idle = idle
        self._alike = Alike()
        self._simple: dict[
            port.Kind, tuple[Callable[[Any], Any], Callable[[Any], bool], Callable[[str], bool]]
        ] = {
            port.NODES: (convert.node, store.apply_node, store.delete_node),
            port.GPU_NODES: (convert.gpu_node, store.apply_gpu_node, store.delete_gpu_node),
            port.WORKLOAD_QUEUES: (convert.queue, store.apply_queue, store.delete_queue),
            port.MODEL_PROFILES: (convert.profile, store.apply_profile, store.delete_profile),
            port.PRIORITY_CLASSES: (
                convert.priority_class,
                store.apply_priority_class,
                store.delete_priority_class,
            ),
            port.POD_DISRUPTION_BUDGETS: (convert.disruption_budget, store.apply_budget, store.delete_budget),
            port.NAMESPACES: (convert.namespace, store.apply_namespace, store.delete_namespace),
            port.RESOURCE_SLICES: (convert.resource_slice, store.apply_slice, store.delete_slice),
            port.RESOURCE_CLAIMS: (convert.resource_claim, store.apply_allocation, store.delete_allocation),
            port.VOLUME_CLAIMS: (convert.volume_claim, store.apply_volume_claim, store.delete_volume_claim),
            port.VOLUMES: (convert.volume, store.apply_volume, store.delete_volume),
        }

    def sink(self, kind: port.Kind) -> Callable[[Change, Json], None]:
        """Return the sink of a kind's mirror."""
        if kind == port.PODS:
            return self._pod
        if kind == port.MODEL_WORKLOADS:
            return self._workload
        if kind == port.SERVICES:
            return self._service
        read, apply, delete = self._simple[kind]

        def take(change: Change, body: Json) -> None:
            if change is Change.DELETED:
                if delete(_key(body)):
                    self._news()
                return
            try:
                value = read(body)
            except _UNREADABLE as error:
                self._unreadable(kind.kind, _key(body), error)
                return
            if apply(value):
                self._news()

        return take

    def _news(self) -> None:
        """A decision could change, and what holds those back whose claims have changed."""
        self._changed()
        for key in self._store.take_remounted():
            self._review(key)

    def _unreadable(self, kind: str, key: str, error: Exception) -> None:
        self._metrics.unreadable.labels(kind).inc()
        log.warning("object left out: it cannot be read", kind=kind, name=key, error=error)

    # -- pods -----------------------------------------------------------------------------------------------

    def _pod(self, change: Change, body: Json) -> None:
        key, uid = _key(body), str(body["metadata"].get("uid", ""))
        if change is Change.DELETED:
            replica = self._records.drop_replica(key)
            if self._store.delete_pod(key, uid):
                self._news()
            if replica is not None:
                self._look_at(replica.workload_uid)
            return
        try:
            pod, replica = convert.pod(body, holders_in=self._namespace), read_replica(body)
        except _UNREADABLE as error:
            self._unreadable("Pod", key, error)
            return
        if pod.problem:
            self._metrics.unreadable.labels("Claim").inc()
            log.warning("the claim on a pod is not believed", pod=key, problem=pod.problem)
        if self._store.apply_pod(self._alike.pod(pod)):
            self._news()
        # A label is not enough to speak for a workload: the claim proves the owner and its namespace.
        if replica is not None and pod.claim is not None and pod.claim.workload_uid == replica.workload_uid:
            self._records.put_replica(replica)
            self._look_at(replica.workload_uid)

    def _look_at(self, workload_uid: str) -> None:
        record = self._records.by_uid(workload_uid)
        if record is not None:
            self._review(record.key)

    # -- services -------------------------------------------------------------------------------------------

    def _service(self, change: Change, body: Json) -> None:
        exists = change is Change.APPLIED
        self._support().note_service(body, exists=exists)
        if not exists:
            labels = body["metadata"].get("labels") or {}
            uid = str(labels.get(names.LABEL_WORKLOAD_UID, ""))  # a gang's has another name than its workload
            record = self._records.get(_key(body)) or self._records.by_uid(uid)
            if record is not None:
                self._review(record.key)

    # -- workloads ------------------------------------------------------------------------------------------

    def _workload(self, change: Change, body: Json) -> None:
        meta = body["metadata"]
        key, uid = _key(body), str(meta.get("uid", ""))
        if change is Change.DELETED:
            self._forget(key, uid)
            return
        record = self._record(key, uid, body)
        try:
            workload = convert.workload({**body, "spec": self._alike.json(body.get("spec") or {})})
        except _UNREADABLE as error:
            self._metrics.unreadable.labels("ModelWorkload").inc()
            record.invalid = Refusal(Reason.INVALID_SPEC, str(error))
        else:
            if workload.idle_since is not None and not self._idle(uid):
                # What a former leader saw may be hours old: nobody is a cheap victim for it.
                workload = replace(workload, idle_since=None)
            record.invalid = None
            # One value, here and in the store, until it is another.
            workload = record.stub if record.stub == workload else self._alike.workload(workload)
            record.stub = workload
            if self._store.apply_workload(workload):
                self._changed()
        self._review(key)

    def _forget(self, key: str, uid: str) -> None:
        record = self._records.get(key)
        if self._store.delete_workload(key, uid):
            self._changed()
        if record is not None and self._records.drop(key, uid):
            self._gone(record)

    def _record(self, key: str, uid: str, body: Json) -> Record:
        """Return the record of a workload, made or brought up to date from its object."""
        generation = int(body["metadata"].get("generation", 1))
        status = body.get("status") or {}
        record = self._records.get(key)
        if record is None or record.uid != uid:
            model = Model(uri=str(((body.get("spec") or {}).get("model") or {}).get("uri", "")))
            stub = Workload(key=key, uid=uid, model=model, generation=generation)
            record = Record(key, uid, generation, self._now(), stub)
            record.failure = failure_of(status, generation)
            record.permanent = record.failure is not None and record.failure.reason in PERMANENT_REASONS
            record.tries = tries_of(status)
            record.preemption = preemption_of(status)
            self._records.put(record)
        elif record.generation != generation:
            record.generation = generation
            record.permanent = False
            record.uninspectable = None
        record.status = self._alike.json(status)
        return record


def _key(body: Json) -> str:
    meta = body["metadata"]
    namespace = meta.get("namespace", "")
    return f"{namespace}/{meta['name']}" if namespace else str(meta["name"])

"""What the operator knows of workloads beside the store: their status in the API, replicas, reports, failures.

The store holds what decisions depend on; this holds what statuses and repairs are made from. One task writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_operator.manifests.observed import Scaling, Tries
from llmos_operator.state.types import Learned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.manifests.observed import Failure, Preemption, Refusal, Score
    from llmos_operator.scheduler.plan import Decision
    from llmos_operator.state.replicas import Replica
    from llmos_operator.state.types import Workload

Json = dict[str, Any]


@dataclass(slots=True)
class Record:
    """One workload, from its first event to its deletion."""

    key: str
    uid: str
    generation: int
    seen_at: float  # monotonic seconds of its first event here
    stub: Workload  # the workload as last understood; before that, its name only
    status: Json = field(default_factory=dict)  # as it stands in the API
    invalid: Refusal | None = None  # the spec cannot be read
    uninspectable: Refusal | None = None  # its model cannot be inspected
    trouble: Refusal | None = None  # something it needs is missing: a Secret, the name of its Service
    decision: Decision | None = None
    failure: Failure | None = None
    permanent: bool = False  # the failure cannot heal without a change of the spec
    preemption: Preemption | None = None
    ended: Refusal | None = None  # its work has ended, or its time is over, since this process saw that
    tries: Tries = field(default_factory=Tries)  # of work that ends: failures counted
    scaling: Scaling = field(default_factory=Scaling)
    scores: dict[str, Score] = field(default_factory=dict)
    estimated_bytes: int = 0
    learned: Learned = field(default_factory=Learned)  # of its memory, by this process
    counted: set[str] = field(default_factory=set)  # failures that have been taken into account
    gaps: dict[int, float] = field(default_factory=dict)  # `gangs.gaps` and since when (monotonic seconds)


class Records:
    """All records, and the replicas and reports of their pods."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._keys: dict[str, str] = {}  # workload UID -> key
        self._replicas: dict[str, Replica] = {}  # by pod key
        self._replicas_of: dict[str, set[str]] = {}  # workload UID -> pod keys
        self._reports: dict[str, RuntimeStatus] = {}  # by pod UID
        self._heard: dict[str, float] = {}  # pod UID -> epoch seconds of its runtime's last answer

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> Record | None:
        """Return the record of a workload by key."""
        return self._records.get(key)

    def by_uid(self, uid: str) -> Record | None:
        """Return the record of the workload that has this UID now."""
        return self._records.get(self._keys.get(uid, ""))

    def put(self, record: Record) -> None:
        """Keep a record; one of another UID under the same key is replaced."""
        former = self._records.get(record.key)
        if former is not None and former.uid != record.uid:
            self._keys.pop(former.uid, None)
        self._records[record.key] = record
        self._keys[record.uid] = record.key

    def drop(self, key: str, uid: str = "") -> bool:
        """Forget a workload (of that UID, if given). Returns whether it was known."""
        record = self._records.get(key)
        if record is None or (uid and record.uid != uid):
            return False
        del self._records[key]
        self._keys.pop(record.uid, None)
        return True

    def put_replica(self, replica: Replica) -> bool:
        """Keep what the kubelet says of a replica. Returns whether it is news."""
        old = self._replicas.get(replica.pod)
        if old == replica:
            return False
        if old is not None and old.uid != replica.uid:
            self._reports.pop(old.uid, None)
            self._heard.pop(old.uid, None)
        self._replicas[replica.pod] = replica
        self._replicas_of.setdefault(replica.workload_uid, set()).add(replica.pod)
        return True

    def drop_replica(self, pod: str) -> Replica | None:
        """Forget a replica and its reports; returns it."""
        replica = self._replicas.pop(pod, None)
        if replica is None:
            return None
        self._reports.pop(replica.uid, None)
        self._heard.pop(replica.uid, None)
        pods = self._replicas_of.get(replica.workload_uid)
        if pods is not None:
            pods.discard(pod)
            if not pods:
                del self._replicas_of[replica.workload_uid]
        return replica

    def replica(self, pod: str) -> Replica | None:
        """Return a replica by pod key."""
        return self._replicas.get(pod)

    def replicas(self) -> Iterable[Replica]:
        """Return all replicas."""
        return list(self._replicas.values())

    def replicas_of(self, workload_uid: str) -> dict[str, Replica]:
        """Return a workload's replicas by pod key."""
        return {pod: self._replicas[pod] for pod in self._replicas_of.get(workload_uid, ())}

    def report(self, pod_uid: str) -> RuntimeStatus | None:
        """Return the last report of a pod's runtime."""
        return self._reports.get(pod_uid)

    def heard_at(self, pod_uid: str) -> float:
        """Return when a pod's runtime last answered (epoch seconds), 0.0 if never."""
        return self._heard.get(pod_uid, 0.0)

    def put_report(self, pod_uid: str, report: RuntimeStatus, now: float) -> bool:
        """Keep a report that came at ``now``. Returns whether it is news."""
        self._heard[pod_uid] = now
        if self._reports.get(pod_uid) == report:
            return False
        self._reports[pod_uid] = report
        return True

    def reports_of(self, workload_uid: str) -> dict[str, RuntimeStatus]:
        """Return the reports of a workload's replicas by pod UID."""
        found = {}
        for replica in self.replicas_of(workload_uid).values():
            report = self._reports.get(replica.uid)
            if report is not None:
                found[replica.uid] = report
        return found

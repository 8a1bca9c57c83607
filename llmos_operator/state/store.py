"""The single-writer store: every fact the operator knows, and the claims it has assumed but not yet seen.

Watch events come in through `apply_…` and `delete_…`, telemetry through `observe`, the executor's own writes through
`assume`, `confirm`, `forget`, `assume_evicted` and `forget_eviction`. All methods return at once; nothing here reads a
clock or does I/O. One task writes; `snapshot` may be taken between any two calls. Nodes are in `state.nodebook`, pods
and claims in `state.podbook`; here are the demand side and the snapshot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from llmos_operator.state.averages import Averages
from llmos_operator.state.finished import FinishedLog
from llmos_operator.state.podbook import PodBook
from llmos_operator.state.snapshot import Snapshot, ordinals_of, settled
from llmos_operator.state.types import Ceiling, Kind, PodPhase
from llmos_operator.state.volumes import VolumeBook, mounted_by

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.api.conditions import Reason
    from llmos_operator.state.types import (
        Busy,
        DisruptionBudget,
        Gate,
        Hold,
        Namespace,
        Pod,
        PodKey,
        PriorityClass,
        Profile,
        Queue,
        Workload,
        WorkloadKey,
    )
    from llmos_operator.state.volumes import Volume, VolumeClaim

_T = TypeVar("_T")

REQUIRED = tuple(Kind)
_STAYING = frozenset({PodPhase.BOUND, PodPhase.ASSUMED})


class Store(PodBook):
    """See the module's text. Methods that take a value say by their result whether anything changed."""

    def __init__(self, required: Iterable[Kind] = REQUIRED, *, claims_devices: bool = False) -> None:
        """`claims_devices` says whether pods get devices of DRA drivers by ResourceClaims that the operator makes."""
        super().__init__()
        self._claims_devices = claims_devices
        self._missing = list(required)
        self._workloads: dict[WorkloadKey, Workload] = {}  # as applied
        self._effective: dict[WorkloadKey, Workload] = {}  # with desired replicas put in
        self._replicas: dict[WorkloadKey, int] = {}
        self._key_of: dict[str, WorkloadKey] = {}  # by UID
        self._unsettled: set[WorkloadKey] = set()
        self._holds: dict[WorkloadKey, Hold] = {}
        self._gates: dict[WorkloadKey, Gate] = {}
        self._finished = FinishedLog()
        self._averages = Averages()
        self._queues: dict[str, Queue] = {}
        self._profiles: dict[str, Profile] = {}
        self._priority_classes: dict[str, PriorityClass] = {}
        self._budgets: dict[str, DisruptionBudget] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._book = VolumeBook()
        self._remounted: set[WorkloadKey] = set()
        self._idle: set[WorkloadKey] = set()
        self._lending: dict[WorkloadKey, bool] = {}
        self._ceilings: dict[WorkloadKey, Ceiling] = {}  # the newest word on each
        self._busy: dict[PodKey, Busy] = {}
        self._interference: dict[tuple[str, str], int] = {}

    @classmethod
    def of(cls, snapshot: Snapshot) -> Store:
        """Return a store of its own whose snapshot is equal to `snapshot`, for trying out what would happen.

        Desired replicas are part of the workloads from then on, and every observation is believed as it was.
        """
        store = cls(snapshot.missing)
        store.restore_pods(snapshot)
        store._workloads = {
            key: w if w.wanted is None else replace(w, replicas=w.wanted, wanted=None)
            for key, w in snapshot.workloads.items()
        }
        store._effective = dict(snapshot.workloads)
        store._key_of = {w.uid: key for key, w in snapshot.workloads.items()}
        store._unsettled = set(snapshot.unsettled)
        store._holds = dict(snapshot.holds)
        store._finished.restore(snapshot.finished)
        store._averages.restore(snapshot.averages)
        store._queues = dict(snapshot.queues)
        store._profiles = dict(snapshot.profiles)
        store._priority_classes = dict(snapshot.priority_classes)
        store._budgets = dict(snapshot.budgets)
        store._namespaces = dict(snapshot.namespaces)
        store._idle = set(snapshot.idle)
        store._lending = dict(snapshot.lending)
        store._ceilings = {key: w.ceiling for key, w in snapshot.workloads.items() if w.ceiling is not None}
        store._busy = dict(snapshot.busy)
        store._interference = dict(snapshot.interference)
        return store

    def mark_synced(self, kind: Kind) -> None:
        """Say that every object of `kind` has been applied."""
        if kind in self._missing:
            self._missing.remove(kind)
            self._version += 1

    def synced(self) -> bool:
        """Return whether all required kinds are complete; no plan may be made before."""
        return not self._missing

    def snapshot(self) -> Snapshot:
        """Return an immutable picture of everything; costs one shallow copy of each dictionary."""
        return Snapshot(
            version=self._version,
            missing=tuple(self._missing),
            nodes=dict(self._nodes),
            workloads=dict(self._effective),
            pods_of=dict(self._pods_of),
            queues=dict(self._queues),
            profiles=dict(self._profiles),
            priority_classes=dict(self._priority_classes),
            budgets=dict(self._budgets),
            namespaces=dict(self._namespaces),
            holds=dict(self._holds),
            finished=self._finished.all(),
            averages=self._averages.all(),
            heard=dict(self._heard),
            nominated=dict(self._nominated),
            unsettled=tuple(sorted(self._unsettled)),
            charged=dict(self._tally.charged),
            standing=dict(self._tally.standing),
            terminating=tuple(self._tally.terminating.values()),
            lowered=tuple(sorted(self._tally.lowered.values(), key=lambda pod: pod.key)),
            sleeping=tuple(sorted(self._tally.sleeping.values(), key=lambda pod: pod.key)),
            held=tuple(sorted(k for k in self._ceilings if self._effective[k].wanted is not None)),
            busy=dict(self._busy),
            idle=frozenset(self._idle),
            lending=dict(self._lending),
            interference=dict(self._interference),
            moved=tuple(sorted(self._tally.moved.values(), key=lambda pod: pod.key)),
            targets=dict(self._targets),
            disturbed=dict(self._disturbed),
        )

    def advance(self, now: float) -> None:
        """Move the averages of use to `now` (epoch seconds), forget places kept in vain, old refusals and offers; no reason to plan anew."""
        self.expire_targets(now)
        self.expire_refusals(now)
        self.expire_offers(now)
        if self.synced():  # before that, what is charged is not all
            claims = (p.claim for pods in self._pods_of.values() for p in pods if p.claim is not None)
            self._averages.advance(now, self._queues, self._tally.charged, claims)

    def applied(self, key: WorkloadKey) -> Workload | None:
        """Return a workload with its desired replicas, but without what Kueue says of it."""
        workload, replicas = self._workloads.get(key), self._replicas.get(key)
        return workload if workload is None or replicas is None else replace(workload, replicas=replicas)

    def workload_of(self, uid: str) -> Workload | None:
        """Return the workload of that UID."""
        return self._effective.get(self._key_of.get(uid, ""))

    def workload(self, key: WorkloadKey) -> Workload | None:
        """Return a workload with its desired replicas put in."""
        return self._effective.get(key)

    def apply_workload(self, workload: Workload) -> bool:
        """Take a workload. One with another UID under the same name is another workload: nothing is carried over."""
        old = self._workloads.get(workload.key)
        if old is not None and old == workload:
            return False
        if old is not None and old.uid != workload.uid:
            self.delete_workload(old.key)
        self._book.note_workload(self._workloads.get(workload.key), workload)
        self._workloads[workload.key] = workload
        self._key_of[workload.uid] = workload.key
        self._finished.note(workload)
        known = self._ceilings.get(workload.key)
        if workload.ceiling is not None and (known is None or workload.ceiling.at > known.at):
            self._ceilings[workload.key] = (
                workload.ceiling
            )  # another process decided it, or this one before it stopped
        hold = self._holds.get(workload.key)
        if hold is not None and hold.generation != workload.generation:
            del self._holds[workload.key]
        self._refresh_workload(workload.key)
        return True

    def delete_workload(self, key: WorkloadKey, uid: str = "") -> bool:
        """Forget a workload (only that UID, if given). Its pods stay counted until they are gone."""
        old = self._workloads.get(key)
        if old is None or (uid and old.uid != uid):
            return False
        self._book.note_workload(old, None)
        del self._workloads[key], self._effective[key], self._key_of[old.uid]
        self._unsettled.discard(key)
        self._nominated.pop(key, None)
        self._replicas.pop(key, None)
        self._holds.pop(key, None)
        self._gates.pop(key, None)
        self._idle.discard(key)
        self._lending.pop(key, None)
        self._ceilings.pop(key, None)
        self._version += 1
        return True

    def set_replicas(self, key: WorkloadKey, replicas: int | None) -> bool:
        """Set how many replicas scaling wants now; None goes back to the spec."""
        if self._replicas.get(key) == replicas:
            return False
        if replicas is None:
            del self._replicas[key]
        else:
            self._replicas[key] = replicas
        if key in self._workloads:
            self._refresh_workload(key)
        return True

    def give_up_replica(self, key: WorkloadKey, uid: str, beneficiary: WorkloadKey, now: float) -> bool:
        """Let an elastic workload do with the replicas that are not on their way out, at least one and its minimum.

        To be said once the eviction of the one it gives up is assumed. Until :meth:`allow_replicas` nothing takes its place.
        """
        workload = self._effective.get(key)
        if workload is None or workload.uid != uid or not workload.elastic:
            return False
        left = len(ordinals_of(pod for pod in self.pods_of(uid) if pod.phase in _STAYING))
        return self.allow_replicas(key, uid, max(left, workload.min_replicas, 1), now, beneficiary)

    def keep_replica(self, key: WorkloadKey, uid: str, now: float) -> bool:
        """Take back one :meth:`give_up_replica`, because the replica was not evicted."""
        workload = self._effective.get(key)
        if workload is None or workload.wanted is None:
            return False
        return self.allow_replicas(key, uid, workload.replicas + 1, now)

    def allow_replicas(
        self, key: WorkloadKey, uid: str, replicas: int, now: float, beneficiary: WorkloadKey = ""
    ) -> bool:
        """Let a workload have up to so many replicas; no limit is left where it does not want more."""
        workload = self._effective.get(key)
        if workload is None or workload.uid != uid:
            return False
        former = self._ceilings.get(key)
        wanted = workload.replicas if workload.wanted is None else workload.wanted
        at = float(int(now)) if former is None else max(float(int(now)), former.at + 1.0)
        limit = replicas if replicas < wanted else None
        by = beneficiary or (former.beneficiary if former is not None else "")
        self._ceilings[key] = Ceiling(limit, at, by if limit is not None else "")
        self._refresh_workload(key)
        return True

    def delete_pod(self, key: PodKey, uid: str = "") -> bool:
        """Release what a deleted pod held, as in the base class."""
        gone = super().delete_pod(key, uid)
        if gone:
            self._busy.pop(key, None)
        return gone

    def set_busy(self, pod: PodKey, busy: Busy | None) -> None:
        """Take what a replica is in the middle of; None: nothing, or it is not there. No reason to plan anew."""
        if busy is None:
            self._busy.pop(pod, None)
        else:
            self._busy[pod] = busy

    def set_idle(self, key: WorkloadKey, *, idle: bool) -> bool:
        """Say whether nobody has asked anything of a workload for as long as it may then sleep after."""
        if idle == (key in self._idle):
            return False
        self._idle.symmetric_difference_update({key})
        self._version += 1
        return True

    def set_lending(self, key: WorkloadKey, *, lending: bool | None) -> bool:
        """Say whether a workload may lend memory (True), calls back what it has lent (False), or neither (None)."""
        if lending == self._lending.get(key):
            return False
        if lending is None:
            del self._lending[key]
        else:
            self._lending[key] = lending
        self._version += 1
        return True

    def set_interference(self, subject: str, beside: str, milli: int) -> bool:
        """Take the part of its speed, in thousandths, that work like `subject` loses beside work like `beside`; 0: none."""
        if self._interference.get((subject, beside), 0) == milli:
            return False
        self._interference[subject, beside] = milli
        if not milli:
            del self._interference[subject, beside]
        self._version += 1
        return True

    def set_hold(self, key: WorkloadKey, hold: Hold | None) -> bool:
        """Keep a workload from getting new replicas, or lift that."""
        return self._apply(self._holds, key, hold) if hold else self._delete(self._holds, key)

    def set_gate(self, key: WorkloadKey, gate: Gate | None) -> bool:
        """Take what Kueue says of a workload; None: it is not asked."""
        if key not in self._workloads or self._gates.get(key) == gate:
            return False
        if gate is None:
            del self._gates[key]
        else:
            self._gates[key] = gate
        self._refresh_workload(key)
        return True

    def apply_queue(self, queue: Queue) -> bool:
        """Take a queue."""
        return self._apply(self._queues, queue.name, queue)

    def delete_queue(self, name: str) -> bool:
        """Forget a queue."""
        return self._delete(self._queues, name)

    def apply_profile(self, profile: Profile) -> bool:
        """Take what is known of a model."""
        return self._apply(self._profiles, profile.name, profile)

    def delete_profile(self, name: str) -> bool:
        """Forget a model's profile."""
        return self._delete(self._profiles, name)

    def apply_priority_class(self, priority_class: PriorityClass) -> bool:
        """Take a priority class."""
        return self._apply(self._priority_classes, priority_class.name, priority_class)

    def delete_priority_class(self, name: str) -> bool:
        """Forget a priority class; workloads that name it count as priority 0."""
        return self._delete(self._priority_classes, name)

    def apply_budget(self, budget: DisruptionBudget) -> bool:
        """Take a PodDisruptionBudget."""
        return self._apply(self._budgets, budget.key, budget)

    def delete_budget(self, key: str) -> bool:
        """Forget a PodDisruptionBudget."""
        return self._delete(self._budgets, key)

    def apply_namespace(self, namespace: Namespace) -> bool:
        """Take a namespace's labels."""
        return self._apply(self._namespaces, namespace.name, namespace)

    def delete_namespace(self, name: str) -> bool:
        """Forget a namespace."""
        return self._delete(self._namespaces, name)

    def apply_volume_claim(self, claim: VolumeClaim) -> bool:
        """Take a PersistentVolumeClaim."""
        return self._remount(self._book.apply_claim(claim))

    def delete_volume_claim(self, key: str) -> bool:
        """Forget a PersistentVolumeClaim."""
        return self._remount(self._book.delete_claim(key))

    def apply_volume(self, volume: Volume) -> bool:
        """Take a PersistentVolume."""
        return self._remount(self._book.apply_volume(volume))

    def delete_volume(self, name: str) -> bool:
        """Forget a PersistentVolume."""
        return self._remount(self._book.delete_volume(name))

    def claim_trouble(self, key: WorkloadKey) -> tuple[Reason, str] | None:
        """Return why a replica that has no place could not mount its claims anywhere; None: it could, or all have one."""
        return self._book.trouble(self._effective[key]) if key in self._unsettled else None

    def take_remounted(self) -> tuple[WorkloadKey, ...]:
        """Return the workloads whose claims, or where those can be mounted, have changed since the last call."""
        keys, self._remounted = self._remounted, set()
        return tuple(sorted(keys))

    def _mounts_changed(self, pod: Pod, *, there: bool) -> None:
        workload = self._workloads.get(pod.claim.workload) if pod.claim is not None else None
        self._remount(self._book.note_pod(pod.key, pod.node, mounted_by(pod, workload) if there else ()))

    def _remount(self, keys: set[WorkloadKey]) -> bool:
        self._remounted |= keys
        for key in sorted(keys):
            self._refresh_workload(key)
        return bool(keys)

    def _apply(self, kept: dict[str, _T], key: str, value: _T) -> bool:
        if kept.get(key) == value:
            return False
        kept[key] = value
        self._version += 1
        return True

    def _delete(self, kept: dict[str, _T], key: str) -> bool:
        if kept.pop(key, None) is None:
            return False
        self._version += 1
        return True

    def _refresh_workload(self, key: WorkloadKey) -> None:
        workload, replicas = self._workloads[key], self._replicas.get(key)
        effective = workload if replicas is None else replace(workload, replicas=replicas)
        if (gate := self._gates.get(key)) is not None:
            effective = effective.gated(gate)
        if mounts := self._book.limits(workload):
            effective = replace(effective, mounts=mounts)
        ceiling = self._ceilings.get(key)
        if ceiling is not None:
            effective = replace(effective, ceiling=ceiling)
            effective = self._under(effective, ceiling)
        self._effective[key] = effective
        self._pods_changed(workload.uid)
        self._version += 1

    def _under(self, workload: Workload, ceiling: Ceiling) -> Workload:
        """Return a workload under its ceiling, if that limits it or says which of its replicas are left."""
        if ceiling.replicas is None or workload.suspended or workload.finished or not workload.elastic:
            return workload
        there = ordinals_of(pod for pod in self.pods_of(workload.uid) if pod.phase in _STAYING)
        if workload.replicas <= ceiling.replicas and all(one < workload.replicas for one in there):
            return workload
        return replace(workload, replicas=min(workload.replicas, ceiling.replicas), wanted=workload.replicas)

    def _pods_changed(self, workload_uid: str) -> None:
        key = self._key_of.get(workload_uid)
        if key is None:
            return
        if settled(self._effective[key], self.pods_of(workload_uid)):
            self._unsettled.discard(key)
            self._nominated.pop(key, None)
        else:
            self._unsettled.add(key)

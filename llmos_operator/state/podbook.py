"""The pod side of the store: pods, assumed claims and evictions on their way.

Life of a claim::

    assume ──create ok──> confirm ──watch shows the pod──> bound ──DELETE event──> gone
       └────create failed for sure────> forget

An assumed claim counts from the first moment; an ambiguous create is neither confirmed nor forgotten until a quorum
read says what happened (`assumed` lists those that are open).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmos_operator.errors import Conflict
from llmos_operator.state import handouts, ledger
from llmos_operator.state.nodebook import NodeBook
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.tally import Tally
from llmos_operator.state.types import Pod, PodPhase

if TYPE_CHECKING:
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, PodKey, Sleeping, Target, WorkloadKey


_ADMITTED = frozenset({PodPhase.BOUND, PodPhase.TERMINATING})  # of these the kubelet may have told


@dataclass(frozen=True, slots=True)
class Assumption:
    """A claim that was assumed; `uid` is the created pod's once the write is confirmed, "" before."""

    claim: Claim
    uid: str = ""


class PodBook(NodeBook):
    """Pods by key, charged to their nodes."""

    def __init__(self) -> None:
        super().__init__()
        self._pods: dict[PodKey, Pod] = {}
        self._pods_of: dict[str, tuple[Pod, ...]] = {}
        self._holders: dict[PodKey, Pod] = {}
        self._assumed: dict[PodKey, Assumption] = {}
        self._evicting: dict[PodKey, float] = {}  # pod -> when its grace ends
        self._nominated: dict[WorkloadKey, float] = {}  # room is being made for them; until when it takes
        self._targets: dict[tuple[str, int], Target] = {}  # replicas that are moved: workload UID, ordinal
        self._tally = Tally()
        self._corrected: set[PodKey] = set()  # pods whose claim names other devices now than their annotation

    def restore_pods(self, snapshot: Snapshot) -> None:
        """Take nodes and pods as a snapshot has them; this store must be empty."""
        self.restore_nodes(snapshot)
        self._pods = {key: pod for state in snapshot.nodes.values() for key, pod in state.pods.items()}
        self._pods |= {pod.key: pod for pods in snapshot.pods_of.values() for pod in pods}
        self._pods_of = dict(snapshot.pods_of)
        self._holders = {key: pod for key, pod in self._pods.items() if pod.holder}
        self._assumed = {
            pod.key: Assumption(pod.claim)
            for pod in self._pods.values()
            if pod.phase is PodPhase.ASSUMED and pod.claim is not None
        }
        self._nominated = dict(snapshot.nominated)
        self._targets = dict(snapshot.targets)
        self._tally.restore(
            snapshot.charged,
            snapshot.standing,
            snapshot.terminating,
            snapshot.lowered,
            snapshot.sleeping,
            snapshot.moved,
        )

    def pod(self, key: PodKey) -> Pod | None:
        """Return a pod by key, assumed ones included."""
        return self._pods.get(key)

    def apply_pod(self, pod: Pod) -> bool:
        """Take a pod of the watch; it replaces an assumption of the same key.

        Pods of others are kept only while they hold something: bound to a node and not finished. Holder pods that have
        ended are kept, too: somebody has to delete them.
        """
        self._assumed.pop(pod.key, None)
        known = self._pods.get(pod.key)
        if known is not None and known.claim is not None and known.uid == pod.uid:
            # What a pod holds is fixed when it is created, and lowered by us alone; its annotation may be edited by anybody
            # who may edit the pod.
            pod = replace(
                pod, claim=known.claim, labels=pod.labels or known.labels, firm_until=known.firm_until
            )
        if pod.claim is None and not pod.holder and (not pod.node or pod.phase is PodPhase.FINISHED):
            if known is not None:
                self._drop_pod(pod.key)
            return known is not None
        if known is not None and known.uid not in {"", pod.uid}:
            self._evicting.pop(pod.key, None)  # the eviction was of a former pod of this name
        if pod.key in self._evicting and pod.phase is PodPhase.BOUND:
            pod = replace(pod, phase=PodPhase.TERMINATING, deletion_at=self._evicting[pod.key])
        pod = self._as_given(pod)
        if known == pod:
            return False
        self._put_pod(pod)
        if known is None and pod.phase is PodPhase.TERMINATING and pod.claim is not None and pod.claim.target:
            # A former leader moves it: what only that one remembered follows from what it has written down.
            self._nominate(pod.claim.target.beneficiary, pod.deletion_at)
            self._nominate(pod.claim.workload, pod.deletion_at)
        return True

    def _devices_told(self, name: str) -> None:
        for pod in list(self._state(name).pods.values()):
            corrected = self._as_given(pod)
            if corrected is not pod:
                self._put_pod(corrected)

    def _as_given(self, pod: Pod) -> Pod:
        """Return a pod with the devices the kubelet gave it, where they are others than it was planned on.

        A pod that asks for units of a resource gets the devices the node's device plugin prefers; nobody can name one. Where the kubelet
        gave another number, what it tells is of a former pod of this name, and the plan counts on.
        """
        claim = pod.claim
        if claim is None or not claim.resource or pod.phase not in _ADMITTED:
            return pod
        given = handouts.given(self._state(pod.node).devices, pod.key)
        if len(given) != len(claim.devices) or set(given) == set(claim.devices):
            return pod
        self._corrected.add(pod.key)
        return replace(pod, claim=replace(claim, devices=given))

    def take_corrected(self) -> tuple[Pod, ...]:
        """Return the pods whose claims were corrected since the last call and are to be written down."""
        keys, self._corrected = self._corrected, set()
        return tuple(self._pods[key] for key in sorted(keys) if key in self._pods)

    def delete_pod(self, key: PodKey, uid: str = "") -> bool:
        """Release what a deleted pod held. A late DELETE of a former pod of the same name (other UID) is ignored."""
        known = self._pods.get(key)
        if known is None:
            return False
        assumption = self._assumed.get(key)
        held_uid = assumption.uid if assumption is not None else known.uid
        if uid and held_uid != uid:
            return False
        self._drop_pod(key)
        return True

    def assume(self, claim: Claim) -> None:
        """Count a claim before its pod is created. Conflict: the name, the replica or the capacity is taken."""
        if claim.pod in self._pods:
            raise Conflict(f"pod {claim.pod} exists already; wait for its deletion")
        place = (claim.ordinal, claim.member)
        if any(
            p.claim is not None and (p.claim.ordinal, p.claim.member) == place
            for p in self.pods_of(claim.workload_uid)
        ):
            raise Conflict(f"replica {claim.ordinal} of {claim.workload} holds a claim already")
        problem = ledger.shortfall(self._state(claim.node), claim)
        if problem:
            raise Conflict(f"claim of {claim.pod} does not fit: {problem}; plan again on a newer snapshot")
        self._assumed[claim.pod] = Assumption(claim)
        self._put_pod(assumed_pod(claim))

    def confirm(self, key: PodKey, uid: str) -> None:
        """Say that the pod of an assumed claim was created as `uid`; the watch will show it."""
        assumption = self._assumed.get(key)
        if assumption is not None:
            self._assumed[key] = replace(assumption, uid=uid)

    def forget(self, key: PodKey) -> bool:
        """Release an assumed claim whose create failed for sure. A pod the watch has shown stays."""
        if self._assumed.pop(key, None) is None:
            return False
        self._drop_pod(key)
        return True

    def assumed(self) -> tuple[Assumption, ...]:
        """Return the claims the watch has not shown yet, for a quorum read of those that are overdue."""
        return tuple(self._assumed.values())

    def assume_evicted(
        self,
        key: PodKey,
        grace_ends: float,
        preemptor: WorkloadKey = "",
        freed_at: float | None = None,
        target: Target | None = None,
    ) -> bool:
        """Count a pod as terminating from the moment its eviction is sent, so that it is sent once.

        The workload it makes room for is nominated: while it waits it goes before others of its priority, so that
        nobody takes what was freed for it. `freed_at` is when the pod should be gone by its own grace; `grace_ends`, until
        when it counts as ending before the watch shows its deletion, may be much later and stands in where it is absent.
        With a `target` its replica is moved there; it is nominated, too.
        """
        pod = self._pods.get(key)
        if pod is None or pod.phase in {PodPhase.TERMINATING, PodPhase.FINISHED}:
            return False
        self._evicting[key] = grace_ends
        ends = grace_ends if freed_at is None else freed_at
        claim = pod.claim
        if claim is not None and claim.target != target:
            claim = replace(claim, target=target)
        self._put_pod(replace(pod, claim=claim, phase=PodPhase.TERMINATING, deletion_at=grace_ends))
        self._nominate(preemptor, ends)
        if claim is not None and target is not None:
            self._nominate(claim.workload, ends)
        return True

    def _nominate(self, workload: WorkloadKey, until: float) -> None:
        if workload:
            self._nominated[workload] = max(until, self._nominated.get(workload, 0.0))

    def forget_eviction(self, key: PodKey) -> bool:
        """Take back `assume_evicted` because the API refused (for example a disruption budget)."""
        if self._evicting.pop(key, None) is None:
            return False
        pod = self._pods.get(key)
        if pod is None or pod.phase is not PodPhase.TERMINATING:
            return False
        phase = PodPhase.ASSUMED if key in self._assumed else PodPhase.BOUND
        claim = pod.claim
        if claim is not None and claim.target is not None:
            claim = replace(claim, target=None)
        self._put_pod(replace(pod, claim=claim, phase=phase, deletion_at=0.0))
        return True

    def expire_targets(self, now: float) -> None:
        """Forget the places of moved replicas that are not kept any longer at `now` (epoch seconds)."""
        for replica in [replica for replica, target in self._targets.items() if target.until < now]:
            del self._targets[replica]

    def ask_to_lower(
        self,
        key: PodKey,
        uid: str,
        asked_bytes: int,
        now: float,
        preemptor: WorkloadKey = "",
        until: float = 0.0,
        *,
        lent: bool = False,
        fmt: str = "",
    ) -> Claim | None:
        """Ask a running pod to come down to `asked_bytes` of each device; return its claim as it is to be written down.

        `fmt` is the narrower format it is asked to serve at for that, "" where its KV cache is enough.

        It counts with all it was bound with until :meth:`note_yielded`. The workload it makes room for is nominated until
        `until`, as by :meth:`assume_evicted`. As a loan (`lent`) what it gives up is kept for who borrows. What it has
        lent before may be taken for good. None: it is not there (any more), or was asked before.
        """
        pod = self._pods.get(key)
        if pod is None or pod.uid != uid or pod.claim is None or pod.phase is not PodPhase.BOUND:
            return None
        taken = pod.claim.lent and pod.claim.yielded and not lent and asked_bytes == pod.claim.asked_bytes
        if (
            (pod.claim.lowered and not taken)
            or pod.claim.sleeping is not None
            or not 0 < asked_bytes < pod.claim.bytes_per_device
        ):
            return None
        self._nominate(preemptor, until)
        claim = replace(
            pod.claim, asked_bytes=asked_bytes, asked_format=fmt, asked_at=now, yielded=taken, lent=lent
        )
        self._put_pod(replace(pod, claim=claim))
        return claim

    def note_yielded(self, key: PodKey, uid: str) -> Claim | None:
        """Count a pod with what it was asked to come down to, because it was seen to have; return its claim if that is news."""
        pod = self._pods.get(key)
        if pod is None or pod.uid != uid or pod.claim is None or not pod.claim.lowered or pod.claim.yielded:
            return None
        claim = replace(pod.claim, yielded=True)
        self._put_pod(replace(pod, claim=claim))
        return claim

    def restore_memory(self, key: PodKey, uid: str, firm_until: float = 0.0) -> Claim | None:
        """Give a pod back all it was bound with; return its claim as it is to be written down, None if nothing was taken.

        `firm_until` is when it may be asked again, where it did not come down. None, too, while others hold what it gave up.
        """
        pod = self._pods.get(key)
        if pod is None or pod.uid != uid or pod.claim is None or not pod.claim.lowered:
            return None
        if pod.claim.yielded and not self._state(pod.node).may_rise(pod.claim):
            return None
        claim = replace(pod.claim, asked_bytes=0, asked_format="", asked_at=0.0, yielded=False, lent=False)
        self._put_pod(replace(pod, claim=claim, firm_until=max(firm_until, pod.firm_until)))
        return claim

    def ask_to_sleep(self, key: PodKey, uid: str, sleeping: Sleeping, until: float = 0.0) -> Claim | None:
        """Ask a running pod to sleep; return its claim as it is to be written down.

        It counts with all it has until :meth:`note_asleep`, and with its weights in the node's memory from now on. Who it
        makes room for is nominated until `until`, as by :meth:`assume_evicted`. None: it is not there (any more), was asked
        before, or the node has not that much memory.
        """
        pod = self._pods.get(key)
        if pod is None or pod.uid != uid or pod.claim is None or pod.phase is not PodPhase.BOUND:
            return None
        if pod.claim.lowered and not pod.claim.yielded:
            return None
        if pod.claim.sleeping is not None or not 0 < sleeping.bytes_per_device < pod.claim.held_bytes:
            return None
        if not self._state(pod.node).has_beds_for(sleeping.host_bytes):
            return None
        self._nominate(sleeping.beneficiary, until)
        claim = replace(pod.claim, sleeping=replace(sleeping, down=False))
        self._put_pod(replace(pod, claim=claim))
        return claim

    def note_asleep(self, key: PodKey, uid: str) -> Claim | None:
        """Count a pod as asleep, because it was seen to be; return its claim if that is news."""
        pod = self._pods.get(key)
        if (
            pod is None
            or pod.uid != uid
            or pod.claim is None
            or pod.claim.sleeping is None
            or pod.claim.asleep
        ):
            return None
        claim = replace(pod.claim, sleeping=replace(pod.claim.sleeping, down=True))
        self._put_pod(replace(pod, claim=claim))
        return claim

    def wake(self, key: PodKey, uid: str, firm_until: float = 0.0) -> Claim | None:
        """Count a pod as awake again; return its claim as it is to be written down, None if it does not sleep or its room is taken.

        `firm_until` is when it may be asked again, where it did not go to sleep.
        """
        pod = self._pods.get(key)
        if pod is None or pod.uid != uid or pod.claim is None or pod.claim.sleeping is None:
            return None
        if not self._state(pod.node).may_wake(pod.claim):
            return None
        claim = replace(pod.claim, sleeping=None)
        self._put_pod(replace(pod, claim=claim, firm_until=max(firm_until, pod.firm_until)))
        return claim

    def sleeping(self) -> tuple[Pod, ...]:
        """Return the running pods that were asked to sleep."""
        return tuple(self._tally.sleeping.values())

    def lowered(self) -> tuple[Pod, ...]:
        """Return the running pods that were asked to do with less memory."""
        return tuple(self._tally.lowered.values())

    def holders(self) -> tuple[Pod, ...]:
        """Return the holder pods, those that have ended included, by key."""
        return tuple(sorted(self._holders.values(), key=lambda pod: pod.key))

    def pods_of(self, workload_uid: str) -> tuple[Pod, ...]:
        """Return the pods of a workload by UID, in order of ordinal and member."""
        return self._pods_of.get(workload_uid, ())

    def _put_pod(self, pod: Pod) -> None:
        old = self._pods.get(pod.key)
        if old is not None:
            self._unindex(old, moved=old.node != pod.node)
        self._pods[pod.key] = pod
        self._tally.add(pod)
        if pod.holder:
            self._holders[pod.key] = pod
        if pod.claim is not None:
            mates = (*self.pods_of(pod.claim.workload_uid), pod)
            self._pods_of[pod.claim.workload_uid] = tuple(sorted(mates, key=_ordinal_order))
            self._pods_changed(pod.claim.workload_uid)
            self._note_target(pod, pod.claim)
        if pod.node:
            self._set_node(self._state(pod.node).with_pod(pod))
        self._mounts_changed(pod, there=pod.phase is not PodPhase.FINISHED)
        self._version += 1

    def _note_target(self, pod: Pod, claim: Claim) -> None:
        """Keep in mind where a replica goes whose pod is leaving, until it has a pod again."""
        replica = (claim.workload_uid, claim.ordinal)
        if pod.phase is PodPhase.TERMINATING and claim.target is not None:
            self._targets[replica] = claim.target
        elif pod.phase in {PodPhase.ASSUMED, PodPhase.BOUND}:
            self._targets.pop(replica, None)

    def _drop_pod(self, key: PodKey) -> None:
        pod = self._pods.pop(key)
        self._unindex(pod, moved=True)
        self._mounts_changed(pod, there=False)
        self._holders.pop(key, None)
        self._assumed.pop(key, None)
        self._evicting.pop(key, None)
        self._version += 1

    def _pods_changed(self, workload_uid: str) -> None:
        """Take note that the pods of a workload are others now."""

    def _mounts_changed(self, pod: Pod, *, there: bool) -> None:
        """Take note that a pod has its claims mounted, or not any more."""

    def _unindex(self, pod: Pod, *, moved: bool) -> None:
        self._tally.remove(pod)
        if pod.claim is not None:
            uid = pod.claim.workload_uid
            rest = tuple(p for p in self._pods_of.get(uid, ()) if p.key != pod.key)
            if rest:
                self._pods_of[uid] = rest
            else:
                self._pods_of.pop(uid, None)
            self._pods_changed(uid)
        if moved and pod.node:
            self._set_node(self._state(pod.node).without_pod(pod.key))


def _ordinal_order(pod: Pod) -> tuple[int, int, str]:
    claim = pod.claim
    return (claim.ordinal, claim.member, pod.key) if claim is not None else (-1, 0, pod.key)

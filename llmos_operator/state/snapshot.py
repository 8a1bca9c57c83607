"""What a decision looks at: an immutable snapshot of the store, and a working view with undo.

A snapshot shares every value with the store (values are immutable, so taking one copies only dictionaries of
references). A :class:`View` is a private copy on which a plan places and removes claims; `checkpoint` and `rollback`
undo exactly, because undoing means putting the former values back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count, islice
from math import inf
from typing import TYPE_CHECKING

from llmos_operator.state.types import Pod, PodPhase, PreemptionPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmos_operator.state.finished import Finished
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import (
        Busy,
        Claim,
        DisruptionBudget,
        Hold,
        Kind,
        Namespace,
        PodKey,
        PriorityClass,
        Profile,
        Queue,
        Sleeping,
        Target,
        Workload,
        WorkloadKey,
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one version of the store."""

    version: int = 0
    missing: tuple[Kind, ...] = ()  # kinds whose lists are not complete yet
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    workloads: Mapping[WorkloadKey, Workload] = field(default_factory=dict)
    pods_of: Mapping[str, tuple[Pod, ...]] = field(default_factory=dict)  # by workload UID, ordinal order
    queues: Mapping[str, Queue] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    priority_classes: Mapping[str, PriorityClass] = field(default_factory=dict)
    budgets: Mapping[str, DisruptionBudget] = field(default_factory=dict)
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    holds: Mapping[WorkloadKey, Hold] = field(default_factory=dict)
    finished: tuple[Finished, ...] = ()  # FineTune and Batch work, of which durations are learned
    heard: Mapping[str, float] = field(default_factory=dict)  # node -> receive time of its last telemetry
    unsettled: tuple[WorkloadKey, ...] = ()  # workloads with a wanted replica that no pod stands for, sorted
    nominated: Mapping[WorkloadKey, float] = field(
        default_factory=dict
    )  # when the grace of their victims ends
    charged: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # queue -> (GPU milli, bytes) of claims
    averages: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # queue with a half-life -> its decayed use, as `charged`
    standing: Mapping[tuple[str, int], int] = field(default_factory=dict)  # (queue, priority) -> claims
    terminating: tuple[Pod, ...] = ()  # pods with claims on their way out
    lowered: tuple[Pod, ...] = ()  # running pods that were asked to do with less memory, by key
    sleeping: tuple[Pod, ...] = ()  # running pods that were asked to sleep, by key
    held: tuple[WorkloadKey, ...] = ()  # workloads with fewer replicas than are wanted, for others; sorted
    busy: Mapping[PodKey, Busy] = field(
        default_factory=dict
    )  # what pods that serve would lose with their end
    idle: frozenset[WorkloadKey] = frozenset()  # nobody has asked anything of them for `idle.sleepAfter`
    lending: Mapping[WorkloadKey, bool] = field(
        default_factory=dict
    )  # True: may lend memory (`idle.lendAfter`); False: calls back what it has lent; absent: nobody has said
    # (work like this, beside work like that) -> thousandths of its speed that it was seen to lose
    interference: Mapping[tuple[str, str], int] = field(default_factory=dict)
    moved: tuple[Pod, ...] = ()  # pods of replicas that were moved to where they are, by key
    targets: Mapping[tuple[str, int], Target] = field(
        default_factory=dict
    )  # (workload UID, ordinal) -> where a replica goes that is being moved
    disturbed: Mapping[str, float] = field(
        default_factory=dict
    )  # node -> when it was acted on last because a device looked sick; epoch seconds

    @property
    def synced(self) -> bool:
        """Whether every kind has been listed completely."""
        return not self.missing

    def may_lend(self, key: WorkloadKey) -> bool:
        """Return whether a workload may lend memory, or go on with that."""
        return self.lending.get(key) is True

    def calls_back(self, key: WorkloadKey) -> bool:
        """Return whether a workload needs back what it has lent; a loan goes on while nobody has said so."""
        return self.lending.get(key) is False

    def priority_of(self, workload: Workload) -> int:
        """Return the value of the workload's priority class; the cluster's default class, else 0, without one."""
        if workload.priority_class:
            found = self.priority_classes.get(workload.priority_class)
            return found.value if found is not None else 0
        return max((c.value for c in self.priority_classes.values() if c.is_default), default=0)

    def may_preempt(self, workload: Workload) -> bool:
        """Return whether the workload may displace others: neither it nor its priority class says Never."""
        found = self.priority_classes.get(workload.priority_class)
        of_class = found.preemption_policy if found is not None else PreemptionPolicy.LOWER_PRIORITY
        return PreemptionPolicy.NEVER not in {workload.preemption, of_class}


def wanted_ordinals(workload: Workload, pods: Iterable[Pod]) -> Sequence[int]:
    """Return the ordinals of the replicas that are wanted, in order.

    Those that are there count first, those that serve before others and then those of the present spec: none of them is
    restarted for the sake of its number, whichever were given up for others or replaced. While replicas of an older spec
    are there, up to `Workload.surge` more are wanted: never more than the wanted number of either spec. A canary stays as
    small as the replicas that are held back for it leave it. Pods on their way out keep their ordinals and count, so that
    there are never more than `Workload.surge` above the wanted number.
    """
    if workload.members > 1 and workload.wanted is None:
        return range(workload.replicas)
    pods = list(pods)
    staying = [pod for pod in pods if _stays(pod)]
    held, most = ordinals_of(pods), workload.replicas
    old = outdated(workload, staying)
    limit = most + (workload.surge if old else 0)
    if limit == most and all(ordinal < most for ordinal in held):
        return range(most)
    newest = most_of_present(workload, staying)
    new, former = _kept(staying, old, newest, most, limit)
    more = min(newest - len(new), limit - len(new) - len(former))
    leaving = sorted(held - ordinals_of(staying))[:more]
    fresh = max(0, min(more - len(leaving), limit - len(held)))
    others = (ordinal for ordinal in count() if ordinal not in held)
    return sorted((*new, *former, *leaving, *islice(others, fresh)))


def _kept(
    staying: Sequence[Pod], old: Sequence[Pod], newest: int, oldest: int, limit: int
) -> tuple[list[int], list[int]]:
    """Return the ordinals that stay, of the present spec (`newest` at most) and of older ones (`oldest` at most)."""
    former, serving = ordinals_of(old), ordinals_of(pod for pod in staying if pod.ready)
    age = {pod.claim.ordinal: pod.claim.bound_at for pod in old if pod.claim is not None}
    kept: tuple[list[int], list[int]] = ([], [])
    rank = sorted(
        ordinals_of(staying), key=lambda one: (one not in serving, one in former, age.get(one, 0.0), one)
    )
    for one in rank:
        side, most = (kept[1], oldest) if one in former else (kept[0], newest)
        if len(side) < most and len(kept[0]) + len(kept[1]) < limit:
            side.append(one)
    return kept


def most_of_present(workload: Workload, pods: Sequence[Pod]) -> int:
    """Return how many replicas of the present spec there may be for now."""
    held = len(ordinals_of(held_back(workload, pods)))
    if not held:
        return workload.replicas
    surge = workload.surge
    return min(workload.replicas, max(surge, workload.replicas + surge - held))


def held_back(workload: Workload, pods: Sequence[Pod]) -> list[Pod]:
    """Return the pods of an older spec that a canary leaves as they are: those from before the first of the present one.

    One that was bound later is what is left of a canary that was taken back.
    """
    old = outdated(workload, pods) if workload.canary else []
    if not old:
        return []
    hashes = {pod.spec_hash for pod in old}
    first = min(
        (p.claim.bound_at for p in pods if p.claim is not None and p.spec_hash not in hashes), default=inf
    )
    return [pod for pod in old if pod.claim is not None and pod.claim.bound_at <= first]


def outdated(workload: Workload, pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods that were built from an older spec; one that does not say from which is taken for a new one."""
    return [pod for pod in pods if pod.spec_hash and pod.spec_hash != workload.template_hash]


def missing(workload: Workload, pods: tuple[Pod, ...]) -> tuple[tuple[int, ...], tuple[Pod, ...]]:
    """Return (wanted ordinals without any pod, pods that have to be gone before their wanted replica is placed).

    Such pods are on their way out and keep a name until then. A replica of several pods is placed as a whole: where a
    part of it is missing, the rest is in the way of the next attempt too.
    """
    if not pods:
        return tuple(range(workload.replicas)), ()
    if workload.members > 1:
        return _missing_gangs(workload, pods)
    by_ordinal = {pod.claim.ordinal: pod for pod in pods if pod.claim is not None}
    wanted = wanted_ordinals(workload, pods)
    free = tuple(ordinal for ordinal in wanted if ordinal not in by_ordinal)
    blocked = tuple(by_ordinal[o] for o in wanted if o in by_ordinal and not _stays(by_ordinal[o]))
    return free, blocked


def _missing_gangs(workload: Workload, pods: tuple[Pod, ...]) -> tuple[tuple[int, ...], tuple[Pod, ...]]:
    by_ordinal: dict[int, list[Pod]] = {}
    for pod in pods:
        if pod.claim is not None:
            by_ordinal.setdefault(pod.claim.ordinal, []).append(pod)
    free, blocked = [], []
    for ordinal in range(workload.replicas):
        mates = by_ordinal.get(ordinal)
        if mates is None:
            free.append(ordinal)
        elif not complete(workload, mates):
            blocked += mates
    return tuple(free), tuple(blocked)


def complete(workload: Workload, mates: Sequence[Pod]) -> bool:
    """Return whether pods of one ordinal are all members of a replica, none of them on its way out."""
    members = {pod.claim.member for pod in mates if pod.claim is not None and _stays(pod)}
    return len(members) == len(mates) == workload.members and max(members) < workload.members


def lacking(workload: Workload, free: int, blocked: tuple[Pod, ...]) -> int:
    """Return how many replicas are missing of those that start together; `free` and `blocked` are of :func:`missing`."""
    if workload.together <= 1:
        return 0
    there = workload.replicas - free - len(ordinals_of(blocked))
    return max(0, min(workload.together, workload.replicas) - there)


def ordinals_of(pods: Iterable[Pod]) -> set[int]:
    """Return the ordinals of the replicas that pods belong to."""
    return {pod.claim.ordinal for pod in pods if pod.claim is not None}


def settled(workload: Workload, pods: tuple[Pod, ...]) -> bool:
    """Return whether nothing has to be placed for a workload."""
    if workload.suspended or workload.finished or workload.deleting:
        return True
    if len(pods) < workload.replicas * workload.members:
        return False
    free, blocked = missing(workload, pods)
    return not free and not blocked


def _stays(pod: Pod) -> bool:
    return pod.phase is PodPhase.BOUND or pod.phase is PodPhase.ASSUMED


class View:
    """A working copy of a snapshot's nodes with reversible changes."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._nodes = dict(snapshot.nodes)
        self._log: list[NodeState] = []  # former values, oldest first
        self._changed: list[str] = []

    @property
    def nodes(self) -> Mapping[str, NodeState]:
        """The current state of every node."""
        return self._nodes

    @property
    def changed(self) -> list[str]:
        """Names of nodes in the order they were changed (undone changes included); grows only."""
        return self._changed

    def place(self, claim: Claim) -> None:
        """Count `claim` as assumed on its node."""
        self._set(self._nodes[claim.node].with_pod(assumed_pod(claim)))

    def put(self, pod: Pod) -> None:
        """Count a pod on its node, for example one that was removed before."""
        self._set(self._nodes[pod.node].with_pod(pod))

    def remove(self, node: str, pod: PodKey) -> None:
        """Stop counting a pod of a node."""
        self._set(self._nodes[node].without_pod(pod))

    def vacate(self, node: str, pod: PodKey) -> None:
        """Stop counting a pod and what it was observed to use: the node as it will be once the pod has gone."""
        self._set(self._nodes[node].vacated(pod))

    def lower(self, node: str, pod: PodKey, asked_bytes: int, *, lent: bool = False) -> None:
        """Count a pod as it will be once it has come down to `asked_bytes` of each of its devices."""
        self._set(self._nodes[node].lowered(pod, asked_bytes, lent=lent))

    def sleep(self, node: str, pod: PodKey, sleeping: Sleeping) -> None:
        """Count a pod as it will be once it sleeps."""
        self._set(self._nodes[node].slept(pod, sleeping))

    def adopt(self, state: NodeState) -> None:
        """Take a node's state as another view has it."""
        self._set(state)

    def checkpoint(self) -> int:
        """Return a mark to roll back to."""
        return len(self._log)

    def rollback(self, mark: int) -> None:
        """Undo everything since the mark."""
        while len(self._log) > mark:
            former = self._log.pop()
            self._nodes[former.name] = former
            self._changed.append(former.name)

    def _set(self, state: NodeState) -> None:
        self._log.append(self._nodes[state.name])
        self._nodes[state.name] = state
        self._changed.append(state.name)


def assumed_pod(claim: Claim) -> Pod:
    """Return the pod that stands for a claim until the watch shows the real one."""
    return Pod(
        key=claim.pod,
        uid="",
        node=claim.node,
        phase=PodPhase.ASSUMED,
        claim=claim,
        cpu_milli=claim.cpu_milli,
        memory_bytes=claim.memory_bytes,
        gpus=0,
    )

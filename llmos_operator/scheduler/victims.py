"""Who may be displaced, and what it would cost.

A pod may stand here once for each step its disruption order allows: to come down (`shrinking`), to do so at a narrower
format (`narrowing`), to go because its workload does with fewer replicas (`Victim.fewer`), to sleep (`sleeping`), and to
end. A pod of a replica of several pods ends with all of them (`VictimIndex.company`). The cost of ending one is the device
time that is lost, in milliseconds of one device:


    part of a device x (work since the last checkpoint + reload + streams)      reload = measured load time, else bytes / rate
    streams = requests in progress x `stream_seconds` + KV cache in use / rate

and for a replica whose workload falls below its minimum also `outage_seconds`, because somebody is then not served.
Training and batch work loses what it did since its last checkpoint (since its start without one); serving loses no
work, but everything must be loaded again. What serves and idles loses that only if somebody asks while it is away, so all
of it counts times

    A / (A + seconds without a request)                              A: `AWAY_SECONDS`

which is how likely a pause that has lasted so long ends within A where long pauses are as common as short ones (the chance
that a pause is longer than x falls as 1 / x).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias

from llmos_operator.scheduler.narrowing import may_narrow, narrow_cost, narrowed
from llmos_operator.scheduler.shrinking import may_do_with_fewer, may_shrink, shrink_cost, shrunk_bytes
from llmos_operator.scheduler.sleeping import HOT, asleep_as, may_be_put_to_sleep, sleep_cost
from llmos_operator.state.labels import matches
from llmos_operator.state.types import FULL_MILLI, DisruptionStep, PodPhase, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, DisruptionBudget, Pod, Profile, Sleeping, Workload

_MILLISECONDS = 1000
AWAY_SECONDS: Final = 60.0  # about as long as a displaced replica serves nobody
NARROWER, FEWER, ASLEEP, ENDS = 1, 2, 3, 4  # depths of a displacement; 0: its KV cache comes down
Replica: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Victim:
    """A pod that may be displaced by something of higher standing, and how: it comes down to `asked_bytes`, sleeps, or ends."""

    pod: Pod
    claim: Claim
    priority: int
    cost: int  # while its workload keeps its minimum
    spare: int  # replicas its workload can lose before an outage
    budgets: tuple[str, ...]  # disruption budgets that cover it
    tied: bool = False  # others may have to go with it: see `VictimIndex.company`
    asked_bytes: int = 0  # of each device that it would keep; 0: it does not come down
    asked_format: str = ""  # narrower than its own, that it would serve at with that
    sleeping: Sleeping | None = None  # as what it would sleep; None: it does not
    fewer: bool = False  # its workload does without it from then on, and has still its minimum
    idle_seconds: float = 0.0  # without a request; `cost` allows for it, an outage has to
    beyond: int = 0  # how far its queue is beyond its nominal share, in thousandths of that share

    @property
    def ends(self) -> bool:
        """Whether its pod would end."""
        return not self.asked_bytes and self.sleeping is None

    @property
    def depth(self) -> int:
        """How much is asked of it: 0 to come down, NARROWER at another format, FEWER to go for good, ASLEEP to sleep, ENDS to end."""
        if self.fewer:
            return FEWER
        if self.asked_format:
            return NARROWER
        return ENDS if self.ends else ASLEEP if self.sleeping is not None else 0

    @property
    def grade(self) -> int:
        """How harsh that is, as a depth: who borrows goes no later than replicas others can do without."""
        return FEWER if self.ends and self.claim.lender else self.depth

    @property
    def left_bytes(self) -> int:
        """What it would keep of each device, as long as it does not end."""
        return self.sleeping.bytes_per_device if self.sleeping is not None else self.asked_bytes

    @property
    def given_bytes(self) -> int:
        """At most so much of each device is free for others when it does not end; what it has lent it gives for good."""
        held = self.claim.bytes_per_device if self.asked_bytes and self.claim.lent else self.claim.held_bytes
        return held - (self.left_bytes or held)

    @property
    def key(self) -> tuple[str, int]:
        """What tells the entries of one pod apart: the pod, and how much is asked of it."""
        return (self.pod.key, self.depth)

    @property
    def replica(self) -> Replica:
        """The replica it is (a member of): workload UID and ordinal."""
        return (self.claim.workload_uid, self.claim.ordinal)

    @property
    def order(self) -> tuple[int, int, str]:
        """Cheapest first; of equals, work of the queue that is furthest beyond its share."""
        return (self.cost, -self.beyond, self.pod.key)


class Appraiser:
    """What each pod of one snapshot is as a victim: a value of the pod, its workload, and what is looked up for both."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: float) -> None:
        self._policy = policy
        self._now = now
        self._profiles = {(p.uri, p.revision): p for p in snapshot.profiles.values()}
        self._reload: dict[tuple[str, str, str, bool], float | None] = {}
        self._nodes = snapshot.nodes
        self._workloads = {w.uid: w for w in snapshot.workloads.values()}
        self._busy = snapshot.busy
        self._budgets_in: dict[str, list[DisruptionBudget]] = defaultdict(list)
        for budget in snapshot.budgets.values():
            self._budgets_in[budget.namespace].append(budget)

    def workload(self, uid: str) -> Workload | None:
        """Return the workload of a UID."""
        return self._workloads.get(uid)

    @cached_property
    def copies(self) -> frozenset[str]:
        """The models of which some node has a copy; of no account, and empty, where no model was ever measured."""
        if not self._profiles:
            return frozenset()
        return frozenset().union(
            *(state.gpu.models for state in self._nodes.values() if state.gpu is not None)
        )

    def is_timeless(self, pod: Pod, found: Iterable[Victim]) -> bool:
        """Return whether no clock, unless it goes back, makes other victims of a pod than those `found`.

        So it is of a replica that serves and works, beyond its least runtime.
        """
        claim = pod.claim
        if claim is None or not _may_go(pod):
            return True
        workload = self._workloads.get(claim.workload_uid)
        serves = workload is None or (workload.kind is WorkloadKind.INFERENCE and workload.idle_since is None)
        return (
            serves
            and self._now >= pod.firm_until
            and self._now - (pod.started_at or claim.bound_at) >= claim.min_runtime
            and all(victim.sleeping is None for victim in found)
        )

    def victims(self, pod: Pod, running: int) -> list[Victim]:
        """Return a pod as a victim of each step that may be taken; `running` replicas of its workload are awake."""
        claim = pod.claim
        if claim is None or not _may_go(pod):
            return []
        workload = self._workloads.get(claim.workload_uid)
        loss = self._cost(claim, pod, workload)
        ending = self._ending(pod, claim, workload, running, loss)
        found = [
            self._shrinking(pod, claim, workload, loss),
            self._narrowing(pod, claim, workload, loss),
            self._fewer(workload, ending, running),
            self._sleeping(pod, claim, workload, ending, loss),
            ending if workload is None or DisruptionStep.EVICT in workload.disruption_order else None,
        ]
        return [one for one in found if one is not None]

    def _shrinking(self, pod: Pod, claim: Claim, workload: Workload | None, loss: int) -> Victim | None:
        """Return a pod as one that could come down: nobody is disrupted, so neither budgets nor the least runtime are asked."""
        if workload is None or not may_shrink(pod, claim, workload, self._policy, self._now):
            return None
        profile = self._profiles.get((workload.model.uri, workload.model.revision))
        left = claim.asked_bytes if claim.lent else shrunk_bytes(claim, workload, profile, self._policy)
        if left is None:
            return None
        cost = shrink_cost(claim, left, self._policy, loss)
        idle = idle_seconds(workload, self._now)
        cost = weighed(cost, idle)
        return Victim(pod, claim, claim.priority, cost, 0, (), asked_bytes=left, idle_seconds=idle)

    def _narrowing(self, pod: Pod, claim: Claim, workload: Workload | None, loss: int) -> Victim | None:
        """Return a pod as one that could serve at a narrower format: nobody is disrupted, as above."""
        if workload is None or not may_narrow(pod, claim, workload, self._policy, self._now):
            return None
        profile = self._profiles.get((workload.model.uri, workload.model.revision))
        found = narrowed(claim, workload, profile, self._policy)
        if found is None:
            return None
        name, left = found
        load = _measured_load(profile, name)
        seconds = load if load is not None else left / self._policy.load_bytes_per_second
        cost = narrow_cost(claim, name, seconds, profile, loss)
        idle = idle_seconds(workload, self._now)
        cost = weighed(cost, idle)
        return Victim(
            pod, claim, claim.priority, cost, 0, (), asked_bytes=left, asked_format=name, idle_seconds=idle
        )

    def _fewer(self, workload: Workload | None, ending: Victim | None, running: int) -> Victim | None:
        """Return a pod as one its workload can do without: it ends, so all that protects it from ending protects it."""
        if workload is None or ending is None or not may_do_with_fewer(workload, self._policy):
            return None
        spare = running - max(1, workload.min_replicas)
        return replace(ending, spare=spare, fewer=True) if spare > 0 and ending.pod.ready else None

    def _sleeping(
        self, pod: Pod, claim: Claim, workload: Workload | None, ending: Victim | None, loss: int
    ) -> Victim | None:
        """Return a pod as one that could sleep: it serves nobody then, so all that protects it from ending protects it."""
        if (
            workload is None
            or ending is None
            or not may_be_put_to_sleep(pod, claim, workload, self._policy, self._now)
        ):
            return None
        profile = self._profiles.get((workload.model.uri, workload.model.revision))
        sleeping = asleep_as(claim, workload, profile, self._policy, self._now)
        if sleeping is None:
            return None
        cost = sleep_cost(claim, sleeping, profile, self._policy, loss, self._stream_seconds(pod))
        return replace(ending, cost=weighed(cost, ending.idle_seconds), sleeping=sleeping)

    def _ending(
        self, pod: Pod, claim: Claim, workload: Workload | None, running: int, loss: int
    ) -> Victim | None:
        """Return a pod as one that could end, whatever its disruption order says; None if it is protected from that."""
        if self._now - (pod.started_at or claim.bound_at) < claim.min_runtime:
            return None
        covering = self._covering(pod)
        if any(budget.allowed <= 0 for budget in covering):
            return None
        budgets = tuple(budget.key for budget in covering)
        spare = max(0, running - workload.min_replicas) if workload is not None else 0
        idle = idle_seconds(workload, self._now)
        cost = weighed(loss, idle)
        tied = workload is not None and (workload.members > 1 or workload.together > 1)
        return Victim(pod, claim, claim.priority, cost, spare, budgets, tied, idle_seconds=idle)

    def _covering(self, pod: Pod) -> list[DisruptionBudget]:
        budgets = self._budgets_in.get(pod.namespace, ()) if self._budgets_in else ()
        return [b for b in budgets if b.selector is not None and matches(b.selector, pod.labels)]

    def _cost(self, claim: Claim, pod: Pod, workload: Workload | None) -> int:
        """Return what ending a pod loses if it is asked for at once."""
        seconds = self.reload_seconds(claim, workload)
        if workload is not None and workload.kind is not WorkloadKind.INFERENCE:
            seconds += unsaved_seconds(workload, self._now, pod.started_at or claim.bound_at)
        seconds += self._stream_seconds(pod)
        parts = claim.gpu_milli or FULL_MILLI
        return max(1, round(seconds * _MILLISECONDS) * parts // FULL_MILLI)

    def _stream_seconds(self, pod: Pod) -> float:
        """Return what is lost of the requests a replica is in the middle of: they are answered anew, from cold."""
        busy = self._busy.get(pod.key)
        if busy is None:
            return 0.0
        warm = busy.warm_bytes / self._policy.load_bytes_per_second
        return busy.streams * self._policy.preemption.stream_seconds + warm

    def reload_seconds(self, claim: Claim, workload: Workload | None) -> float:
        """Return how long it would take to load what a claim holds again."""
        measured = None
        if workload is not None and self._profiles:
            model = workload.model
            # A model that is meant to be kept on nodes and is on none of them would come from its source.
            key = (model.uri, model.revision, claim.format, model.kept and model.key not in self.copies)
            if key not in self._reload:
                self._reload[key] = _measured_load(
                    self._profiles.get(key[:2]), claim.format, downloads=key[3]
                )
            measured = self._reload[key]
        if measured is not None:
            return measured
        held = claim.bytes_per_device * len(claim.devices) or claim.memory_bytes
        return held / self._policy.load_bytes_per_second


def _may_go(pod: Pod) -> bool:
    return pod.phase is PodPhase.BOUND and bool(pod.uid)


def idle_seconds(workload: Workload | None, now: float) -> float:
    """Return for how long nobody has asked anything of what serves; 0 for what works, or may work, and for all other work."""
    if workload is None or workload.kind is not WorkloadKind.INFERENCE or workload.idle_since is None:
        return 0.0
    return max(0.0, now - workload.idle_since)


def weighed(cost: int, idle: float) -> int:
    """Return what a loss counts that strikes only if somebody asks, after `idle` seconds in which nobody did."""
    return max(1, round(cost * AWAY_SECONDS / (AWAY_SECONDS + idle))) if idle else cost


def unsaved_seconds(workload: Workload, now: float, began: float) -> float:
    """Return for how many seconds a pod that ``began`` then has worked since its last checkpoint.

    When that was is what the run itself says; until it has said so, it is the time between checkpoints at most.
    """
    ran = max(0.0, now - began)
    if workload.saved_at is not None and workload.saved_at >= began:
        return min(ran, max(0.0, now - workload.saved_at))
    return min(ran, workload.checkpoint_seconds) if workload.checkpoint_seconds else ran


def _measured_load(profile: Profile | None, fmt: str, *, downloads: bool = False) -> float | None:
    """Return the quickest measured load in seconds: with a download those with one, else warm ones, before others."""
    if profile is None:
        return None
    times = [t for t in profile.load_times if t.format == fmt and t.path != HOT]
    alike = [t for t in times if t.path == ("Cold" if downloads else "Warm")] or times
    return min(t.milliseconds for t in alike) / _MILLISECONDS if alike else None


def total_cost(victims: Iterable[Victim], outage_seconds: float, gone: Collection[Replica] = ()) -> int:
    """Return the cost of displacing all of them together, outages included; `gone` are replicas displaced before."""
    cost = 0
    lost = set(gone)
    count: dict[str, int] = {}
    for uid, _ in lost:
        count[uid] = count.get(uid, 0) + 1
    for victim in victims:
        cost += victim.cost
        replica = victim.replica
        if victim.asked_bytes or replica in lost:
            continue
        lost.add(replica)
        count[replica[0]] = count.get(replica[0], 0) + 1
        if count[replica[0]] > victim.spare:
            cost += weighed(round(outage_seconds * _MILLISECONDS), victim.idle_seconds)
    return cost


def least_outage(victim: Victim, outage_seconds: float, gone: Collection[Replica]) -> int:
    """Return what the outage costs at least that displacing a victim means, whoever else goes; see :func:`total_cost`."""
    if victim.asked_bytes or victim.spare or victim.replica in gone:
        return 0
    return weighed(round(outage_seconds * _MILLISECONDS), victim.idle_seconds)


def running(pods: Iterable[Pod]) -> int:
    """Return how many replicas have a pod that runs, and is awake."""
    claims = [pod.claim for pod in pods if pod.phase is PodPhase.BOUND]
    return len({claim.ordinal for claim in claims if claim is not None and claim.sleeping is None})

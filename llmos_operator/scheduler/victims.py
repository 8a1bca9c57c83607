"""Who may be displaced, and what it would cost.

The cost of a victim is the device time that is lost, in milliseconds of one device:

    part of a device x (work since the last checkpoint + reload)      reload = measured load time, else bytes / rate

and for a replica whose workload falls below its minimum also `outage_seconds`, because somebody is then not served.
Training and batch work loses what it did since its last checkpoint (since its start without one); serving loses no
work, but everything must be loaded again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.state.labels import matches
from llmos_operator.state.types import FULL_MILLI, DisruptionStep, PodPhase, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Pod, Profile, Workload

_MILLISECONDS = 1000


@dataclass(frozen=True, slots=True)
class Victim:
    """A pod that may be displaced by something of higher standing."""

    pod: Pod
    claim: Claim
    priority: int
    cost: int  # while its workload keeps its minimum
    spare: int  # replicas its workload can lose before an outage
    budgets: tuple[str, ...]  # disruption budgets that cover it

    @property
    def order(self) -> tuple[int, int, str]:
        """Cheapest first, inside the lowest priority."""
        return (self.priority, self.cost, self.pod.key)


class VictimIndex:
    """Everybody who may be displaced at all in one snapshot, by node."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: float) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._now = now
        self._profiles: dict[str, Profile] = {p.uri + "@" + p.revision: p for p in snapshot.profiles.values()}
        self._workloads = {w.uid: w for w in snapshot.workloads.values()}
        self.budgets = {key: budget.allowed for key, budget in snapshot.budgets.items()}  # left in this plan
        self.by_node: dict[str, list[Victim]] = defaultdict(list)
        for pods in snapshot.pods_of.values():
            running = sum(pod.phase is PodPhase.BOUND for pod in pods)
            for pod in pods:
                victim = self._victim(pod, running)
                if victim is not None:
                    self.by_node[pod.node].append(victim)
        for victims in self.by_node.values():
            victims.sort(key=lambda v: v.order)

    def _victim(self, pod: Pod, running: int) -> Victim | None:
        claim = pod.claim
        if claim is None or pod.phase is not PodPhase.BOUND or not pod.uid:
            return None
        if self._now - (pod.started_at or claim.bound_at) < claim.min_runtime:
            return None
        workload = self._workloads.get(claim.workload_uid)
        if workload is not None and DisruptionStep.EVICT not in workload.disruption_order:
            return None
        budgets = self._covering(pod)
        if any(self.budgets[key] <= 0 for key in budgets):
            return None
        spare = max(0, running - workload.min_replicas) if workload is not None else 0
        return Victim(pod, claim, claim.priority, self._cost(claim, pod, workload), spare, budgets)

    def _covering(self, pod: Pod) -> tuple[str, ...]:
        return tuple(
            key
            for key, budget in self._snapshot.budgets.items()
            if budget.namespace == pod.namespace
            and budget.selector is not None
            and matches(budget.selector, pod.labels)
        )

    def _cost(self, claim: Claim, pod: Pod, workload: Workload | None) -> int:
        seconds = self._reload_seconds(claim, workload)
        if workload is not None and workload.kind is not WorkloadKind.INFERENCE:
            ran = max(0.0, self._now - (pod.started_at or claim.bound_at))
            seconds += min(ran, workload.checkpoint_seconds) if workload.checkpoint_seconds else ran
        parts = claim.gpu_milli or FULL_MILLI
        return max(1, round(seconds * _MILLISECONDS) * parts // FULL_MILLI)

    def _reload_seconds(self, claim: Claim, workload: Workload | None) -> float:
        profile = (
            self._profiles.get(f"{workload.model.uri}@{workload.model.revision}")
            if workload is not None
            else None
        )
        if profile is not None:
            known = [
                t.milliseconds for t in profile.load_times if t.format == claim.format and t.path == "Warm"
            ]
            known = known or [t.milliseconds for t in profile.load_times if t.format == claim.format]
            if known:
                return min(known) / _MILLISECONDS
        held = claim.bytes_per_device * len(claim.devices) or claim.memory_bytes
        return held / self._policy.load_bytes_per_second


def total_cost(victims: list[Victim], outage_seconds: float) -> int:
    """Return the cost of displacing all of them together, outages included."""
    cost = 0
    lost: dict[str, int] = defaultdict(int)
    for victim in victims:
        cost += victim.cost
        lost[victim.claim.workload_uid] += 1
        if lost[victim.claim.workload_uid] > victim.spare:
            cost += round(outage_seconds * _MILLISECONDS)
    return cost

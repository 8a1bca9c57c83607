"""Work that comes, runs and goes in virtual time, with the real plan at every event."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmos_operator.scheduler.cycle import plan
from llmos_operator.state.types import Pod
from tests.support.builders import NOW

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.types import Workload
    from tests.support.builders import ClusterBuilder

_MOST_PLANS = 8  # at one moment: victims leave, claimants bind


@dataclass
class Timeline:
    """A cluster as time goes by. Pods end when `lasts` says (seconds after their binding); others run for ever."""

    cluster: ClusterBuilder
    policy: Policy
    now: float = NOW
    lasts: dict[str, float] = field(default_factory=dict)  # by workload key
    started: dict[str, float] = field(default_factory=dict)  # when a workload was last bound, by key
    evicted: list[str] = field(default_factory=list)  # workload keys

    def submit(self, workload: Workload, lasts: float | None = None) -> None:
        """Let a workload come."""
        self.cluster.add(replace(workload, created_at=self.now))
        if lasts is not None:
            self.lasts[workload.key] = lasts

    def ends(self) -> list[tuple[float, Pod]]:
        """Return the pods that will end, soonest first."""
        pods = [pod for state in self.cluster.snapshot().nodes.values() for pod in state.pods.values()]
        claims = [
            (pod, pod.claim) for pod in pods if pod.claim is not None and pod.claim.workload in self.lasts
        ]
        found = [(claim.bound_at + self.lasts[claim.workload], pod) for pod, claim in claims]
        return sorted(found, key=lambda one: (one[0], one[1].key))

    def advance(self, until: float) -> list[Plan]:
        """Let time go by to a moment; plan after everything that ends on the way. Returns the last plan of each moment."""
        plans = []
        while (due := [one for one in self.ends() if one[0] <= until]) and due:
            self.now = max(self.now, due[0][0])
            for _, pod in (one for one in due if one[0] <= self.now):
                self._finish(pod)
            plans.append(self.decide())
        self.now = until
        return [*plans, self.decide()]

    def decide(self) -> Plan:
        """Plan until nothing more happens at this moment; nodes report as they always do."""
        for name in self.cluster.snapshot().nodes:
            self.cluster.store.observe(name, (), self.now)
        made = self._carry_out()
        for _ in range(_MOST_PLANS):
            if not made.actions:
                return made
            made = self._carry_out()
        raise AssertionError(f"no rest at {self.now}: {made.actions}")

    def _carry_out(self) -> Plan:
        store = self.cluster.store
        made = plan(self.cluster.snapshot(), self.policy, self.now)
        for eviction in made.evictions:
            store.assume_evicted(eviction.pod, self.now, eviction.preemptor)
            if eviction.fewer:
                store.give_up_replica(eviction.victim, eviction.victim_uid, eviction.preemptor, self.now)
            store.delete_pod(eviction.pod, eviction.pod_uid)
            self.evicted.append(eviction.victim)
        for move in made.moves:
            place = move.place(self.now, self.now)
            store.assume_evicted(move.pod, self.now, move.beneficiary, self.now, place)
            store.delete_pod(move.pod, move.pod_uid)
        for bind in made.binds:
            claim = bind.claim
            store.assume(claim)
            store.apply_pod(
                Pod(
                    claim.pod,
                    f"{claim.pod} at {self.now}",
                    claim.node,
                    claim=claim,
                    cpu_milli=claim.cpu_milli,
                    memory_bytes=claim.memory_bytes,
                    started_at=self.now,
                )
            )
            self.started[claim.workload] = self.now
        return made

    def _finish(self, pod: Pod) -> None:
        assert pod.claim is not None
        workload = self.cluster.store.workload(pod.claim.workload)
        assert workload is not None
        self.cluster.store.apply_workload(replace(workload, finished=True))
        self.cluster.store.delete_pod(pod.key, pod.uid)

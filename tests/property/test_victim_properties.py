"""Victims against an exhaustive oracle: on small clusters no cheaper set of pods exists on any node."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.cycle import prepare
from llmos_operator.scheduler.placement import pick
from llmos_operator.scheduler.policy import Policy, PreemptionLimits
from llmos_operator.scheduler.preemption import charge_of
from llmos_operator.scheduler.queueing import Pending
from llmos_operator.scheduler.victims import total_cost
from tests.support.builders import NOW, ClusterBuilder
from tests.support.strategies import PRIORITIES, clusters, workloads

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.types import Workload

POLICY = Policy(preemption=PreemptionLimits(states=1 << 20, nodes=1 << 10))


def claimant(workload: Workload) -> Pending:
    return Pending(workload, workload.queue, PRIORITIES[workload.priority_class], 1.0, (0,))


def fits_on(attempts: Attempts, pending: Pending, name: str) -> bool:
    later = attempts.worlds.later
    for _, request in attempts.shape(pending.workload).options:
        displacing = replace(request, constraints=replace(request.constraints, displacing=True))
        acceptable = attempts.feasibility.acceptable(displacing)
        row = attempts.scene.table.row_of[name]
        if not acceptable.nodes[row]:
            continue
        devices = pick(later.node(name), request, acceptable.devices[row], POLICY.overuse_percent)
        if devices is not None and later.tree.fits(pending.queue, charge_of(request, devices)):
            return True
    return False


def oracle(attempts: Attempts, pending: Pending) -> tuple[int, int] | None:
    """Return (rank, cost) of the best set of victims by trying every subset of every node's pods."""
    preemption = attempts.preemption
    rights, ranks = preemption._rights(pending)
    best: tuple[int, int] | None = None
    for name in attempts.scene.table.names:
        row = attempts.scene.table.row_of[name]
        pool = preemption._on(row, rights, pending)
        for count in range(1, len(pool) + 1):
            for chosen in combinations(pool, count):
                key = (
                    max(int(ranks[i]) for i, _ in chosen),
                    total_cost([v for _, v in chosen], POLICY.preemption.outage_seconds),
                )
                if (best is None or key < best) and works(attempts, pending, name, [v for _, v in chosen]):
                    best = key
    return best


def works(attempts: Attempts, pending: Pending, name: str, chosen: list[Victim]) -> bool:
    later, spent = attempts.worlds.later, dict(attempts.preemption.index.budgets)
    mark = later.checkpoint()
    allowed = True
    for victim in sorted(chosen, key=lambda v: v.priority):
        for key in victim.budgets:
            spent[key] -= 1
            allowed = allowed and spent[key] >= 0
        allowed = allowed and attempts.preemption.right(pending, victim) is not None
        later.displace(victim)
    result = allowed and fits_on(attempts, pending, name)
    later.rollback(mark)
    return result


@given(clusters(pending=0, running=10, with_quota=False), workloads("asked"))
def test_the_cheapest_set_of_victims_is_found(cluster: ClusterBuilder, asked: Workload) -> None:
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    pending = claimant(asked)
    assume(not any(fits_on(attempts, pending, name) for name in attempts.scene.table.names))
    found = attempts.preemption.find(pending, attempts.shape(asked).options)
    expected = oracle(attempts, pending)
    got = (found.rank, found.cost) if found is not None else None
    assert got == expected


@given(clusters(pending=0, running=10), workloads("asked"))
def test_under_quotas_a_proposal_works_and_none_of_its_victims_can_be_spared(
    cluster: ClusterBuilder, asked: Workload
) -> None:
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    pending = claimant(asked)
    assume(not any(fits_on(attempts, pending, name) for name in attempts.scene.table.names))
    found = attempts.preemption.find(pending, attempts.shape(asked).options)
    if found is None:
        return
    assert works(attempts, pending, found.node, list(found.victims))
    for spared in found.victims:
        rest = [v for v in found.victims if v is not spared]
        assert not works(attempts, pending, found.node, rest), f"{spared.pod.key} did not have to go"


@given(clusters(pending=0, running=10, with_quota=False), workloads("asked"), st.integers(2, 3))
def test_a_higher_standing_never_finds_less(cluster: ClusterBuilder, asked: Workload, higher: int) -> None:
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    options = attempts.shape(asked).options
    low = attempts.preemption.find(replace(claimant(asked), priority=higher - 1), options)
    high = attempts.preemption.find(replace(claimant(asked), priority=higher), options)
    if low is not None:
        assert high is not None
        assert (high.rank, high.cost) == (low.rank, low.cost)


@given(clusters(pending=0, running=10), workloads("asked"))
def test_a_search_leaves_no_trace(cluster: ClusterBuilder, asked: Workload) -> None:
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    before = dict(attempts.worlds.later.view.nodes)
    use = {q: attempts.worlds.later.tree.use(q) for q in attempts.snapshot.queues}
    attempts.preemption.find(claimant(asked), attempts.shape(asked).options)
    assert dict(attempts.worlds.later.view.nodes) == before
    assert {q: attempts.worlds.later.tree.use(q) for q in attempts.snapshot.queues} == use

"""What is tried out on a copy of the store is what the store itself would lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.sim.whatif import forecast, unfold
from llmos_operator.state.store import Store
from tests.support.builders import NOW
from tests.support.strategies import clusters

if TYPE_CHECKING:
    from tests.support.builders import ClusterBuilder

POLICY = Policy()


@given(clusters())
def test_a_store_made_of_a_snapshot_has_that_snapshot(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    copied = Store.of(snapshot)
    assert copied.snapshot() == snapshot
    for pod in (pod for state in snapshot.nodes.values() for pod in state.pods.values()):
        copied.delete_pod(pod.key)
        cluster.store.delete_pod(pod.key)
    assert copied.snapshot() == cluster.store.snapshot()
    assert not copied.snapshot().charged


@given(clusters())
def test_a_forecast_begins_with_the_plan_and_changes_nothing_of_the_store_it_was_made_of(
    cluster: ClusterBuilder,
) -> None:
    snapshot = cluster.snapshot()
    told = forecast(Store.of(snapshot), POLICY, NOW, sorted(snapshot.workloads))
    assert told.cycles[0] == plan(snapshot, POLICY, NOW)
    assert cluster.store.snapshot() == snapshot


@given(clusters())
def test_whatever_is_foretold_fits_and_comes_to_rest(cluster: ClusterBuilder) -> None:
    store = Store.of(cluster.snapshot())
    cycles = unfold(store, POLICY, NOW)  # `assume` raises where a claim does not fit
    assert not cycles[-1].actions
    assert cycles == sorted(cycles, key=lambda one: one.now)
    for key in store.snapshot().unsettled:
        assert key in cycles[-1].decisions
    evicted = [evict.pod_uid for cycle in cycles for evict in cycle.evictions]
    assert len(evicted) == len(set(evicted))


@given(clusters())
def test_who_displaces_others_is_foretold_a_place(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    told = forecast(Store.of(snapshot), POLICY, NOW, sorted(snapshot.unsettled))
    claimants = {evict.preemptor for evict in told.cycles[0].evictions if evict.preemptor}
    placed = {one.workload for answer in told.answers for one in answer.placed}
    assert claimants <= placed

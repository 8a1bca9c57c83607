"""From a move to the replica's new place: what is held meanwhile, by whom, and what a leader that comes after sees."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.store import Store
from tests.support.builders import NOW, ClusterBuilder, a_node, a_workload
from tests.support.plans import carry_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.plan import Move, Plan
    from llmos_operator.state.snapshot import Snapshot

POLICY = Policy(require_queue=False)
PRIORITIES = {"low": 1, "mid": 2, "high": 3}


def scattered() -> ClusterBuilder:
    """Two nodes with one of two devices free each, and a claimant that needs two on one node."""
    cluster = ClusterBuilder().with_priorities(**PRIORITIES)
    cluster.add(a_node("n1").with_gpus(2, "A-80G"), a_node("n2").with_gpus(2, "A-80G"))
    cluster.running(a_workload("a").needing("4Gi").priority("mid"), "n1", (0,))
    cluster.running(a_workload("b").needing("40Gi").priority("mid"), "n2", (0,))
    cluster.add(a_workload("two").needing("40Gi").gpus(2).priority("mid").created(3600))
    return cluster


def planned(cluster: ClusterBuilder) -> Plan:
    return plan(cluster.snapshot(), POLICY, NOW)


def begun(cluster: ClusterBuilder) -> Move:
    """Let the eviction of the plan's only move be sent; its pod is still leaving."""
    (move,) = planned(cluster).moves
    place = move.place(NOW, NOW + 30)
    assert cluster.store.assume_evicted(move.pod, NOW + 300, move.beneficiary, NOW + 30, place)
    return move


def after_restart(cluster: ClusterBuilder) -> ClusterBuilder:
    """Return what another leader knows: what is listed, nothing that only this process remembers."""
    made, snapshot = ClusterBuilder().with_priorities(**PRIORITIES), cluster.snapshot()
    for state in snapshot.nodes.values():
        assert state.node is not None
        assert state.gpu is not None
        made.store.apply_node(state.node)
        made.store.apply_gpu_node(state.gpu)
        made.store.observe(state.name, (), NOW)
    for workload in snapshot.workloads.values():
        made.store.apply_workload(workload)
    for pods in snapshot.pods_of.values():
        for pod in pods:
            made.store.apply_pod(pod)
    return made


def binds(made: Plan) -> set[tuple[str, str]]:
    return {(bind.claim.workload.partition("/")[2], bind.claim.node) for bind in made.binds}


LEADERS = pytest.mark.parametrize(
    "leader", [lambda same: same, after_restart], ids=["same leader", "another leader"]
)


@LEADERS
def test_while_the_pod_leaves_nobody_gets_its_target_or_the_room_it_makes(
    leader: Callable[[ClusterBuilder], ClusterBuilder],
) -> None:
    cluster = scattered()
    move = begun(cluster)
    assert move.target.node == "n2"
    cluster.add(a_workload("late").needing("4Gi").priority("mid").created(9000))
    cluster = leader(cluster)
    made = planned(cluster)
    assert not made.binds
    assert not made.moves
    assert not made.evictions
    assert "moves to node n2 so that default/two can start" in made.decisions["default/a"].message
    assert "starts on node n1" in made.decisions["default/two"].message


@LEADERS
def test_when_it_is_gone_both_start_where_the_plan_said(
    leader: Callable[[ClusterBuilder], ClusterBuilder],
) -> None:
    cluster = scattered()
    move = begun(cluster)
    cluster = leader(cluster)
    cluster.store.delete_pod(move.pod, move.pod_uid)
    made = planned(cluster)
    assert binds(made) == {("a", "n2"), ("two", "n1")}
    (moved,) = [bind for bind in made.binds if bind.claim.workload == "default/a"]
    assert moved.claim.devices == move.target.devices
    assert moved.claim.moved_at == NOW
    assert "so that default/two can start" in moved.explanation
    carry_out(cluster, made)
    snapshot = cluster.snapshot()
    assert not snapshot.targets
    assert [pod.key for pod in snapshot.moved] == [move.pod]


def test_a_target_that_is_lost_leaves_an_ordinary_claim_at_the_head() -> None:
    cluster = scattered()
    move = begun(cluster)
    cluster.store.delete_node("n2")
    cluster.store.delete_pod(move.pod, move.pod_uid)
    cluster.add(a_workload("late").needing("4Gi").priority("mid").created(9000))
    made = planned(cluster)
    assert ("a", "n1") in binds(made)


def test_a_place_is_not_kept_for_ever() -> None:
    cluster = scattered()
    move = begun(cluster)
    cluster.store.delete_pod(move.pod, move.pod_uid)
    until = cluster.snapshot().targets[replica(cluster.snapshot(), "a")].until
    cluster.store.advance(until)
    assert cluster.snapshot().targets
    cluster.store.advance(until + 1)
    assert not cluster.snapshot().targets


def test_a_refused_eviction_leaves_everything_as_it_was() -> None:
    cluster = scattered()
    before = cluster.snapshot()
    move = begun(cluster)
    cluster.store.forget_eviction(move.pod)
    after = cluster.snapshot()
    assert after.targets == {}
    assert after.pods_of == before.pods_of
    assert after.unsettled == before.unsettled


def test_a_move_begun_for_one_is_not_taken_up_by_another_eviction() -> None:
    cluster = scattered()
    move = begun(cluster)
    pod = cluster.store.pod(move.pod)
    assert pod is not None
    cluster.store.forget_eviction(move.pod)
    stale = replace(
        pod, phase=pod.phase.BOUND
    )  # as another leader reads it: the target is still written on the pod
    restarted = after_restart(cluster)
    restarted.store.apply_pod(stale)
    restarted.store.assume_evicted(move.pod, NOW + 30, "default/two")
    assert restarted.snapshot().targets == {}


def test_a_store_made_of_a_snapshot_keeps_the_targets() -> None:
    cluster = scattered()
    begun(cluster)
    snapshot = cluster.snapshot()
    assert Store.of(snapshot).snapshot() == snapshot


def test_explain_says_who_would_move_and_why_nobody_does() -> None:
    cluster = scattered()
    found = explain(cluster.snapshot(), POLICY, NOW, "default/two")
    assert [move.target.node for move in found.moves] == ["n2"]
    cluster.add(a_workload("two").needing("40Gi").gpus(2).priority("mid").created(10))
    found = explain(cluster.snapshot(), POLICY, NOW, "default/two")
    assert not found.moves
    (advice,) = [text for text in found.would_help if text.startswith("moving")]
    assert "to node n2 at a loss of 80 s of device time; its waiting is worth 20 s so far" in advice
    off = replace(POLICY, consolidation=replace(POLICY.consolidation, part=0.0))
    found = explain(cluster.snapshot(), off, NOW, "default/two")
    (advice,) = [text for text in found.would_help if text.startswith("moving")]
    assert "0 moves are left of this hour's scheduling.migrationBudget" in advice


def replica(snapshot: Snapshot, name: str) -> tuple[str, int]:
    return (snapshot.workloads[f"default/{name}"].uid, 0)


@pytest.mark.parametrize("percent", [0, 10])
def test_what_a_canary_holds_back_is_not_moved_as_it_would_start_with_the_changed_spec(percent: int) -> None:
    cluster = scattered()
    cluster.add(a_workload("two").needing("40Gi").gpus(2).priority("high").created(3600))
    snapshot = cluster.snapshot()
    for name in ("default/a", "default/b"):
        workload = replace(snapshot.workloads[name], template_hash="new", canary_percent=percent)
        cluster.add(workload)
        for pod in snapshot.pods_of[workload.uid]:
            cluster.store.apply_pod(replace(pod, spec_hash="older"))
    assert bool(planned(cluster).moves) == (not percent)

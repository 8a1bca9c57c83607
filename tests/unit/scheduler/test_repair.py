"""What has to leave a sick device, how, and how many nodes at once."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recording import Recording, dump, load, plan_document, replay
from llmos_operator.scheduler.repair import Repairs, repairs
from llmos_operator.state.breaker import Breaker
from llmos_operator.state.care import NODE, Care, Phase, Treatment
from llmos_operator.telemetry.policy import LOST_REASONS
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu

POLICY = Policy(require_queue=False, lost_reasons=LOST_REASONS)
BREAKER = Breaker()


def a_fleet(count: int, sick: int = 0, reason: str = "FallenOffBus") -> ClusterBuilder:
    """Return nodes of two devices with a replica on the first one of each; the first `sick` of them are broken."""
    nodes = [a_node(f"n{i:03}").with_gpus(2) for i in range(count)]
    for node in nodes[:sick]:
        node.unhealthy(0, reason)
    cluster = a_cluster(*nodes)
    for i in range(count):
        cluster.running(a_workload(f"w{i}"), f"n{i:03}", [0])
    return cluster


def asked(cluster: ClusterBuilder, now: float = NOW) -> Repairs:
    return repairs(cluster.snapshot(), POLICY, now)


@pytest.mark.parametrize(("reason", "lost"), [("FallenOffBus", True), ("DoubleBitEcc", False)])
def test_lost_work_is_ended_and_work_that_still_runs_is_asked_to_leave(reason: str, lost: bool) -> None:
    (evict,) = asked(a_fleet(1, 1, reason)).evictions
    assert (evict.reason, evict.force) == (Reason.GPU_UNHEALTHY, lost)


@pytest.mark.parametrize("sick", [1, 2, 3, 20])
def test_of_twenty_nodes_work_leaves_two_at_most(sick: int) -> None:
    found = asked(a_fleet(20, sick))
    assert len({one.node for one in found.evictions}) == min(sick, 2)
    assert len(found.held) == max(0, sick - 2)
    assert ("2 of 20 nodes" in found.says) == (sick > 2)


def test_nodes_on_which_work_is_lost_go_first() -> None:
    nodes = [
        a_node(f"n{i}").with_gpus(1).unhealthy(0, "DoubleBitEcc" if i < 9 else "GspError") for i in range(10)
    ]
    cluster = a_cluster(*nodes)
    for i in range(10):
        cluster.running(a_workload(f"w{i}"), f"n{i}", [0])
    assert [one.node for one in asked(cluster).evictions] == ["n9"]


def test_what_was_acted_on_counts_for_the_window_and_then_no_more() -> None:
    cluster = a_fleet(20, 3)
    assert cluster.store.disturb("n010", NOW - 300, BREAKER)
    assert [one.node for one in asked(cluster).evictions] == ["n000"]
    later = NOW - 300 + BREAKER.window + BREAKER.renew
    assert len(asked(cluster, later).evictions) == 2


def test_a_node_that_is_acted_on_already_costs_nothing_more() -> None:
    cluster = a_fleet(10, 1)
    cluster.store.disturb("n000", NOW - 5, BREAKER)
    assert len(asked(cluster).evictions) == 1


def test_pods_of_nodes_that_were_deleted_are_cleared_whatever_the_breaker_says() -> None:
    cluster = a_fleet(20)
    for i in range(10):
        cluster.store.delete_node(f"n{i:03}")
    found = asked(cluster)
    assert len(found.evictions) == 10
    assert {one.reason for one in found.evictions} == {Reason.NODE_LOST}
    assert found.held == {}


def test_agents_that_report_no_devices_any_more_do_not_empty_the_fleet() -> None:
    cluster = a_fleet(20)
    for i in range(20):
        state = cluster.store.node(f"n{i:03}")
        assert state is not None
        assert state.gpu is not None
        cluster.store.apply_gpu_node(replace(state.gpu, devices=()))
    assert len({one.node for one in asked(cluster).evictions}) == 2


def test_a_node_that_is_drained_loses_all_it_runs_and_takes_nothing_new() -> None:
    cluster = a_fleet(1)
    cluster.running(a_workload("beside"), "n000", [1])
    cluster.running(a_workload("cpu").gpus(0), "n000", [])
    cluster.store.set_care("n000", Care(NOW, treatments=(a_treatment(NODE),)))
    cluster.add(a_workload("new").needing("1Gi").shared())
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert sorted(one.victim for one in made.evictions) == ["default/beside", "default/cpu", "default/w0"]
    assert not any(one.force for one in made.evictions)
    assert "is drained after FallenOffBus" in made.evictions[0].explanation
    assert made.binds == ()


@pytest.mark.parametrize("phase", list(Phase))
def test_a_device_takes_new_work_only_when_it_is_released(phase: Phase) -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.store.set_care("n1", Care(treatments=(a_treatment(gpu("n1", 0), phase),)))
    cluster.add(a_workload("new"))
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert bool(made.binds) == (phase is Phase.RELEASED)
    if phase is not Phase.RELEASED:
        assert "quarantined" in str(made.decisions["default/new"])


def test_what_runs_on_a_device_on_probation_is_left_alone() -> None:
    cluster = a_fleet(1)
    cluster.store.set_care("n000", Care(treatments=(a_treatment(gpu("n000", 0), Phase.PROBATION),)))
    assert asked(cluster).evictions == ()


def test_a_recorded_cycle_remembers_the_breaker() -> None:
    cluster = a_fleet(20, 5)
    cluster.store.disturb("n010", NOW - 300, BREAKER)
    snapshot = cluster.snapshot()
    made = plan(snapshot, POLICY, NOW)
    again = load(dump(Recording(snapshot, POLICY, NOW, plan=plan_document(made)), "test"))
    assert plan_document(replay(again)) == again.plan
    assert again.snapshot.disturbed == {"n010": NOW - 300}


@pytest.mark.parametrize("seed", range(40))
def test_in_no_window_more_than_the_share_is_acted_on(seed: int) -> None:
    """Nodes fall ill and recover at random, pods leave and come back; the clock jumps a little now and then."""
    rng = random.Random(seed)
    count = rng.randint(1, 40)
    cluster = a_fleet(count)
    share_sick, now = rng.uniform(0.05, 1.0), NOW
    acted: list[tuple[float, str]] = []
    for _ in range(80):
        now += rng.choice([1.0, 5.0, 30.0, 120.0])
        for i in range(count):
            if rng.random() < 0.2:
                node = a_node(f"n{i:03}").with_gpus(2)
                if rng.random() < share_sick:
                    node.unhealthy(0, rng.choice(["FallenOffBus", "DoubleBitEcc", "GspError"]))
                cluster.add(node)
        for one in asked(cluster, now).evictions:
            assert cluster.store.disturb(one.node, now, BREAKER), "the plan and the gate agree"
            acted.append((now, one.node))
    for end, _ in acted:
        window = {node for at, node in acted if end - BREAKER.window < at <= end}
        assert len(window) <= max(1, count // 10)
    assert acted, "a breaker that never lets anything through repairs nothing"


def a_treatment(target: str, phase: Phase = Phase.DRAINING) -> Treatment:
    return Treatment(target, "RebootNode", "FallenOffBus", phase, NOW)

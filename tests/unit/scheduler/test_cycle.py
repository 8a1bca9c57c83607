"""What a cycle does beyond what scenario files can say: time, holds, telemetry age, interruption, repairs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.api.telemetry import Verdict
from llmos_operator.errors import NotSynced
from llmos_operator.scheduler.budget import Budget
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import ConsolidationPolicy, Policy, PreemptionLimits, SizingPolicy
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import Hold, PodPhase
from tests.support.builders import (
    GIB,
    LARGE_MODEL,
    NOW,
    SMALL_MODEL,
    ClusterBuilder,
    a_cluster,
    a_node,
    a_profile,
    a_workload,
    gpu,
)
from tests.support.plans import carry_out

POLICY = Policy()
UNMOVED = Policy(consolidation=ConsolidationPolicy(part=0.0))


class Ticks:
    """A clock that advances by one second each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_no_plan_before_everything_is_listed() -> None:
    with pytest.raises(NotSynced, match="still listing Node, GPUNode"):
        plan(ClusterBuilder().store.snapshot(), POLICY, NOW)


def test_an_empty_cluster_gives_an_empty_plan() -> None:
    made = plan(ClusterBuilder().snapshot(), POLICY, NOW)
    assert (made.actions, made.waits, made.decisions) == ((), (), {})


def test_work_on_a_cluster_without_nodes_says_so() -> None:
    made = plan(a_cluster(a_workload("w")).snapshot(), POLICY, NOW)
    assert made.decisions["default/w"].reason is Reason.NO_MATCHING_DEVICE
    assert "no node has devices" in made.decisions["default/w"].message


def test_when_time_runs_out_what_was_decided_stands_and_the_rest_is_left() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(8))
    cluster.add(*(a_workload(f"w{i}") for i in range(6)))
    clock = Ticks()
    made = plan(cluster.snapshot(), POLICY, NOW, Budget(clock, deciding=3))
    assert made.interrupted
    assert 0 < len(made.binds) < 6
    assert set(made.decisions) == {b.claim.workload for b in made.binds}
    carry_out(cluster, made)
    rest = plan(cluster.snapshot(), POLICY, NOW)
    assert len(made.binds) + len(rest.binds) == 6


def full_cluster_with_an_urgent_claim_and_a_small_one() -> ClusterBuilder:
    cluster = a_cluster(a_node("n1").with_gpus(8), a_node("n2").with_gpus(1, memory="1Gi"))
    cluster.with_priorities(high=1000)
    for index in range(8):
        cluster.running(a_workload(f"low{index}"), "n1", [index])
    return cluster.add(a_workload("urgent").priority("high"), a_workload("small").needing("512Mi"))


def test_a_search_takes_no_time_from_those_behind_it() -> None:
    cluster = full_cluster_with_an_urgent_claim_and_a_small_one()
    made = plan(cluster.snapshot(), POLICY, NOW, Budget(Ticks(), deciding=6))
    assert len(made.evictions) == 1
    assert [bind.claim.workload for bind in made.binds] == ["default/small"]
    assert not made.interrupted


def test_a_search_beyond_its_time_is_cut_off_and_the_rest_is_decided() -> None:
    cluster = full_cluster_with_an_urgent_claim_and_a_small_one()
    made = plan(cluster.snapshot(), POLICY, NOW, Budget(Ticks(), searching=1))
    assert made.evictions == ()
    assert [bind.claim.workload for bind in made.binds] == ["default/small"]
    assert made.interrupted


def test_a_hold_keeps_a_workload_back_until_it_ends() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1), a_workload("w"))
    cluster.store.set_hold("default/w", Hold(Reason.BACK_OFF, "crashed 3 times", NOW + 60, 1))
    held = plan(cluster.snapshot(), POLICY, NOW)
    assert (held.waits[0].reason, held.waits[0].message) == (Reason.BACK_OFF, "crashed 3 times")
    assert len(plan(cluster.snapshot(), POLICY, NOW + 61).binds) == 1


def test_telemetry_goes_stale_with_time() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1), a_workload("w").shared())
    assert len(plan(cluster.snapshot(), POLICY, NOW + 4).binds) == 1
    made = plan(cluster.snapshot(), POLICY, NOW + 30)
    assert [r.reason for r in made.decisions["default/w"].rejected] == ["TelemetryUnavailable"]
    assert made.decisions["default/w"].rejected[0].nearest == "last heard of 30 s ago at best"


def test_a_claimant_waits_until_the_memory_is_seen_to_be_free() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-24G").observed_using(0, "20Gi")).with_priorities(
        low=1, high=2
    )
    old = cluster.running(a_workload("old").needing("20Gi").priority("low"), "n1", [0])
    cluster.add(a_workload("new").needing("20Gi").priority("high"))
    first = plan(cluster.snapshot(), POLICY, NOW)
    assert [e.pod for e in first.evictions] == [old.key]
    cluster.store.assume_evicted(old.key, NOW + 30, "default/new")
    cluster.store.delete_pod(old.key, old.uid)
    cluster.store.delete_workload("default/old")
    gone_but_not_free = plan(cluster.snapshot(), POLICY, NOW)
    assert gone_but_not_free.actions == ()
    waits = gone_but_not_free.decisions["default/new"]
    assert waits.reason is Reason.WAITING_FOR_PREEMPTION
    assert "as soon as the memory freed there is measured" in waits.message
    for _ in range(2):
        cluster.store.observe("n1", [Reading(gpu("n1", 0), 0, 24 * GIB)], NOW)
    assert [b.claim.workload for b in plan(cluster.snapshot(), POLICY, NOW).binds] == ["default/new"]


def test_nobody_else_is_displaced_while_freed_memory_is_not_yet_seen_free() -> None:
    nodes = [a_node(n).with_gpus(1, "A-24G").observed_using(0, "20Gi") for n in ("n1", "n2")]
    cluster = a_cluster(*nodes).with_priorities(low=1, high=2)
    running = [
        cluster.running(a_workload(f"old{i}").needing("20Gi").priority("low"), f"n{i}", [0]) for i in (1, 2)
    ]
    cluster.add(a_workload("new").needing("20Gi").priority("high"))
    (eviction,) = plan(cluster.snapshot(), POLICY, NOW).evictions
    victim = next(pod for pod in running if pod.key == eviction.pod)
    cluster.store.assume_evicted(victim.key, NOW + 30, "default/new")
    cluster.store.delete_pod(victim.key, victim.uid)
    cluster.store.delete_workload(eviction.victim)
    assert plan(cluster.snapshot(), POLICY, NOW + 1).evictions == ()
    for name in ("n1", "n2"):
        used = 20 * GIB if name != victim.node else 20 * GIB + 1
        cluster.store.observe(name, [Reading(gpu(name, 0), used, 24 * GIB)], NOW + 30 + 61)
    late = plan(cluster.snapshot(), POLICY, NOW + 30 + 61)
    assert [e.pod for e in late.evictions] == [p.key for p in running if p is not victim], (
        "the wait is bounded"
    )


def test_a_decision_says_that_its_victim_idles_and_for_how_long() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-24G")).with_priorities(low=1, high=2)
    cluster.running(a_workload("old").needing("20Gi").priority("low").with_(idle_since=NOW - 3540), "n1", [0])
    cluster.add(a_workload("new").needing("20Gi").priority("high"))
    (eviction,) = plan(cluster.snapshot(), POLICY, NOW).evictions
    assert eviction.cost == round(20 * GIB / POLICY.load_bytes_per_second * 1000 / 60)
    assert eviction.explanation.endswith("of device time: nobody has asked anything of it for 59 min")
    cluster.add(a_workload("new").needing("20Gi").priority("low"))
    told = explain(cluster.snapshot(), UNMOVED, NOW, "default/new")
    assert any(
        "a priority above 1: displaces default/old (idle) on node n1" in one for one in told.would_help
    )


def test_what_is_repaired_is_not_displaced_as_well() -> None:
    node = a_node("n1").with_gpus(1).with_host(cpu="1100m").with_device(0, verdict=Verdict.UNHEALTHY)
    cluster = a_cluster(node).with_priorities(low=1, high=2)
    sick = cluster.running(a_workload("old").priority("low"), "n1", [0])
    cluster.add(a_workload("new").gpus(0).priority("high"))
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert [(e.pod, e.reason) for e in made.evictions] == [(sick.key, Reason.GPU_UNHEALTHY)]
    assert made.decisions["default/new"].reason is Reason.WAITING_FOR_PREEMPTION


def test_an_exclusive_replica_is_granted_what_its_device_has_left() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-24G"), a_profile("hf://o/l", LARGE_MODEL))
    cluster.add(a_workload("w").serving("hf://o/l"))
    (bind,) = plan(cluster.snapshot(), POLICY, NOW).binds
    assert bind.estimated_bytes < bind.claim.bytes_per_device <= 24 * GIB
    assert bind.claim.kv_tokens > bind.claim.max_model_len


def test_a_bind_has_what_a_pod_is_built_from() -> None:
    cluster = a_cluster(
        a_node("n1").with_gpus(2), a_workload("w").with_(spec={"model": {"uri": "x"}}, cpu_milli=100)
    )
    (bind,) = plan(cluster.snapshot(), POLICY, NOW).binds
    claim = bind.claim
    assert bind.workload.spec == {"model": {"uri": "x"}}
    assert (claim.workload, claim.workload_uid, claim.ordinal, claim.node) == ("default/w", "uid-w", 0, "n1")
    assert claim.pod.startswith("default/w-")
    assert claim.devices == (gpu("n1", 0),)
    assert claim.cpu_milli == POLICY.sizing.runtime_cpu_milli + 100
    assert (claim.gpu_milli, claim.charged_bytes, claim.bound_at) == (1000, 80 * GIB, NOW)


def test_shared_work_is_charged_by_its_dominant_part() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-24G"), a_workload("w").shared(50).needing("6Gi"))
    (bind,) = plan(cluster.snapshot(), POLICY, NOW).binds
    assert (bind.claim.gpu_milli, bind.claim.charged_bytes, bind.claim.compute_milli) == (250, 6 * GIB, 50)


def test_too_many_tenants_run_out_of_compute_before_memory() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.add(*(a_workload(f"w{i:02}").shared().needing("1Gi") for i in range(12)))
    made = plan(cluster.snapshot(), replace(POLICY, startup_seconds=0.0), NOW)
    assert len(made.binds) == 10
    waiting = [d for d in made.decisions.values() if d.pending]
    assert [[r.reason for r in d.rejected] for d in waiting] == [["InsufficientDeviceCompute"]] * 2


def test_a_former_pod_holds_the_name_of_its_replica() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    pod = cluster.running(a_workload("w"), "n1", [0], phase=PodPhase.FINISHED)
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert made.actions == ()
    assert made.waits[0].reason is Reason.PENDING
    assert pod.key in made.waits[0].message


def test_work_on_a_vanished_node_or_device_is_placed_again() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1), a_node("n2").with_gpus(2))
    cluster.running(a_workload("a"), "n1", [0])
    cluster.running(a_workload("b"), "n2", [1])
    cluster.store.delete_node("n1")
    two = cluster.snapshot().nodes["n2"].gpu
    assert two is not None
    cluster.store.apply_gpu_node(replace(two, devices=two.devices[:1]))
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert {(e.victim, e.reason, e.force) for e in made.evictions} == {
        ("default/a", Reason.NODE_LOST, True),
        ("default/b", Reason.GPU_UNHEALTHY, True),
    }


def test_devices_that_are_not_reported_for_a_while_do_not_end_work() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.running(a_workload("a"), "n1", [0])
    cluster.store.delete_gpu_node("n1")
    assert plan(cluster.snapshot(), POLICY, NOW).actions == ()


def test_the_number_of_searches_for_victims_is_bounded() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2)).with_priorities(low=1, high=2)
    cluster.running(a_workload("a").priority("low"), "n1", [0])
    cluster.running(a_workload("b").priority("low"), "n1", [1])
    cluster.add(a_workload("x").priority("high"), a_workload("y").priority("high"))
    made = plan(cluster.snapshot(), replace(POLICY, preemption=PreemptionLimits(searches=1)), NOW)
    assert len(made.evictions) == 1
    never = plan(cluster.snapshot(), replace(POLICY, preemption=PreemptionLimits(enabled=False)), NOW)
    assert never.evictions == ()


def test_a_claimant_whose_victims_have_gone_goes_before_its_equals() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1)).with_priorities(low=1, high=2)
    old = cluster.running(a_workload("old").priority("low"), "n1", [0])
    cluster.add(a_workload("first").priority("high").created(10))
    carry_out(cluster, plan(cluster.snapshot(), POLICY, NOW))
    assert cluster.store.pod(old.key) is None
    cluster.add(a_workload("elder").priority("high").created(9000))
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert [b.claim.workload for b in made.binds] == ["default/first"]
    late = plan(cluster.snapshot(), POLICY, NOW + 600)
    assert [b.claim.workload for b in late.binds] == ["default/elder"]


def test_a_kept_table_follows_nodes_that_come_and_go() -> None:
    table, cluster = NodeTable(), a_cluster(a_node("n1").with_gpus(1), a_workload("w"))
    assert [b.claim.node for b in plan(cluster.snapshot(), POLICY, NOW, table=table).binds] == ["n1"]
    cluster.add(a_node("n0").with_gpus(4, "L-24G"))
    cluster.store.delete_node("n1")
    cluster.store.delete_gpu_node("n1")
    assert [b.claim.node for b in plan(cluster.snapshot(), POLICY, NOW, table=table).binds] == ["n0"]
    cluster.add(a_node("n0").with_gpus(4, "L-24G").cordoned())
    assert plan(cluster.snapshot(), POLICY, NOW, table=table).binds == ()


def test_positions_are_counted_in_each_queue() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.add(*(a_workload(f"w{i}").created(100 - i) for i in range(4)))
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert {k: d.queue_position for k, d in made.decisions.items()} == {
        "default/w0": None,
        "default/w1": 1,
        "default/w2": 2,
        "default/w3": 3,
    }


def test_short_work_is_preferred_but_a_long_wait_wins() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.add(a_workload("long").with_(expected_seconds=10_000.0).created(2000))
    cluster.add(a_workload("short").with_(expected_seconds=100.0).created(100))
    assert plan(cluster.snapshot(), POLICY, NOW).binds[0].claim.workload == "default/short"
    cluster.add(a_workload("long").with_(expected_seconds=10_000.0, uid="uid-again").created(90_000))
    assert plan(cluster.snapshot(), POLICY, NOW).binds[0].claim.workload == "default/long"


def test_a_creation_time_in_the_future_is_no_wait() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.add(a_workload("skewed").created(-9000), a_workload("honest").created(1))
    assert plan(cluster.snapshot(), POLICY, NOW).binds[0].claim.workload == "default/honest"


def test_explain_says_what_would_help() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-80G"), a_node("n2").with_gpus(1, "L-12G"))
    cluster.running(a_workload("old"), "n1", [0])
    cluster.add(a_profile("hf://o/l", LARGE_MODEL), a_workload("new").serving("hf://o/l").at("None"))
    told = explain(cluster.snapshot(), UNMOVED, NOW, "default/new")
    assert told.reason is Reason.NO_CAPACITY
    assert any(change.startswith("moving default/old") for change in told.would_help)
    assert (told.queue_position, told.replicas_wanted, told.replicas_placed) == (1, 1, 0)
    assert [o.format for o in told.options] == ["bf16"]
    assert any(change.startswith("format int8") for change in told.would_help)
    assert any("a priority above 0: displaces default/old on node n1" in change for change in told.would_help)
    assert "waiting for" in told.order
    placed = explain(cluster.snapshot(), POLICY, NOW, "default/old")
    assert (placed.message, placed.order) == ("every replica has its place", "")
    with pytest.raises(KeyError):
        explain(cluster.snapshot(), POLICY, NOW, "default/nobody")


def test_explain_names_the_victims_and_the_time_of_a_start_that_is_being_made() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1)).with_priorities(low=1, high=2)
    old = cluster.running(a_workload("old").priority("low"), "n1", [0])
    cluster.add(a_workload("new").priority("high"))
    told = explain(cluster.snapshot(), POLICY, NOW, "default/new")
    assert [(v.victim, v.reason) for v in told.victims] == [("default/old", Reason.PREEMPTED)]
    cluster.store.assume_evicted(old.key, NOW + 25, "default/new")
    told = explain(cluster.snapshot(), POLICY, NOW, "default/new")
    assert (told.reason, told.expected_start) == (Reason.WAITING_FOR_PREEMPTION, NOW + 25)


def test_cpu_only_work_reserves_host_memory_by_its_model() -> None:
    policy = replace(POLICY, sizing=SizingPolicy(cpu_only_milli=2000))
    cluster = a_cluster(a_node("n1").with_host(cpu="4", memory="2Gi"), a_profile("hf://o/s", SMALL_MODEL))
    cluster.add(*(a_workload(f"w{i}").serving("hf://o/s").gpus(0) for i in range(3)))
    made = plan(cluster.snapshot(), policy, NOW)
    assert {b.claim.cpu_milli for b in made.binds} == {2000}
    assert all(b.claim.memory_bytes > 400 << 20 and b.claim.devices == () for b in made.binds)
    assert len(made.binds) == 2

"""Places kept for large work, over time. Single decisions are in tests/scenarios/llmos/backfill-*.yaml."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.ends import NEVER, Ends
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import ConsolidationPolicy, Policy, ReservationPolicy
from llmos_operator.state.types import WorkloadKind
from tests.support.builders import NOW, a_cluster, a_node, a_workload
from tests.support.timeline import Timeline

WITHOUT = Policy(reservation=ReservationPolicy(most=0))
HOUR = 3600.0


def a_stream(policy: Policy, *, declared: bool) -> Timeline:
    """Two nodes of four devices, a small job every 80 s that runs for ten minutes, and after ten minutes a gang of eight."""
    cluster = a_cluster(a_node("n1").with_gpus(4), a_node("n2").with_gpus(4))
    timeline = Timeline(cluster, policy)
    gang = a_workload("gang").gpus(4).of_pods(copies=2).value
    number = 0
    while timeline.now < NOW + 2 * HOUR:
        small = a_workload(f"small-{number}").with_(max_runtime=600.0 if declared else None).value
        timeline.submit(small, lasts=600.0)
        if number == 10:
            timeline.submit(gang, lasts=HOUR)
        timeline.advance(timeline.now + 80.0)
        number += 1
    return timeline


def test_a_large_gang_starts_though_small_work_keeps_coming() -> None:
    timeline = a_stream(Policy(), declared=True)
    waited = timeline.started["default/gang"] - (NOW + 800.0)
    assert waited <= 630.0  # all that ran when it came has an end within ten minutes and the grace
    later = [
        key
        for key, at in timeline.started.items()
        if "small" in key and at > timeline.started["default/gang"]
    ]
    assert later, "small work goes on afterwards"


def test_without_reservations_it_would_starve() -> None:
    assert "default/gang" not in a_stream(WITHOUT, declared=True).started


def test_where_nobody_knows_of_any_end_it_starts_once_it_is_old_enough() -> None:
    started = a_stream(Policy(), declared=False).started["default/gang"] - (NOW + 800.0)
    assert HOUR < started <= HOUR + 700.0
    assert "default/gang" not in a_stream(WITHOUT, declared=False).started


def test_small_work_uses_the_hole_meanwhile() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    timeline = Timeline(cluster, Policy())
    timeline.submit(a_workload("busy").with_(max_runtime=HOUR).value, lasts=HOUR)
    timeline.decide()
    timeline.submit(a_workload("big").gpus(2).value)
    for number in range(5):
        timeline.submit(a_workload(f"brief-{number}").with_(max_runtime=500.0).value, lasts=500.0)
    timeline.decide()
    timeline.advance(NOW + HOUR + 30.0)
    assert [timeline.started[f"default/brief-{n}"] - NOW for n in range(5)] == [
        0.0,
        500.0,
        1000.0,
        1500.0,
        2000.0,
    ]
    assert timeline.started["default/big"] == NOW + HOUR


def test_a_reservation_moves_when_its_node_dies() -> None:
    late, early = a_workload("late").with_(max_runtime=7200.0), a_workload("early").with_(max_runtime=600.0)
    cluster = a_cluster(a_node("n1").with_gpus(2), a_node("n2").with_gpus(2))
    cluster.running(late, "n1", [0], bound_at=NOW)
    cluster.running(early, "n2", [0], bound_at=NOW)
    cluster.add(a_workload("big").gpus(2).created(100))
    unmoved = Policy(consolidation=ConsolidationPolicy(part=0.0))
    (before,) = plan(cluster.snapshot(), unmoved, NOW).reservations
    assert (before.nodes, before.start) == (("n2",), NOW + 630.0)
    cluster.add(a_node("n2").with_gpus(2).not_ready())
    (after,) = plan(cluster.snapshot(), unmoved, NOW).reservations
    assert (after.nodes, after.start) == (("n1",), NOW + 7230.0)


def test_the_decision_says_by_when_it_starts_and_so_does_the_explanation() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.running(a_workload("busy").with_(max_runtime=100.0), "n1", [0], bound_at=NOW)
    cluster.add(a_workload("next").created(10))
    decision = plan(cluster.snapshot(), Policy(), NOW).decisions["default/next"]
    assert decision.reserved == ("n1",)
    assert decision.expected_start is not None
    assert decision.expected_start % 60 == 0
    assert NOW + 130 <= decision.expected_start < NOW + 190
    told = explain(cluster.snapshot(), Policy(), NOW, "default/next")
    assert told.expected_start == decision.expected_start
    assert "until default/busy" in told.message


def test_only_the_first_of_a_kind_gets_a_place_and_another_kind_gets_its_own() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A100-80G"), a_node("n2").with_gpus(1, "L40-48G"))
    cluster.running(a_workload("a").with_(max_runtime=600.0), "n1", [0], bound_at=NOW)
    cluster.running(a_workload("b").with_(max_runtime=600.0), "n2", [0], bound_at=NOW)
    for name, product, waited in (("first", "A100", 40), ("second", "A100", 30), ("third", "L40", 20)):
        work = a_workload(name).created(waited)
        cluster.add(work.with_(selector=replace(work.value.selector, products=(product,))))
    kept = plan(cluster.snapshot(), Policy(), NOW).reservations
    assert [one.workload for one in kept] == ["default/first", "default/third"]
    more = Policy(reservation=ReservationPolicy(most=2))
    assert len(plan(cluster.snapshot(), more, NOW).reservations) == 2  # no second place among the A100


def ends_of(kind: WorkloadKind, *seconds: float, ran: float = 0.0) -> float:
    """Return for how much longer a job is expected to run in a queue that has finished jobs of these lengths."""
    cluster = a_cluster(a_node("n1").with_gpus(1))
    for number, one in enumerate(seconds):
        done = a_workload(f"done-{number}").with_(kind=WorkloadKind.FINE_TUNE, finished=True)
        cluster.add(done.with_(gpu_seconds=int(one)))
    pod = cluster.running(a_workload("job").with_(kind=kind), "n1", [0], bound_at=NOW - ran)
    pod = replace(pod, started_at=NOW - ran)
    return Ends(cluster.snapshot(), Policy(), NOW).of(pod) - NOW


def test_ends_are_learned_from_what_the_queue_has_finished() -> None:
    usual = [600.0 + 10 * n for n in range(40)]
    assert 600 < ends_of(WorkloadKind.FINE_TUNE, *usual) < 2400
    assert 0 < ends_of(WorkloadKind.FINE_TUNE, *usual, ran=500.0) < ends_of(WorkloadKind.FINE_TUNE, *usual)


@pytest.mark.parametrize(("kind", "count"), [(WorkloadKind.FINE_TUNE, 9), (WorkloadKind.INFERENCE, 40)])
def test_too_few_finished_jobs_and_serving_teach_nothing(kind: WorkloadKind, count: int) -> None:
    assert ends_of(kind, *([600.0] * count)) == NEVER

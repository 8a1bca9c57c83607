"""What is promised to a claim that gets a place: while ends hold it starts by then, whatever comes after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, note
from hypothesis import strategies as st

from llmos_operator.scheduler.policy import Policy
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload
from tests.support.timeline import Timeline

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Plan

GRACE = 30.0  # of the pods of these timelines


def work(draw: st.DrawFn, name: str) -> tuple[WorkloadBuilder, float | None]:
    """Return work of one of three priorities, and how long it lasts: its declared end holds, others do not end."""
    one = (
        a_workload(name)
        .gpus(draw(st.sampled_from([1, 1, 2, 3])))
        .priority(draw(st.sampled_from(["low", "mid"])))
    )
    if draw(st.integers(0, 4)) == 0:
        one.gpus(1).shared().needing(draw(st.sampled_from(["10Gi", "50Gi"])))
    elif draw(st.integers(0, 4)) == 0:
        one.of_pods(copies=2)
    one.with_(min_runtime=float(draw(st.sampled_from([0, 0, 300]))))
    declared = draw(st.sampled_from([None, 100.0, 400.0, 1000.0, 3000.0]))
    one.with_(max_runtime=declared)
    if declared is None:
        return one, None
    return one, draw(st.sampled_from([0.3, 1.0])) * declared + draw(st.sampled_from([0.0, GRACE]))


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """A cluster with work on it and in its line."""
    cluster: ClusterBuilder = a_cluster().with_priorities(low=1, mid=2, high=3)
    for number in range(draw(st.integers(1, 3))):
        cluster.add(a_node(f"n{number}").with_gpus(draw(st.integers(1, 4))))
    timeline = Timeline(cluster, Policy())
    for number in range(draw(st.integers(1, 8))):
        one, lasts = work(draw, f"r{number}")
        timeline.submit(one.value, lasts)
    timeline.decide()
    timeline.advance(timeline.now + 10.0)
    return timeline


def promise(made: Plan, key: str) -> float | None:
    return next((one.start for one in made.reservations if one.workload == key), None)


@given(timelines(), st.data())
def test_the_head_starts_by_its_promised_time_whatever_comes_after_it(
    timeline: Timeline, data: st.DataObject
) -> None:
    made = timeline.decide()
    known = [one for one in made.reservations if one.start is not None]
    # Who waits before it without a promise, because somebody's end is unknown, may still take its place: that is its turn.
    if not known or made.decisions[known[0].workload].queue_position != 1:
        return
    head, promised = known[0].workload, known[0].start
    assert promised is not None
    note(f"{head} by {promised - NOW}, {known[0]}")
    for number in range(data.draw(st.integers(1, 8))):
        if head in timeline.started:
            break
        until = min(timeline.now + data.draw(st.sampled_from([1.0, 60.0, 350.0])), promised)
        for made in timeline.advance(until):
            if head in timeline.started:
                break
            again = promise(made, head)
            assert again is not None, "the place is lost"
            assert again <= promised, "the promise is put off"
        one, lasts = work(data.draw, f"later{number}")
        before = timeline.cluster.store.workload(head)
        assert before is not None
        if before.priority_class == "low":
            one.priority("low")  # what stands above it may pass it: that is no backfill
        timeline.submit(one.value, lasts)
        timeline.decide()
    timeline.advance(promised)
    assert timeline.started.get(head, promised + 1) <= promised


def test_the_head_starts_by_its_promised_time_though_somebody_moves_to_its_place() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2), a_node("n2").with_gpus(3))
    cluster.running(a_workload("long").gpus(2).with_(max_runtime=1000.0), "n2", (0, 1), bound_at=NOW)
    cluster.running(a_workload("short").with_(max_runtime=300.0), "n1", (0,), bound_at=NOW)
    timeline = Timeline(
        cluster, Policy(), lasts={"default/long": 1000.0 + GRACE, "default/short": 300.0 + GRACE}
    )
    timeline.submit(a_workload("head").gpus(3).value)
    timeline.submit(a_workload("small").gpus(2).value)  # waits for short for 330 s unless that moves
    promised = promise(timeline.decide(), "default/head")
    assert promised == NOW + 1000.0 + GRACE
    assert timeline.started == {"default/short": NOW, "default/small": NOW}, "short has moved for small"
    timeline.advance(promised)
    assert timeline.started["default/head"] == promised


@given(timelines())
def test_without_anybody_else_a_reservation_changes_nothing_for_what_is_placed(timeline: Timeline) -> None:
    made = timeline.decide()
    for one in made.reservations:
        workload = timeline.cluster.store.workload(one.workload)
        assert workload is not None
        assert made.decisions[one.workload].pending > 0
        assert len(one.nodes) == workload.members
        assert len(one.devices) == len(set(one.devices)) or workload.sharing.value == "Shared"
        assert one.start is None or one.start >= timeline.now

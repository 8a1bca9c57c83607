"""What is told of placements, and that nothing is told twice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.control.placement_spans import Cycle, PlacementSpans
from llmos_operator.manifests import traces
from llmos_operator.observability.tracing import OFF, TraceContext
from llmos_operator.scheduler.plan import Bind, Plan, Wait
from tests.support.replicas import NOW, a_claim_of, a_work

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload

CYCLE = Cycle(7, NOW, NOW + 0.5)


class Recorder:
    """A tracer that keeps what it is told."""

    on = True

    def __init__(self) -> None:
        self.spans: list[SimpleNamespace] = []

    def start(self, name: str, *_: Any, parent: Any = None, identity: Any = None, **more: Any) -> Any:
        trace = (identity or parent).trace_id
        span = SimpleNamespace(name=name, trace=trace, parent=parent, id=identity.span_id, at=more["at"])
        span.attributes, span.events, span.failed, span.until = more.get("attributes"), [], "", None
        span.event = lambda _, facts, at: span.events.append((at, facts["llmos.reason"]))
        span.fail = lambda kind: setattr(span, "failed", kind)
        span.end = lambda at: setattr(span, "until", at)
        self.spans.append(span)
        return span

    def named(self, name: str) -> list[SimpleNamespace]:
        return [one for one in self.spans if one.name == name]


class Bench:
    def __init__(self, *, placed: bool = False) -> None:
        self.tracer, self.now = Recorder(), NOW + 1
        tracer: Any = self.tracer
        self.spans = PlacementSpans(tracer, lambda: self.now, lambda _: placed)

    def bind(self, work: Workload, **changes: Any) -> Bind:
        bind = Bind(work, a_claim_of(work, **changes), 1, Reason.BOUND, "", scored_by="BestFit")
        self.spans.planned(Plan(1, NOW, (bind,)), CYCLE)
        self.spans.bound(bind)
        return bind


def test_the_parts_follow_one_another_below_one_placement() -> None:
    bench, work = Bench(), replace(a_work(), created_at=NOW - 10)
    bind = bench.bind(work)
    bench.now = NOW + 3
    bench.spans.started(bind.claim.pod, bind.claim)
    bench.now = NOW + 9
    bench.spans.ready(bind.claim.pod, bind.claim, seen_before=True)
    told = [(one.name, one.at - NOW, one.until - NOW) for one in bench.tracer.spans]
    assert told == [
        ("queued", -10, 0),
        ("plan", 0, 0.5),
        ("bind", 0.5, 1),
        ("start", 1, 3),
        ("placement", -10, 9),
    ]
    root = TraceContext(traces.trace_id(bind.claim), traces.span_id(bind.claim))
    assert [one.parent for one in bench.tracer.spans] == [root] * 4 + [None]
    assert len({one.id for one in bench.tracer.spans}) == 5
    assert traces.traceparent(bind.claim) == root.parent


def test_a_further_replica_is_wanted_since_it_waits() -> None:
    bench, work = Bench(placed=True), replace(a_work(), created_at=NOW - 1000)
    for at, reason in (
        (NOW - 30, Reason.NO_CAPACITY),
        (NOW - 20, Reason.NO_CAPACITY),
        (NOW - 5, Reason.EXCEEDS_QUOTA),
    ):
        wait = Wait(work.key, work.uid, 1, reason, "")
        bench.spans.planned(Plan(1, at, waits=(wait,)), Cycle(1, at, at))
    bench.bind(work)
    (queued,) = bench.tracer.named("queued")
    assert queued.at == NOW - 30
    assert queued.events == [(NOW - 30, "NoCapacity"), (NOW - 5, "ExceedsQuota")]
    bench.bind(work, bound_at=NOW + 50)
    assert bench.tracer.named("queued")[1].at == NOW, "that wait is over"


def test_the_pods_of_a_gang_are_one_placement() -> None:
    bench, work = Bench(), a_work()
    leader = bench.bind(work, member=0, pod="team/chat-0-0")
    worker = bench.bind(work, member=1, pod="team/chat-0-1")
    assert traces.trace_id(leader.claim) == traces.trace_id(worker.claim)
    assert len({one.id for one in bench.tracer.named("bind")}) == 2
    bench.spans.ready(leader.claim.pod, leader.claim, seen_before=True)
    bench.spans.ended(worker.claim.pod, "Scaling")
    (whole,) = bench.tracer.named("placement")
    assert whole.failed == ""


def test_what_never_served_fails_once() -> None:
    bench = Bench()
    bind = bench.bind(a_work())
    for _ in range(2):
        bench.spans.ended(bind.claim.pod, "NodeLost")
    bench.spans.forget(bind.workload.uid)
    (whole,) = bench.tracer.named("placement")
    assert whole.failed == "NodeLost"


def test_a_deleted_workload_ends_its_placements_and_is_forgotten() -> None:
    bench, work = Bench(), a_work()
    bench.bind(work)
    bench.spans.planned(Plan(1, NOW, (Bind(work, a_claim_of(work, 1), 1, Reason.BOUND, ""),)), CYCLE)
    bench.spans.forget(work.uid)
    (whole,) = bench.tracer.named("placement")
    assert whole.failed == "PodDeleted"
    assert [bench.spans._waiting, bench.spans._decided, bench.spans._open] == [{}, {}, {}]


@pytest.mark.parametrize(("seen_before", "told"), [(True, 1), (False, 0)])
def test_another_leaders_placement_is_told_if_it_was_seen_to_load(*, seen_before: bool, told: int) -> None:
    bench = Bench()
    claim = a_claim_of(a_work())
    bench.spans.ready(claim.pod, claim, seen_before=seen_before)
    assert [one.at for one in bench.tracer.named("placement")] == [claim.bound_at] * told


def test_a_bind_that_failed_leaves_nothing() -> None:
    bench, work = Bench(), a_work()
    bind = Bind(work, a_claim_of(work), 1, Reason.BOUND, "")
    bench.spans.planned(Plan(1, NOW, (bind,)), CYCLE)
    bench.spans.dropped(bind.claim.pod)
    bench.spans.bound(bind)
    assert bench.tracer.spans == []


def test_another_placement_of_the_same_replica_has_another_trace() -> None:
    work = a_work()
    claims = [
        a_claim_of(work),
        a_claim_of(work, bound_at=NOW + 1),
        a_claim_of(work, 1),
        a_claim_of(a_work(uid="uid-2")),
    ]
    assert len({traces.trace_id(claim) for claim in claims}) == 4
    moved = a_claim_of(work, node="n2", asked_bytes=5)  # what changes on a claim later does not count
    assert traces.trace_id(moved) == traces.trace_id(claims[0])


def test_off_keeps_nothing() -> None:
    spans = PlacementSpans(OFF, lambda: NOW, lambda _: False)
    bind = Bind(a_work(), a_claim_of(a_work()), 1, Reason.BOUND, "")
    spans.planned(Plan(1, NOW, (bind,), (Wait("team/x", "uid-9", 1, Reason.NO_CAPACITY, ""),)), CYCLE)
    spans.bound(bind)
    spans.ready(bind.claim.pod, bind.claim, seen_before=True)
    assert [spans._waiting, spans._decided, spans._open] == [{}, {}, {}]

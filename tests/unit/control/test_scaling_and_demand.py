from __future__ import annotations

from typing import Any

from llmos_operator.api.conditions import Reason
from llmos_operator.api.telemetry import DemandBatch, DemandItem
from llmos_operator.control import scaling
from llmos_operator.control.demand import DemandBook
from llmos_operator.control.scaling import Demand

NOW = 1_700_000_000.0
SPEC: dict[str, Any] = {"minReplicas": 1, "maxReplicas": 8, "metrics": [{"type": "QueueDepth", "target": 4}]}
ZERO: dict[str, Any] = {"minReplicas": 0, "maxReplicas": 4, "idle": {"scaleToZeroAfter": "5m"}}


def wanted(spec: dict[str, Any], demand: Demand, live: int = 1, now: float = NOW) -> int:
    memory, _ = scaling.decide(spec, demand, scaling.begin(spec, live, NOW), now)
    return memory.wanted


def test_the_number_rises_at_once_and_stays_within_bounds() -> None:
    assert wanted(SPEC, Demand(waiting=9)) == 3
    assert wanted(SPEC, Demand(waiting=900)) == 8
    assert wanted(SPEC, Demand()) == 1


def test_the_largest_metric_counts() -> None:
    spec = SPEC | {"metrics": [{"type": "QueueDepth", "target": 4}, {"type": "RunningRequests", "target": 2}]}
    assert wanted(spec, Demand(waiting=4, running=9)) == 5


def test_the_number_falls_only_after_the_lower_one_was_enough_for_a_while() -> None:
    memory = scaling.begin(SPEC, 1, NOW)
    memory, _ = scaling.decide(SPEC, Demand(waiting=20), memory, NOW)
    assert memory.wanted == 5
    for second in range(1, 59):
        memory, _ = scaling.decide(SPEC, Demand(), memory, NOW + second)
        assert memory.wanted == 5
    memory, _ = scaling.decide(SPEC, Demand(), memory, NOW + 130)
    assert memory.wanted == 1


def test_demand_that_swings_does_not_make_replicas_swing() -> None:
    memory, starts = scaling.begin(SPEC, 1, NOW), 0
    for second in range(300):
        before = memory.wanted
        memory, _ = scaling.decide(SPEC, Demand(waiting=16 if second % 20 < 10 else 0), memory, NOW + second)
        starts += max(0, memory.wanted - before)
    assert starts == 3


def test_the_last_replica_goes_only_after_idleness() -> None:
    memory = scaling.begin(ZERO, 1, NOW)
    memory, _ = scaling.decide(ZERO, Demand(), memory, NOW + 299)
    assert memory.wanted == 1
    memory, verdict = scaling.decide(ZERO, Demand(), memory, NOW + 301)
    assert memory.wanted == 0
    assert verdict.reason is Reason.SCALED_TO_ZERO


def test_a_request_puts_idleness_off() -> None:
    memory = scaling.begin(ZERO, 1, NOW)
    memory, _ = scaling.decide(ZERO, Demand(last_request=NOW + 200), memory, NOW + 301)
    assert memory.wanted == 1


def test_work_that_no_request_explains_puts_idleness_off_and_is_named() -> None:
    memory = scaling.begin(ZERO, 1, NOW)
    works = Demand(working="a device of its own works: multiprocessors active 60 % of the time")
    for second in range(0, 900, 30):
        memory, verdict = scaling.decide(ZERO, works, memory, NOW + second)
    assert memory.wanted == 1
    assert "It is not idle: a device of its own works" in verdict.message
    memory, _ = scaling.decide(ZERO, Demand(), memory, NOW + 870 + 299)
    assert memory.wanted == 1
    memory, _ = scaling.decide(ZERO, Demand(), memory, NOW + 870 + 301)
    assert memory.wanted == 0


def test_who_works_does_not_doze() -> None:
    spec = {"minReplicas": 1, "maxReplicas": 1, "idle": {"sleepAfter": "1m"}}
    memory = scaling.begin(spec, 1, NOW)
    assert scaling.may_doze(spec, Demand(), memory, NOW + 61, dozes=False)
    assert not scaling.may_doze(spec, Demand(working="it works"), memory, NOW + 61, dozes=False)


def test_a_waiting_request_starts_the_first_replica() -> None:
    memory = scaling.begin(ZERO, 0, NOW)
    memory, _ = scaling.decide(ZERO, Demand(), memory, NOW + 1)
    assert memory.wanted == 0
    memory, verdict = scaling.decide(ZERO, Demand(waiting=1), memory, NOW + 2)
    assert memory.wanted == 1
    assert verdict.reason is Reason.SCALING


def test_replicas_found_after_a_restart_are_kept() -> None:
    assert scaling.begin(SPEC, 5, NOW).wanted == 5
    assert scaling.begin(SPEC, 50, NOW).wanted == 8
    assert scaling.begin(SPEC, 0, NOW).wanted == 1


def batch(gateway: str, **counts: int) -> DemandBatch:
    numbers = {"waiting": 0, "in_flight": 0, "requests": 0} | counts
    return DemandBatch(gateway=gateway, items=[DemandItem(namespace="team", name="chat", **numbers)])


def test_reports_of_gateways_add_up_and_the_newest_of_each_counts() -> None:
    book = DemandBook()
    book.take(batch("a", waiting=5), NOW)
    book.take(batch("b", waiting=2, in_flight=1), NOW)
    book.take(batch("a", waiting=3), NOW + 1)
    demand = book.demand("team/chat", NOW + 1)
    assert (demand.waiting, demand.running) == (5, 1)


def test_a_gateway_that_falls_silent_has_nothing_waiting() -> None:
    book = DemandBook()
    book.take(batch("a", waiting=5, requests=5), NOW)
    assert book.demand("team/chat", NOW + 6).waiting == 0
    assert book.demand("team/chat", NOW + 6).last_request == NOW


def test_arrivals_are_counted_over_a_minute() -> None:
    book = DemandBook()
    for second in range(0, 120, 10):
        book.take(batch("a", requests=2), NOW + second)
    assert book.demand("team/chat", NOW + 115).per_minute == 12
    assert book.demand("team/other", NOW).per_minute == 0


def test_replicas_may_sleep_after_idleness_until_somebody_asks() -> None:
    spec = SPEC | {"idle": {"sleepAfter": "5m"}}
    memory = scaling.begin(spec, 1, NOW)

    def may(demand: Demand, after: float, *, dozes: bool = False) -> bool:
        return scaling.may_doze(spec, demand, memory, NOW + after, dozes=dozes)

    assert not may(Demand(), 299)
    assert may(Demand(), 300)
    assert not may(Demand(waiting=1), 300, dozes=True)
    assert may(Demand(), 0, dozes=True), "a restart forgets how long nobody asked, and wakes nobody"
    assert not may(Demand(lost="no report from g"), 900), "what is not known is no idleness"
    assert may(Demand(lost="no report from g"), 900, dozes=True)
    assert not scaling.may_doze(SPEC, Demand(), memory, NOW + 900, dozes=False)


def test_what_cannot_be_had_is_no_reason_to_want_more() -> None:
    memory = scaling.begin(SPEC, 3, NOW)
    memory, _ = scaling.decide(SPEC, Demand(waiting=900), memory, NOW, held=2)
    assert memory.wanted == 3, "as many as before"
    memory, _ = scaling.decide(SPEC, Demand(waiting=900), memory, NOW + 1, held=3)
    assert memory.wanted == 4, "one more than there may be"
    memory, _ = scaling.decide(SPEC, Demand(), memory, NOW + 100, held=3)
    memory, verdict = scaling.decide(SPEC, Demand(), memory, NOW + 200, held=3)
    assert memory.wanted == 1, "demand is followed down"
    assert verdict.active
    memory, _ = scaling.decide(SPEC, Demand(waiting=900), memory, NOW + 201)
    assert memory.wanted == 8


def test_who_idles_lends_and_calls_back_what_requests_need() -> None:
    spec = {"minReplicas": 1, "maxReplicas": 1, "idle": {"lendAfter": "60s"}}
    memory = scaling.begin(spec, 1, NOW)

    def lends(demand: Demand, after: float, *, already: bool = False, asked_for: float = 0.0) -> bool:
        return scaling.may_lend(spec, demand, memory, NOW + after, lends=already, asked_for=asked_for)

    assert not lends(Demand(), 59)
    assert lends(Demand(), 60)
    assert not scaling.may_lend({}, Demand(), memory, NOW + 900, lends=True, asked_for=0.0)
    for seen in (Demand(running=1), Demand(waiting=1), Demand(working="it works"), Demand(lost="a gateway")):
        assert not lends(seen, 900), "it does not begin to"
    assert lends(Demand(lost="a gateway"), 1, already=True), "silence calls nothing back"
    assert lends(Demand(running=1), 1, already=True, asked_for=1.0), "a request that it can answer so"
    assert not lends(Demand(running=1), 1, already=True, asked_for=scaling.CALL_AFTER)
    assert not lends(Demand(running=1, waiting=1), 1, already=True), "one that waits"

"""What models at work draw is learned from whole devices, after enough busy minutes, and never falls."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmos_operator.control.drawing import PROVEN_MINUTES, Drawing, Finding, Subject
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import WorkloadKind
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload, gpu

SUBJECT = Subject("hf://org/chat", "main", "bf16", "A100-80G")
SECONDS = 10


@dataclass
class Meter:
    """One device that is sampled every ten seconds."""

    cluster: ClusterBuilder
    drawing: Drawing = field(default_factory=Drawing)
    now: float = NOW
    joules: int = 1000
    known: bool = True  # whether the operator may judge

    def minutes(self, count: int, watts: int, busy: int | None = 90) -> list[Finding]:
        """Let minutes pass, and return what was learned."""
        found = []
        for _ in range(count * 60 // SECONDS):
            self.now += SECONDS
            self.joules += watts * SECONDS
            found += self.told(self.joules, busy)
        return found

    def told(self, joules: int, busy: int | None) -> list[Finding]:
        store = self.cluster.store
        reading = Reading(gpu("n1", 0), energy_millijoules=joules * 1000, busy_percent=busy)
        return self.drawing.sampled(
            [reading], store.node("n1") if self.known else None, store.workload, self.now
        )


def serving(workload: WorkloadBuilder | None = None) -> Meter:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.running(workload or a_workload("chat"), "n1", [0], bound_at=NOW - 60.0)
    return Meter(cluster)


def test_an_eighth_more_than_the_highest_busy_minute_once_there_were_enough() -> None:
    meter = serving()
    assert meter.minutes(2, 320) == []
    assert meter.minutes(PROVEN_MINUTES - 3, 200) == []
    assert meter.minutes(2, 200) == [Finding(SUBJECT, 360_000)]


def test_more_is_news_and_less_is_not() -> None:
    meter = serving()
    assert meter.minutes(PROVEN_MINUTES + 2, 200) == [Finding(SUBJECT, 225_000)]
    assert meter.minutes(5, 100) == []
    assert meter.minutes(5, 201) == []  # not worth telling
    assert meter.minutes(2, 300)[-1] == Finding(SUBJECT, 337_500)


def test_idle_minutes_are_no_evidence() -> None:
    meter = serving()
    assert meter.minutes(3 * PROVEN_MINUTES, 200, busy=10) == []
    assert meter.minutes(PROVEN_MINUTES - 1, 200) == []


def test_a_share_of_a_device_teaches_nothing() -> None:
    meter = serving(a_workload("chat").shared())
    assert meter.minutes(2 * PROVEN_MINUTES, 200) == []


def test_work_that_ends_teaches_nothing_of_serving() -> None:
    meter = serving(a_workload("chat").with_(kind=WorkloadKind.FINE_TUNE))
    assert meter.minutes(2 * PROVEN_MINUTES, 200) == []


def test_nobody_is_judged_by_a_ledger_that_is_not_complete() -> None:
    meter = serving()
    meter.known = False
    assert meter.minutes(2 * PROVEN_MINUTES, 200) == []


def test_a_counter_that_began_anew_is_not_a_draw() -> None:
    meter = serving()
    meter.minutes(PROVEN_MINUTES - 2, 200)
    meter.joules = 0
    assert meter.minutes(5, 200) == [Finding(SUBJECT, 225_000)]


def test_a_device_that_does_not_tell_its_load_teaches_nothing() -> None:
    meter = serving()
    assert meter.minutes(2 * PROVEN_MINUTES, 200, busy=None) == []


def test_a_claim_that_came_within_the_minute_is_not_charged_with_it() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.running(a_workload("chat"), "n1", [0], bound_at=NOW + 90.0)
    meter = Meter(cluster)
    meter.minutes(2, 400)  # somebody before it
    assert meter.minutes(PROVEN_MINUTES + 2, 200) == [Finding(SUBJECT, 225_000)]

from __future__ import annotations

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.events import EventLimits, EventRecorder, Subject
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.errors import Retryable

pytestmark = pytest.mark.anyio
CHAT = Subject("llmos.dev/v1alpha1", "ModelWorkload", "chat", "ns", "uid-1")


def a_recorder(**limits: float) -> tuple[EventRecorder, FakeCluster, FakeClock]:
    clock = FakeClock()
    port = FakeCluster(clock)
    return EventRecorder(port, clock, instance="op-1", limits=EventLimits(**limits)), port, clock  # type: ignore[arg-type]


async def test_an_event_says_what_who_and_why() -> None:
    recorder, port, _ = a_recorder()
    recorder.record(CHAT, "Normal", Reason.BOUND_POD, "Bound to node-1.", action="Bind")
    await recorder.flush()
    body = port.events[0]
    assert body["reason"] == "BoundPod"
    assert body["regarding"]["uid"] == "uid-1"
    assert body["reportingController"] == "llmos.dev/llmos-operator"
    assert body["note"] == "Bound to node-1."


async def test_the_same_is_said_once_in_a_while() -> None:
    recorder, port, clock = a_recorder(window=300)
    assert recorder.record(CHAT, "Warning", Reason.NO_CAPACITY, "No room.")
    assert not recorder.record(CHAT, "Warning", Reason.NO_CAPACITY, "Still no room.")
    assert recorder.record(CHAT, "Warning", Reason.NO_CAPACITY, "Other cause.", key="other")
    clock.advance(301)
    assert recorder.record(CHAT, "Warning", Reason.NO_CAPACITY, "Still no room.")
    await recorder.flush()
    assert len(port.events) == 3


async def test_a_recreated_object_is_another_one() -> None:
    recorder, _, _ = a_recorder()
    assert recorder.record(CHAT, "Normal", Reason.BOUND_POD, "x")
    assert recorder.record(Subject("v", "k", "chat", "ns", "uid-2"), "Normal", Reason.BOUND_POD, "x")


async def test_a_flood_is_cut_and_counted() -> None:
    recorder, _, clock = a_recorder(burst=10, per_second=2)
    said = [recorder.record(CHAT, "Normal", Reason.BOUND_POD, "x", key=str(i)) for i in range(50)]
    assert sum(said) == 10
    assert recorder.dropped == 40
    clock.advance(2)
    assert sum(recorder.record(CHAT, "Normal", Reason.EVICTED, "x", key=str(i)) for i in range(50)) == 4


async def test_an_event_that_cannot_be_written_is_dropped_and_counted() -> None:
    recorder, port, _ = a_recorder()
    port.fail("create", "events", Retryable("down"))
    recorder.record(CHAT, "Normal", Reason.BOUND_POD, "x")
    recorder.record(CHAT, "Normal", Reason.EVICTED, "x")
    await recorder.flush()
    assert (recorder.written, recorder.dropped) == (1, 1)


async def test_long_names_and_notes_fit_the_api() -> None:
    recorder, port, _ = a_recorder()
    recorder.record(Subject("v", "k", "n" * 253, "ns", "u"), "Normal", Reason.BOUND_POD, "x" * 5000)
    await recorder.flush()
    assert len(port.events[0]["metadata"]["name"]) <= 253
    assert len(port.events[0]["note"]) == 1024


async def test_memory_of_what_was_said_is_bounded() -> None:
    recorder, _, _ = a_recorder(burst=1000, waiting=1000, remembered=10)
    for i in range(100):
        recorder.record(CHAT, "Normal", Reason.BOUND_POD, "x", key=str(i))
    assert len(recorder._said) == 10

"""Calls that do not come back."""

from __future__ import annotations

import threading

from llmos_operator.clock import FakeClock
from llmos_operator.telemetry.sample import Hang
from llmos_operator.telemetry.watchdog import InFlight, hang_seconds


def test_a_call_is_hung_after_two_intervals_so_that_the_third_look_reports_it() -> None:
    for interval in (0.1, 1.0, 10.0):
        assert hang_seconds(interval) + interval <= 3 * interval


def test_only_calls_that_are_still_out_are_hung() -> None:
    clock = FakeClock()
    calls = InFlight(clock.monotonic)
    calls.enter("first", "GPU-a")
    calls.leave()
    calls.enter("second", "GPU-b")
    clock.advance(5.0)
    assert calls.hung(5.0) == {}
    clock.advance(0.1)
    assert calls.hung(5.0) == {threading.get_ident(): Hang("second", "GPU-b", clock.monotonic() - 5.1)}
    calls.leave()
    assert calls.hung(5.0) == {}


def test_a_call_that_may_block_is_late_only_after_its_allowance() -> None:
    clock = FakeClock()
    calls = InFlight(clock.monotonic)
    calls.enter("wait", allowance=5.0)
    clock.advance(6.9)
    assert calls.hung(2.0) == {}
    clock.advance(0.2)
    assert calls.hung(2.0) != {}


def test_each_thread_has_its_own_call() -> None:
    clock = FakeClock()
    calls = InFlight(clock.monotonic)
    entered, go = threading.Event(), threading.Event()

    def other() -> None:
        calls.enter("other", "GPU-b")
        entered.set()
        go.wait(10)
        calls.leave()

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    calls.enter("mine", "GPU-a")
    calls.leave()
    clock.advance(3.0)
    assert thread.ident is not None
    assert [hang.call for hang in calls.hung(2.0).values()] == ["other"]
    assert calls.call_of(thread.ident) == Hang("other", "GPU-b", clock.monotonic() - 3.0)
    go.set()
    thread.join(10)
    assert calls.hung(2.0) == {}
    calls.forget(thread.ident)
    assert calls.call_of(thread.ident) is None

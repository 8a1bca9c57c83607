"""The measuring threads, over a backend a test can stop at will."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest

from llmos_operator.errors import Retryable
from llmos_operator.telemetry.backend import DriverLost
from llmos_operator.telemetry.collector import EVENTS_KEPT, SELF_TEST_ROUNDS, Collector
from llmos_operator.telemetry.sample import DriverInfo, FaultKind, ProcessUse, Sample
from llmos_operator.telemetry.watchdog import InFlight
from tests.support.devices import a_device, a_sample, a_sick_sample, an_xid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo

INTERVAL = 0.02


class Scripted:
    """A backend that does what the test sets."""

    mode = "scripted"

    def __init__(self, in_flight: InFlight, count: int = 2) -> None:
        self.found = tuple(a_device(f"GPU-{index}", index) for index in range(count))
        self.samples: dict[str, Sample] = {}
        self.stuck: dict[str, threading.Event] = {}
        self.lists: list[tuple[str, float]] = []
        self.pending: list[DeviceEvent] = []
        self.refreshed: list[str] = []
        self.trouble: Exception | None = None
        self.event_trouble: Exception | None = None
        self.tested = 0
        self.test_result = ""
        self._in_flight = in_flight

    def open(self) -> DriverInfo:
        return DriverInfo()

    def close(self) -> None:
        for gate in self.stuck.values():
            gate.set()

    def devices(self) -> tuple[DeviceInfo, ...]:
        if self.trouble is not None:
            raise self.trouble
        return self.found

    def sample(self, device: DeviceInfo) -> Sample:
        gate = self.stuck.get(device.uuid)
        if gate is not None:
            self._in_flight.enter("call", device.uuid)
            gate.wait(30)
            self._in_flight.leave()
        return self.samples.get(device.uuid) or a_sample(device.uuid)

    def processes(self, device: DeviceInfo) -> tuple[ProcessUse, ...]:
        self.lists.append((device.uuid, time.monotonic()))
        return (ProcessUse(1, 5, "pod"),)

    def events(self, timeout: float) -> tuple[DeviceEvent, ...]:
        if self.event_trouble is not None:
            raise self.event_trouble
        found, self.pending = tuple(self.pending), []
        if not found:
            time.sleep(min(timeout, 0.005))
        return found

    def refresh(self, uuid: str) -> None:
        self.refreshed.append(uuid)

    def self_test(self) -> str:
        self.tested += 1
        return self.test_result


class Bench:
    def __init__(self, count: int = 2, process_interval: float = INTERVAL) -> None:
        self.in_flight = InFlight()
        self.backend = Scripted(self.in_flight, count)
        self.woken = 0
        self.collector = Collector(
            self.backend,
            self.in_flight,
            interval=INTERVAL,
            process_interval=process_interval,
            monotonic=time.monotonic,
            notify=self._wake,
            event_wait=INTERVAL,
        )

    def _wake(self) -> None:
        self.woken += 1

    def until(self, condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.002)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(**values: object) -> Bench:
        made.append(Bench(**values))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for bench in made:
        bench.backend.close()
        bench.collector.stop()
        assert bench.collector.join(10.0)


def test_each_sample_is_taken_once(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.collector.start()
    bench.until(lambda: bench.collector.figures.rounds > 1, "rounds")
    bench.collector.stop()
    assert bench.collector.join(10.0)
    assert bench.collector.take().samples
    assert bench.collector.take().samples == {}


def test_the_first_take_is_empty_and_later_ones_are_whole(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.collector.take().devices == ()
    bench.collector.start()
    bench.until(lambda: bench.collector.figures.rounds > 1, "rounds")
    seen = bench.collector.take()
    assert [device.uuid for device in seen.devices] == ["GPU-0", "GPU-1"]
    assert set(seen.samples) == {"GPU-0", "GPU-1"}


def test_a_stuck_device_is_left_out_and_its_instances_with_it(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.found = (*bench.backend.found, a_device("MIG-0", parent="GPU-0"))
    bench.backend.stuck["GPU-0"] = threading.Event()
    bench.collector.start()
    hangs: list[str] = []
    bench.until(lambda: hangs.extend(h.device for h in bench.collector.take().hangs) or hangs, "the hang")
    assert set(hangs) == {"GPU-0"}
    taken: set[str] = set()
    bench.until(lambda: taken.update(bench.collector.take().samples) or "GPU-1" in taken, "the other one")
    assert taken == {"GPU-1"}
    bench.backend.stuck.pop("GPU-0").set()
    bench.until(
        lambda: taken.update(bench.collector.take().samples) or {"GPU-0", "MIG-0"} <= taken, "both come back"
    )


def test_threads_never_pile_up(make: Callable[..., Bench]) -> None:
    bench = make(count=3)
    before = threading.active_count()
    for device in bench.backend.found:
        bench.backend.stuck[device.uuid] = threading.Event()
    bench.collector.start()
    for _ in range(60):
        bench.collector.take()
        time.sleep(INTERVAL)
    assert threading.active_count() - before <= len(bench.backend.found) + 2
    assert bench.collector.figures.hangs <= len(bench.backend.found) + 1


def test_what_ends_a_thread_ends_the_owner(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.trouble = ZeroDivisionError("a bug")
    bench.collector.start()
    bench.until(lambda: bench.woken, "the owner is woken")
    with pytest.raises(ZeroDivisionError):
        bench.collector.take()


def test_a_broken_session_is_reported_at_once(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.samples["GPU-0"] = a_sick_sample(FaultKind.DRIVER, "GPU-0")
    bench.collector.start()
    bench.until(lambda: bench.woken, "the owner is woken")
    with pytest.raises(DriverLost, match="session is gone"):
        bench.collector.take()


def test_a_node_where_nothing_answers_is_tested_before_it_is_given_up(make: Callable[..., Bench]) -> None:
    bench = make()
    for device in bench.backend.found:
        bench.backend.samples[device.uuid] = a_sick_sample(FaultKind.UNKNOWN, device.uuid)
    bench.collector.start()
    bench.until(lambda: bench.backend.tested >= 2, "the self-test passes and the agent stays")
    assert bench.collector.figures.rounds >= 2 * SELF_TEST_ROUNDS - 1
    bench.collector.take()
    bench.backend.test_result = "no GPU answers"
    bench.until(lambda: bench.woken, "the self-test fails")
    with pytest.raises(DriverLost, match="no GPU answers"):
        bench.collector.take()


@pytest.mark.parametrize("kind", [FaultKind.LOST, FaultKind.TIMEOUT, FaultKind.RESET_REQUIRED])
def test_devices_that_are_lost_are_no_broken_session(make: Callable[..., Bench], kind: FaultKind) -> None:
    bench = make()
    for device in bench.backend.found:
        bench.backend.samples[device.uuid] = a_sick_sample(kind, device.uuid)
    bench.collector.start()
    bench.until(lambda: bench.collector.figures.rounds > 2 * SELF_TEST_ROUNDS, "rounds")
    bench.collector.take()
    assert bench.backend.tested == 0


def test_process_lists_are_spread_and_no_device_is_asked_too_often(make: Callable[..., Bench]) -> None:
    bench = make(count=8, process_interval=10 * INTERVAL)
    bench.collector.start()
    bench.until(lambda: len(bench.backend.lists) >= 32, "lists")
    by_device: dict[str, list[float]] = {}
    for uuid, at in bench.backend.lists:
        by_device.setdefault(uuid, []).append(at)
    assert len(by_device) == 8
    for times in by_device.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert min(gaps) > 9 * INTERVAL
    assert set(bench.collector.take().processes) == set(by_device)


def test_events_wake_the_owner_and_refresh_their_device(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.collector.start()
    bench.backend.pending = [an_xid(79, "GPU-1"), an_xid(13, "")]
    bench.until(lambda: bench.woken, "the owner is woken")
    bench.until(lambda: bench.backend.refreshed, "the device is read anew")
    assert [event.code for event in bench.collector.take().events] == [79, 13]
    assert bench.backend.refreshed == ["GPU-1"]
    assert bench.collector.take().events == ()


def test_a_storm_of_events_is_bounded_and_counted(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.pending = [an_xid(31, "GPU-0")] * (EVENTS_KEPT + 50)
    bench.collector.start()
    bench.until(lambda: bench.collector.figures.events_dropped == 50, "the rest is dropped")
    assert len(bench.collector.take().events) == EVENTS_KEPT


def test_a_driver_without_events_is_asked_less_and_less_and_samples_go_on(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.event_trouble = Retryable("no events", after=0.01)
    bench.collector.start()
    bench.until(lambda: bench.collector.figures.event_errors >= 3, "tries")
    assert bench.collector.figures.event_errors <= bench.collector.figures.rounds + 3
    bench.backend.event_trouble = None
    bench.backend.pending = [an_xid(48, "GPU-0")]
    bench.until(lambda: bench.collector.take().events, "events again")


def test_a_device_that_goes_takes_its_processes_along(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.collector.start()
    bench.until(lambda: len(bench.collector.take().processes) == 2, "both listed")
    bench.backend.found = bench.backend.found[:1]
    bench.until(lambda: set(bench.collector.take().processes) == {"GPU-0"}, "one left")

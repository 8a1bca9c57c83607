"""Measuring a whole node on a schedule, in threads, so that nobody who asks ever waits for the driver.

One worker thread makes all calls but the wait for events, which has a thread of its own. When the worker is stuck in a
call, it is abandoned: its device is left out, a new worker goes on with the others, and the moment the stuck call
returns the device is measured again. A driver that blocks everything costs one worker a device and no more.

The owner calls :meth:`Collector.take` from its own loop; it only copies and looks, it never blocks.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.errors import LlmosError, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.backend import EVENT_WAIT_SECONDS, DriverLost
from llmos_operator.telemetry.sample import FaultKind
from llmos_operator.telemetry.watchdog import hang_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.telemetry.backend import Backend
    from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo, Hang, ProcessUse, Sample
    from llmos_operator.telemetry.watchdog import InFlight

log = logger(__name__)

EVENTS_KEPT: Final = 1024  # between two calls of take
SELF_TEST_ROUNDS: Final = 10  # rounds without any answer after which the session counts as lost
EVENT_BACK_OFF: Final = 30.0
_SESSION_FAULTS: Final = frozenset({FaultKind.UNKNOWN, FaultKind.DRIVER})


@dataclass(frozen=True, slots=True)
class Round:
    """What is known now. ``samples`` and ``events`` hold only what came since the last take."""

    devices: tuple[DeviceInfo, ...]
    samples: Mapping[str, Sample]
    processes: Mapping[str, tuple[ProcessUse, ...]]
    events: tuple[DeviceEvent, ...]
    hangs: tuple[Hang, ...]


@dataclass(slots=True, eq=False)
class _Worker:
    """A measuring thread. ``done`` once it returned from whatever it was stuck in."""

    thread: threading.Thread | None = None
    hang: Hang | None = None
    enumerating: bool = False
    done: bool = False


@dataclass(slots=True)
class Figures:
    """Counters of the collector, for metrics."""

    rounds: int = 0
    hangs: int = 0
    event_errors: int = 0
    events_dropped: int = 0
    round_seconds: float = 0.0  # of the last round
    process_lists: int = 0


class Collector:
    """Runs a backend. Start it once, call `take` every interval, stop it at the end."""

    def __init__(
        self,
        backend: Backend,
        in_flight: InFlight,
        *,
        interval: float,
        process_interval: float,
        monotonic: Callable[[], float],
        notify: Callable[[], None] = lambda: None,
        event_wait: float = EVENT_WAIT_SECONDS,
    ) -> None:
        """Intervals in seconds; ``notify`` is called from the event thread when an event came.

        ``event_wait`` is how long one wait for events may block, and so how long `join` may take.
        """
        self.figures = Figures()
        self._backend = backend
        self._in_flight = in_flight
        self._interval = interval
        self._process_interval = process_interval
        self._monotonic = monotonic
        self._notify = notify
        self._event_wait = event_wait
        self._stopping = threading.Event()
        self._worker = _Worker()
        self._abandoned: list[_Worker] = []
        self._event_thread: threading.Thread | None = None
        self._devices: tuple[DeviceInfo, ...] = ()
        self._samples: deque[Sample] = deque(maxlen=EVENTS_KEPT)
        self._processes: dict[str, tuple[ProcessUse, ...]] = {}
        self._process_due: dict[str, float] = {}
        self._events: deque[DeviceEvent] = deque(maxlen=EVENTS_KEPT)
        self._silent_rounds = 0
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start measuring."""
        self._start_worker()
        self._event_thread = threading.Thread(target=self._guard, args=(self._wait_for_events,), daemon=True)
        self._event_thread.start()

    def stop(self) -> None:
        """Ask the threads to end. They are daemons: one that is stuck in the driver does not hold the process."""
        self._stopping.set()

    def join(self, seconds: float) -> bool:
        """Wait for the threads; return whether all ended."""
        threads = [self._worker.thread, self._event_thread, *(worker.thread for worker in self._abandoned)]
        for thread in threads:
            if thread is not None:
                thread.join(seconds)
        return not any(thread is not None and thread.is_alive() for thread in threads)

    def take(self) -> Round:
        """Return what is known. Raises :class:`DriverLost` and whatever ended a thread by surprise."""
        if self._failure is not None:
            raise self._failure
        self._replace_stuck_worker()
        # popleft of as many as there are now: other threads may append meanwhile, which is for the next time.
        taken = [self._samples.popleft() for _ in range(len(self._samples))]
        events = tuple(self._events.popleft() for _ in range(len(self._events)))
        hangs = tuple(worker.hang for worker in self._abandoned if worker.hang is not None)
        samples = {sample.uuid: sample for sample in taken}
        return Round(self._devices, samples, dict(self._processes), events, hangs)

    def hung(self) -> int:
        """Return how many driver calls hang now."""
        return len(self._in_flight.hung(hang_seconds(self._interval)))

    def events_stuck(self) -> str:
        """Return "" or that the wait for events hangs: XIDs are no longer heard, samples still come."""
        thread = self._event_thread
        call = self._in_flight.call_of(thread.ident) if thread is not None and thread.ident else None
        late = self._monotonic() - call.since if call is not None else 0.0
        limit = hang_seconds(self._interval)
        return f"{call.call} is {late:.0f} s late" if call is not None and late > limit else ""

    # -- the watching side

    def _replace_stuck_worker(self) -> None:
        self._abandoned = [worker for worker in self._abandoned if not worker.done]
        worker = self._worker
        if worker.thread is None:
            # Every worker allowed is stuck, or nothing was started yet.
            running = self._event_thread is not None and not self._stopping.is_set()
            if running and len(self._abandoned) <= len(self._devices):
                self._start_worker()
            return
        ident = worker.thread.ident if worker.thread is not None else None
        call = self._in_flight.call_of(ident) if ident is not None else None
        if call is None or self._monotonic() - call.since <= hang_seconds(self._interval):
            return
        worker.hang = call
        self.figures.hangs += 1
        log.error("driver call hangs", call=call.call, device=call.device, node_wide=worker.enumerating)
        self._abandoned.append(worker)
        if len(self._abandoned) <= len(self._devices) + 1:
            self._start_worker()
        else:
            self._worker = _Worker()

    def _start_worker(self) -> None:
        worker = _Worker()
        worker.thread = threading.Thread(target=self._guard, args=(lambda: self._work(worker),), daemon=True)
        self._worker = worker
        worker.thread.start()

    def _guard(self, body: Callable[[], None]) -> None:
        """Run a thread's body; keep what ends it for the owner: a dead thread must not look like a quiet one."""
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - re-raised by take() in the owner's loop
            self._failure = error
            self._notify()

    # -- the measuring side

    def _work(self, worker: _Worker) -> None:
        try:
            while not self._stopping.is_set() and worker is self._worker:
                started = self._monotonic()
                self._round(worker)
                self.figures.rounds += 1
                self.figures.round_seconds = self._monotonic() - started
                self._stopping.wait(max(0.0, started + self._interval - self._monotonic()))
        finally:
            worker.done = True
            self._in_flight.forget(threading.get_ident())

    def _round(self, worker: _Worker) -> None:
        stuck = {
            other.hang.device for other in self._abandoned if other.hang is not None and other.hang.device
        }
        if not any(other.enumerating for other in self._abandoned):
            worker.enumerating = True
            devices = self._backend.devices()
            worker.enumerating = False
            if worker is not self._worker:
                return
            self._devices = devices
        answered: list[Sample] = []
        for device in self._devices:
            if device.uuid in stuck or device.parent in stuck:
                continue
            sample = self._backend.sample(device)
            if worker is not self._worker:
                return  # abandoned in this call: the reading is old, and somebody else measures now
            answered.append(sample)
            self._samples.append(sample)
        if answered and not stuck:
            self._check_session(answered)
        self._list_processes(worker, stuck)

    def _check_session(self, samples: list[Sample]) -> None:
        """Find out whether the driver's session is broken, as opposed to devices.

        A container that lost its device files gets "unknown error" for every call until it is started anew.
        """
        faults = [fault for sample in samples for fault in sample.faults]
        if any(fault.kind is FaultKind.DRIVER for fault in faults):
            raise DriverLost(
                f"the driver's session is gone: {faults[0].call} returned error {faults[0].code}"
            )
        silent = all(sample.faults and not _tells(sample) for sample in samples)
        if not silent or not all(fault.kind in _SESSION_FAULTS for fault in faults):
            self._silent_rounds = 0
            return
        self._silent_rounds += 1
        if self._silent_rounds >= SELF_TEST_ROUNDS:
            why = self._backend.self_test()
            if why:
                raise DriverLost(f"no device answered for {self._silent_rounds} rounds: {why}")
            self._silent_rounds = 0

    def _list_processes(self, worker: _Worker, stuck: set[str]) -> None:
        """List processes of devices that are due, as few a round as the interval allows: it is the expensive call."""
        now = self._monotonic()
        present = {device.uuid for device in self._devices}
        self._process_due = {uuid: at for uuid, at in self._process_due.items() if uuid in present}
        self._processes = {uuid: uses for uuid, uses in self._processes.items() if uuid in present}
        due = [
            device
            for device in self._devices
            if self._process_due.get(device.uuid, 0.0) <= now and not {device.uuid, device.parent} & stuck
        ]
        due.sort(key=lambda device: self._process_due.get(device.uuid, 0.0))
        for device in due[: math.ceil(len(self._devices) * self._interval / self._process_interval)]:
            self._process_due[device.uuid] = now + self._process_interval
            uses = self._backend.processes(device)
            if worker is not self._worker:
                return
            self.figures.process_lists += 1
            if uses is None:
                self._processes.pop(device.uuid, None)
            else:
                self._processes[device.uuid] = uses

    def _wait_for_events(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                events = self._backend.events(self._event_wait)
            except DriverLost:
                raise
            except LlmosError as error:
                failures += 1
                self.figures.event_errors += 1
                after = error.after if isinstance(error, Retryable) else 1.0
                log.warning("no driver events", error=str(error), failures=failures)
                self._stopping.wait(min(after * 2 ** min(failures - 1, 5), EVENT_BACK_OFF))
                continue
            failures = 0
            for event in events:
                if len(self._events) == EVENTS_KEPT:
                    self.figures.events_dropped += 1
                self._events.append(event)
                if event.uuid:
                    self._backend.refresh(event.uuid)
            if events:
                self._notify()


def _tells(sample: Sample) -> bool:
    return any(
        value is not None
        for value in (sample.memory_used_bytes, sample.utilization_percent, sample.temperature_celsius)
    )

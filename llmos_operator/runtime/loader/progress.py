"""Stages of a load: bytes, speed, time left, and how long each took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.runtime.ipc.messages import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.api.runtime.messages import RuntimeState
    from llmos_operator.clock import Clock

_EMIT_SECONDS = 0.2
_SPEED_SECONDS = 5.0  # speed is that of about the last so many seconds


class Stages:
    """The progress of one load. ``emit`` gets a message at each change of stage and then at most five times a second."""

    def __init__(self, clock: Clock, emit: Callable[[Progress], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._stage: RuntimeState | None = None
        self._began = self._last_emit = self._mark_at = 0.0
        self._done = self._total = self._mark_done = 0
        self._over: dict[str, float] = {}

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """Durations of the stages that are over, by stage."""
        return tuple(self._over.items())

    def enter(self, stage: RuntimeState, total_bytes: int = 0) -> None:
        """Begin a stage (ends the one before). Entering the current stage again sets its total."""
        if stage is not self._stage:
            self.leave()
            self._stage = stage
            self._began = self._mark_at = self._clock.monotonic()
            self._done = self._mark_done = 0
        self._total = total_bytes
        self._send()

    def leave(self) -> None:
        """End the current stage."""
        if self._stage is not None:
            took = self._clock.monotonic() - self._began
            self._over[self._stage.value] = self._over.get(self._stage.value, 0.0) + took
            self._stage = None

    def advance(self, count: int) -> None:
        """Note ``count`` more bytes done."""
        self._done += count
        if self._clock.monotonic() - self._last_emit >= _EMIT_SECONDS:
            self._send()

    def at(self, done: int, total: int) -> None:
        """Note absolute progress."""
        self._total = total
        self.advance(done - self._done)

    def _send(self) -> None:
        if self._stage is None:
            return
        now = self._last_emit = self._clock.monotonic()
        elapsed = now - self._mark_at
        speed = int((self._done - self._mark_done) / elapsed) if elapsed > 0 else 0
        left = max(0, self._total - self._done)
        eta = int(left / speed) if speed > 0 and self._total else None
        self._emit(Progress(self._stage, self._done, self._total, speed, eta, self.seconds))
        if elapsed > _SPEED_SECONDS:
            self._mark_at, self._mark_done = now, self._done

"""Time as an argument: the only module of the package that reads the wall clock.

Decisions, back-offs and deadlines take a :class:`Clock`; tests and the simulator pass
:class:`FakeClock` and move time themselves.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Source of time. Wall time is for people and the API, monotonic time for durations."""

    def now(self) -> float:
        """Return wall time in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return wall time in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._jumped = 0.0

    def now(self) -> float:
        """Return the current fake time in seconds since the epoch."""
        return self._now + self._jumped

    def monotonic(self) -> float:
        """Return the same fake time, but for what :meth:`jump` set the wall clock to."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move time forward (or back, for clock-jump tests) by ``seconds``."""
        self._now += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as NTP or a person does; monotonic time goes on as it did."""
        self._jumped += seconds


def rfc3339(seconds: float) -> str:
    """Format epoch ``seconds`` as the API writes times: UTC, whole seconds, ``Z``."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> float:
    """Parse an API timestamp (with or without fraction) to epoch seconds."""
    return datetime.fromisoformat(text).timestamp()

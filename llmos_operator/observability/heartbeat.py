"""Whether a loop still turns. Apart from the health server, because the runtime serves its probes itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Heartbeat:
    """Age of the last turn of a loop, as a liveness check."""

    def __init__(self, limit: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`limit` is the largest healthy age in seconds."""
        self._limit = limit
        self._monotonic = monotonic
        self._last = monotonic()

    def beat(self) -> None:
        """Note that the loop turned."""
        self._last = self._monotonic()

    def check(self) -> str:
        """Return "" or how long the loop has been standing."""
        age = self._monotonic() - self._last
        return (
            "" if age <= self._limit else f"no turn of the loop for {age:.0f} s (limit {self._limit:.0f} s)"
        )

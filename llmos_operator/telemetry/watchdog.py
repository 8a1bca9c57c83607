"""Calls into the driver that have not come back yet, visible from outside the thread that made them.

A hanging NVML call returns no error and cannot be cancelled: the thread is stuck in the kernel. So every call is
entered here before it is made and left after it, and whoever looks from another thread sees what is in flight since
when. Nothing here blocks or takes a lock: entering and leaving are one dictionary store each (atomic in CPython),
because they happen some hundred times a second.
"""

from __future__ import annotations

import time
from threading import get_ident
from typing import TYPE_CHECKING

from llmos_operator.telemetry.sample import Hang

if TYPE_CHECKING:
    from collections.abc import Callable

    _Call = tuple[str, str, float]

HANG_INTERVALS = 2  # a call is hung after this many sample intervals, so it is reported within the third


def hang_seconds(interval: float) -> float:
    """Return the age in seconds at which a call counts as hung when samples are due every ``interval``."""
    return HANG_INTERVALS * interval


class InFlight:
    """Which thread is in which call since when."""

    __slots__ = ("_calls", "_monotonic")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._calls: dict[int, _Call | None] = {}

    def enter(self, call: str, device: str = "", allowance: float = 0.0) -> None:
        """Note that this thread enters ``call``, which may rightly block for ``allowance`` seconds."""
        self._calls[get_ident()] = (call, device, self._monotonic() + allowance)

    def leave(self) -> None:
        """Note that this thread's call came back."""
        self._calls[get_ident()] = None

    def forget(self, thread: int) -> None:
        """Drop a thread that has ended."""
        self._calls.pop(thread, None)

    def call_of(self, thread: int) -> Hang | None:
        """Return what ``thread`` is in, or None."""
        call = self._calls.get(thread)
        return None if call is None else Hang(call=call[0], device=call[1], since=call[2])

    def hung(self, limit: float) -> dict[int, Hang]:
        """Return the calls older than ``limit`` seconds, by thread."""
        now = self._monotonic()
        return {
            thread: Hang(call=call[0], device=call[1], since=call[2])
            for thread, call in self._calls.copy().items()
            if call is not None and now - call[2] > limit
        }

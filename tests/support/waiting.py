"""Waiting for what happens in other processes: poll with a deadline, never sleep and hope."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def eventually(check: Callable[[], T], what: str = "the condition", timeout: float = 90.0) -> T:
    """Return the first true value of ``check()``; fail naming ``what`` when there is none in ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        value = check()
        if value:
            return value
        now = time.monotonic()
        assert now < deadline, f"not within {timeout:g} s: {what}"
        # A check may be a process: it has half of the time at most.
        time.sleep(min(1.0, max(0.05, now - began)))

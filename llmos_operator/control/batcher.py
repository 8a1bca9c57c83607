"""When to plan: at once when nothing else is coming, else when events have paused, at most a second later.

One workload applied to a quiet cluster must not wait for a batch; a thousand of them must not cause a thousand plans.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Batcher:
    """Gathers triggers into batches. `quiet` and `longest` are seconds."""

    def __init__(
        self, *, quiet: float = 0.05, longest: float = 1.0, monotonic: Callable[[], float] | None = None
    ) -> None:
        self._quiet = quiet
        self._longest = longest
        self._monotonic = monotonic or (lambda: asyncio.get_running_loop().time())
        self._event = asyncio.Event()
        self._first = 0.0  # of the open batch
        self._last = float("-inf")
        self._calm = True  # nothing had come for `quiet` seconds when the open batch began

    def trigger(self) -> None:
        """Say that something changed that a plan depends on."""
        now = self._monotonic()
        if not self._event.is_set():
            self._first = now
            self._calm = now - self._last >= self._quiet
            self._event.set()
        self._last = now

    async def wait(self, seconds: float) -> bool:
        """Return True when a batch is complete, False when nothing came for ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        await asyncio.sleep(0)  # let what arrived together with the first event in
        while not self._calm:
            now = self._monotonic()
            due = min(self._last + self._quiet, self._first + self._longest)
            if due <= now:
                break
            await asyncio.sleep(due - now)
        self._event.clear()
        return True

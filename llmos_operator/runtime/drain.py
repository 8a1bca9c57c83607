"""Who is inside, and how the last ones get out.

Draining has three steps: the runtime turns not ready but still takes requests, because endpoints are slow to follow;
then it declines new ones, which the gateway sends elsewhere; what is left at the deadline is ended with finish_reason
"abort" and what has been generated so far.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmos_operator.runtime.answers import unavailable
from llmos_operator.runtime.outputs import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.errors import LlmosError

DECLINED = "draining"
END_MARGIN_SECONDS = 5.0  # kept of the grace time for the last answers, the engine's end and our own


class Interruptible(Protocol):
    """Something that makes an answer and can be told to end."""

    def interrupt(self, error: LlmosError) -> None:
        """End with this error."""
        ...


@dataclass(slots=True)
class Drain:
    """State of draining, and the requests it must wait for."""

    monotonic: Callable[[], float]
    draining: bool = False  # not ready any more
    declining: bool = False  # takes no new requests
    inside: int = 0
    _outputs: set[Interruptible] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        """A request begins. Raises ApiError (503) if it must go elsewhere."""
        if self.declining:
            raise unavailable("draining", "This replica is shutting down.", retry_after=1.0, refused=DECLINED)
        self.inside += 1

    def leave(self) -> None:
        """A request is over, its last byte handed out."""
        self.inside -= 1
        if not self.inside:
            self._empty.set()

    def track(self, outputs: Interruptible) -> None:
        """These outputs are to be cut at the deadline."""
        self._outputs.add(outputs)

    def forget(self, outputs: Interruptible) -> None:
        """These outputs are over."""
        self._outputs.discard(outputs)

    async def run(self, *, linger: float, deadline: float, abort_seconds: float = 2.0) -> bool:
        """Drain; return whether everybody finished.

        Requests are still taken for ``linger`` seconds, but never beyond ``deadline`` (monotonic seconds), when the
        rest is cut and gets ``abort_seconds`` to be written out.
        """
        self.draining = True
        await asyncio.sleep(max(0.0, min(linger, deadline - self.monotonic())))
        self.declining = True
        if await self.emptied(deadline):
            return True
        for outputs in list(self._outputs):
            outputs.interrupt(Stopping("the runtime is shutting down"))
        await self.emptied(self.monotonic() + abort_seconds)
        return False

    def resume(self) -> None:
        """Take requests again (a drain that was ordered for a swap and is over)."""
        self.draining = self.declining = False

    async def emptied(self, deadline: float) -> bool:
        """Wait until no request is inside, at most until ``deadline`` (monotonic seconds); return whether none is."""
        while self.inside:
            self._empty.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - self.monotonic())):
                    await self._empty.wait()
            except TimeoutError:
                return False
        return True

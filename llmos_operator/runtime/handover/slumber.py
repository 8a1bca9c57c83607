"""Sleep by vLLM's own sleep mode, https://docs.vllm.ai/en/latest/features/sleep_mode/ .

Level 1 keeps the weights in host memory. Level 2 drops them; to wake from it the weights' memory is taken back, filled
from the files, and then the KV cache's.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.answers import ApiError, unavailable
from llmos_operator.runtime.handover.link import EngineLost, Refused

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.runtime.drain import Drain
    from llmos_operator.runtime.handover.host import VllmHost
    from llmos_operator.runtime.handover.link import Link
    from llmos_operator.runtime.settings import RuntimeSettings

log = logger(__name__)

_DROPPED = 2  # the level at which the weights are gone
_SECONDS = 300.0  # weights of hundreds of gigabytes go over a bus


class Slumber:
    """Puts a vLLM to sleep and wakes it, one order at a time."""

    def __init__(self, settings: RuntimeSettings, link: Link, drain: Drain, clock: Clock) -> None:
        self._settings = settings
        self._link = link
        self._drain = drain
        self._clock = clock
        self.level = 0  # it sleeps at; 0: it does not
        self._falling: asyncio.Task[None] | None = None
        self._rising: asyncio.Task[None] | None = None

    @property
    def dozing(self) -> bool:
        """Whether it is about to sleep: nothing new is taken."""
        return self._falling is not None

    def sleep(self, host: VllmHost, level: int, timeout_seconds: float) -> None:
        """Begin to sleep. Raises ApiError: 409 where it was not started for that, 503 while it does not serve."""
        if self._falling is not None or host.state_now is RuntimeState.ASLEEP:
            return
        if not self._settings.engine_sleeps:
            text = "This vLLM was started without sleep mode: it has no shared device."
            raise ApiError(HTTPStatus.CONFLICT, "unsupported", text)
        if host.state_now is not RuntimeState.READY or self._drain.draining:
            text = f"The model is {host.state().value}, not Ready."
            raise unavailable("engine_unavailable", text, retry_after=2.0, refused="loading")
        log.info("going to sleep", level=level, inside=self._drain.inside)
        self._falling = asyncio.create_task(self._fall(host, level, timeout_seconds))

    async def _fall(self, host: VllmHost, level: int, timeout_seconds: float) -> None:
        try:
            await self._drain.emptied(self._clock.monotonic() + timeout_seconds)
            await self._link.call("POST", f"/sleep?level={level}", seconds=_SECONDS)
            self.level = level
            host.state_now = RuntimeState.ASLEEP
        except (EngineLost, Refused) as error:
            log.warning("did not go to sleep", error=error)  # the operator sees it, and takes the next step
        finally:
            self._falling = None

    def wake(self, host: VllmHost) -> None:
        """Begin to wake; nothing happens where it does not sleep."""
        if self._falling is not None:
            self._falling.cancel()
        if host.state_now is RuntimeState.ASLEEP and self._rising is None:
            self._rising = asyncio.create_task(self._rise(host))

    async def ensure_awake(self) -> None:
        """Wake a vLLM that sleeps though this process does not know of it: it has outlived another.

        Whoever counts on its sleep tells it again. Raises EngineLost and Refused.
        """
        if not self._settings.engine_sleeps:
            return
        if _sleeps(await self._link.call("GET", "/is_sleeping")):
            log.info("vLLM sleeps, nobody here knows since when")
            await self._rouse(_DROPPED)

    async def _rise(self, host: VllmHost) -> None:
        began = self._clock.monotonic()
        try:
            await self._rouse(self.level)
            if host.state_now is RuntimeState.ASLEEP:
                self.level = 0
                host.woken(self._clock.monotonic() - began)
        except (EngineLost, Refused) as error:
            log.warning("did not wake up", error=error)  # the operator asks again
        finally:
            self._rising = None

    async def _rouse(self, level: int) -> None:
        """Give the orders that wake vLLM from a level."""
        if level < _DROPPED:
            await self._link.call("POST", "/wake_up", seconds=_SECONDS)
            return
        await self._link.call("POST", "/wake_up?tags=weights", seconds=_SECONDS)
        await self._link.call("POST", "/collective_rpc", {"method": "reload_weights"}, seconds=_SECONDS)
        await self._link.call("POST", "/wake_up?tags=kv_cache", seconds=_SECONDS)


def _sleeps(raw: bytes) -> bool:
    try:
        told = json.loads(raw)
    except ValueError:
        return False
    return isinstance(told, dict) and bool(told.get("is_sleeping"))

"""Looks at vLLM twice a second: whether it came up, went down, or says nothing any more."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.handover import fetching, figures
from llmos_operator.runtime.handover.link import EngineLost, Health, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.runtime.handover.host import VllmHost

log = logger(__name__)

_UP = (RuntimeState.READY, RuntimeState.ASLEEP)
_COMING = (RuntimeState.LOADING, RuntimeState.WARMING)


class Watch:
    """Follows one vLLM and tells its host."""

    def __init__(self, host: VllmHost, stuck_seconds: float, monotonic: Callable[[], float]) -> None:
        """``stuck_seconds`` of silence and its container is to be started again."""
        self._host = host
        self._stuck_seconds = stuck_seconds
        self._monotonic = monotonic
        self._silent_since: float | None = None
        self._starts = 0

    async def look(self) -> None:
        """Look once, and tell the host what has changed."""
        host = self._host
        if host.state_now is RuntimeState.FAILED:
            return
        health = await host.link.health()
        if health is Health.SILENT:
            self._silent()
            return
        self._silent_since = None
        if health is Health.DOWN:
            if host.state_now in _UP:
                self._lost("vLLM has ended; it is started again")
            return
        started = fetching.starts(host.folder)
        if host.state_now in _UP and started != self._starts:
            self._lost("vLLM has ended and was started again")  # faster than anybody looked
        try:
            await (self._took_up(started) if host.state_now in _COMING else self._read())
        except (EngineLost, Refused) as error:
            log.info("vLLM does not answer yet", error=error)

    async def _took_up(self, started: int) -> None:
        host = self._host
        listed = _listed(await host.link.call("GET", "/v1/models"))
        if host.settings.model_name not in listed:
            text = f"vLLM does not list the model {host.settings.model_name!r} it was started with"
            raise Refused(HTTPStatus.BAD_GATEWAY, text)
        await host.slumber.ensure_awake()
        self._starts = started
        await host.serve(listed[host.settings.model_name], frozenset(listed))

    async def _read(self) -> None:
        self._host.observe(figures.read(await self._host.link.call("GET", "/metrics")))

    def _lost(self, why: str) -> None:
        """Note that vLLM is gone. No failure is reported: it is started where it is, which is quicker than elsewhere."""
        log.warning("vLLM is gone", detail=why, starts=self._starts)
        self._host.begin()

    def _silent(self) -> None:
        """Note silence. While it loads it may well be busy; once it served, its liveness probe is told."""
        if self._host.state_now not in _UP:
            return
        now = self._monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since >= self._stuck_seconds:
            (self._host.folder / fetching.STUCK).touch()
            self._silent_since = None
            self._lost(f"vLLM said nothing for {self._stuck_seconds:.0f} s; it is started again")


def _listed(raw: bytes) -> dict[str, int]:
    """Return the context of each model and adapter in vLLM's list."""
    try:
        return {str(one["id"]): int(one.get("max_model_len") or 0) for one in json.loads(raw)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(HTTPStatus.BAD_GATEWAY, "vLLM's list of models cannot be read") from error

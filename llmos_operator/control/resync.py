"""The net under all watches: every half minute a fresh list of versions is compared with what is known.

A watch can lose events (a proxy, a bug, an event dropped in kopf). Whatever the list shows and no watch has told within
a second is repaired, counted, and for a reflector of our own the watch is begun anew. Repair is level-triggered: it
does not matter which event was lost, or why.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from llmos_operator.cluster.mirror import Known, ObjectKey
    from llmos_operator.cluster.reflector import Reflector
    from llmos_operator.control.metrics import OperatorMetrics

log = logger(__name__)

SETTLE_SECONDS = 1.0  # within which a watch may still bring what a list shows


@dataclass(frozen=True, slots=True)
class Source:
    """One kind to compare. `every` is in rounds; `watched` says that the reflector itself watches (else kopf does)."""

    reflector: Reflector
    every: int = 1
    watched: bool = True


class Resync:
    """Compares lists with mirrors, at an interval and when asked to."""

    def __init__(
        self,
        sources: Sequence[Source],
        metrics: OperatorMetrics,
        *,
        interval: float,
        begin: Callable[[], int],
        after: Callable[[int], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`after` is called when a round over all sources succeeded, with what `begin` returned at its start."""
        self._sources = sources
        self._metrics = metrics
        self._interval = interval
        self._begin = begin
        self._after = after
        self._sleep = sleep
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Compare everything soon: a connection came back, or this process may write again."""
        self._asked.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        turn = 0
        while True:
            asked = await self._wait()
            turn += 1
            due = [source for source in self._sources if asked or turn % source.every == 0]
            token = self._begin()
            complete = await self._round(due)
            if complete and len(due) == len(self._sources):
                self._after(token)
            elif asked and not complete:
                await self._sleep(SETTLE_SECONDS)
                self._asked.set()

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(self._interval):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _round(self, due: Sequence[Source]) -> bool:
        """Compare each source. Returns whether all could be listed."""
        lists = []
        for source in due:
            try:
                lists.append((source, *await source.reflector.versions()))
            except LlmosError as error:
                self._failed(source, error)
        await self._sleep(SETTLE_SECONDS)
        complete = len(lists) == len(due)
        for source, listed, version in lists:
            try:
                await self._compare(source, listed, version)
            except LlmosError as error:
                self._failed(source, error)
                complete = False
            await asyncio.sleep(0)
        return complete

    def _failed(self, source: Source, error: LlmosError) -> None:
        log.warning("resync could not list", kind=source.reflector.mirror.kind.kind, error=error)

    async def _compare(self, source: Source, listed: Mapping[ObjectKey, Known], version: int) -> None:
        mirror = source.reflector.mirror
        was_synced = mirror.synced
        if mirror.behind(listed):
            repaired, _ = await source.reflector.refill()
        else:
            repaired = mirror.settle(listed, version)
        if not repaired or not was_synced:
            return
        mirror.repaired += repaired
        self._metrics.repaired.labels(mirror.kind.kind).inc(repaired)
        log.warning("a watch had lost changes; repaired", kind=mirror.kind.kind, changes=repaired)
        if source.watched:
            source.reflector.relist()

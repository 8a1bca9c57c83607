"""Keeps the last cycles as files, so that a decision somebody asks about can be made again elsewhere.

A file is written beside the loop, never in it; while one is being written the next cycle is left out rather than
waited for. A cycle that decides nothing new is not kept. Without a folder in the settings nothing is kept at all.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmos_operator import __version__
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.recording import Recording, dump, plan_document

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.plan import Plan, Wait
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot

log = logger(__name__)

_MILLISECONDS: Final = 1000


class CycleRecorder:
    """Writes `cycle-<time of the plan in milliseconds>.json` into a folder and keeps the newest of them."""

    def __init__(self, folder: str, kept: int, policy: Policy) -> None:
        self._folder = Path(folder)
        self._kept = kept
        self._policy = policy
        self._waits: tuple[Wait, ...] | None = None  # of the plan before
        self._writing: asyncio.Task[None] | None = None

    def take(self, snapshot: Snapshot, plan: Plan, prices: Prices | None = None) -> None:
        """Keep a cycle."""
        news = bool(plan.actions) or plan.waits != self._waits
        self._waits = plan.waits
        if news and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write(snapshot, plan, prices))

    async def flush(self) -> None:
        """Wait until what is being written has been written."""
        if self._writing is not None:
            await self._writing

    async def _write(self, snapshot: Snapshot, plan: Plan, prices: Prices | None) -> None:
        try:
            await asyncio.to_thread(self.write, snapshot, plan, prices)
        except OSError as error:
            log.warning("cycle not recorded", folder=str(self._folder), error=error)
        except Exception:  # a defect in the record must not be silent, nor end the loop
            log.exception("cycle not recorded", folder=str(self._folder))

    def write(self, snapshot: Snapshot, plan: Plan, prices: Prices | None = None) -> Path:
        """Write one file and take the oldest away; return its path. Raises OSError."""
        made = Recording(snapshot, self._policy, plan.now, prices, plan_document(plan))
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"cycle-{round(plan.now * _MILLISECONDS):015d}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(dump(made, __version__), encoding="utf-8")
        unfinished.replace(path)
        for old in sorted(self._folder.glob("cycle-*.json"))[: -self._kept]:
            old.unlink(missing_ok=True)
        return path

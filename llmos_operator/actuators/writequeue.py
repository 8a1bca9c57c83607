"""The one way to the API server for writes: bounded, ordered by rank, fenced.

Decisions are handed over as jobs and carried out while the next cycle already plans. Jobs of a lower rank number go
first (evictions before binds before status), equal ranks in the order they came. A job that has to be tried again later
waits outside of the slots (`submit_after`). A job with the key of one that still
waits replaces it. Right before a job starts, the fence is asked: a former leader's jobs are dropped, not run.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logger(__name__)


class Rank(IntEnum):
    """Order of jobs."""

    EVICT = 0
    RETIRE = 1
    BIND = 2
    SUPPORT = 3  # services, profiles
    STATUS = 4
    SUMMARY = 5  # ledger and queue summaries


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of writing. `run` handles its own API errors; what it raises ends the process."""

    rank: Rank
    key: str
    run: Callable[[], Awaitable[None]]
    dropped: Callable[[], None] = lambda: (
        None
    )  # called instead of run: replaced, or this process may not write


class WriteQueue:
    """Runs jobs, at most ``width`` at a time and never two of one key, while ``allowed()``."""

    def __init__(
        self,
        width: int,
        allowed: Callable[[], bool],
        *,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """`later` calls a function after so many seconds; the running loop's if not given."""
        self.done = 0
        self.refused = 0  # by the fence
        self._width = width
        self._allowed = allowed
        self._heap: list[tuple[int, int, str]] = []  # rank, sequence, key; stale entries are skipped
        self._waiting: dict[str, tuple[int, Job]] = {}
        self._running: set[str] = set()
        self._delayed: set[int] = set()  # sequences of jobs whose time has not come
        self._later = later or (lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call))
        self._sequence = itertools.count()
        self._entries = asyncio.Semaphore(0)  # counts entries of the heap
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Jobs waiting or running."""
        return len(self._waiting) + len(self._running)

    def holds(self, key: str) -> bool:
        """Return whether a job of this key waits or runs."""
        return key in self._waiting or key in self._running

    def submit(self, job: Job) -> None:
        """Queue a job; one of the same key that still waits is replaced."""
        self._push(job.rank, self._take(job), job.key)

    def submit_after(self, seconds: float, job: Job) -> None:
        """Queue a job that may start only ``seconds`` from now; it counts as waiting meanwhile but holds no slot."""
        sequence = self._take(job)
        self._delayed.add(sequence)

        def due() -> None:
            self._delayed.discard(sequence)
            self._push(job.rank, sequence, job.key)

        self._later(seconds, due)

    def _take(self, job: Job) -> int:
        sequence = next(self._sequence)
        replaced = self._waiting.get(job.key)
        if replaced is not None:
            replaced[1].dropped()
        self._waiting[job.key] = (sequence, job)
        self._idle.clear()
        return sequence

    def _push(self, rank: int, sequence: int, key: str) -> None:
        heapq.heappush(self._heap, (rank, sequence, key))
        self._entries.release()

    async def idle(self) -> None:
        """Return when nothing waits or runs."""
        await self._idle.wait()

    async def run(self) -> None:
        """Work until cancelled. A job that raises ends this, and with it the process."""
        async with asyncio.TaskGroup() as group:
            for index in range(self._width):
                group.create_task(self._work(), name=f"write-{index}")

    async def _work(self) -> None:
        while True:
            await self._entries.acquire()
            _, sequence, key = heapq.heappop(self._heap)
            waiting = self._waiting.get(key)
            if waiting is None or waiting[0] != sequence or key in self._running:
                continue  # replaced since, or the same key is being written: its end pushes the new one
            del self._waiting[key]
            await self._carry_out(waiting[1])

    async def _carry_out(self, job: Job) -> None:
        self._running.add(job.key)
        try:
            if self._allowed():
                await job.run()
                self.done += 1
            else:
                self.refused += 1
                job.dropped()
        finally:
            self._running.discard(job.key)
            again = self._waiting.get(job.key)
            if again is not None and again[0] not in self._delayed:
                self._push(again[1].rank, again[0], job.key)
            if not len(self):
                self._idle.set()

"""Prices for placement, made beside decisions: read off the store now and then, solved in a process of its own.

A cycle takes the newest prices there are and never waits for any. It is the scheduler that says when they are too old
(`scheduler.cycle.usable`); then, and as long as too little has been asked for to know what will be, best fit decides.
"""

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from llmos_operator.control.solver import Answer, Question
from llmos_operator.errors import Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.outlook import mix_of
from llmos_operator.scheduler.shares import kinds_of, stock_of
from llmos_operator.scheduler.table import NodeTable

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from llmos_operator.clock import Clock
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.settings import PriceSettings
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store


log = logger(__name__)

_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_LONGEST_LINE: Final = 16 << 20  # bytes; a shape with its price takes about 50
_COMMAND: Final = "from llmos_operator.control.solver import main; main()"


class Result(StrEnum):
    """What became of one look at the store."""

    SOLVED = "solved"
    UNCHANGED = "unchanged"  # nothing happened since the last prices, and they are not old
    TOO_FEW = "too-few"  # requests to know a mix from
    FAILED = "failed"  # the solver gave up or died
    LATE = "late"  # it took longer than it may


class SolverLost(Retryable):
    """The solver's process ended instead of answering."""


class Solves(Protocol):
    """Answers questions; may be slow, may fail."""

    async def solve(self, question: Question) -> Answer:
        """Return the answer to one question. Raises SolverLost."""
        ...

    async def close(self) -> None:
        """End at once what is under way."""
        ...


class SolverProcess:
    """`control.solver` as a child process, started with the first question and again after it was lost."""

    def __init__(self) -> None:
        self._process: Process | None = None

    async def solve(self, question: Question) -> Answer:
        """Return the answer to one question. Raises SolverLost. Only one question at a time."""
        try:
            process = self._process or await self._start()
        except OSError as error:  # no process, memory or descriptor to be had
            raise SolverLost(f"the solver cannot be started: {error}") from error
        if process.stdin is None or process.stdout is None:
            raise SolverLost("the solver has no streams")
        try:
            process.stdin.write(await asyncio.to_thread(question.line))
            await process.stdin.drain()
            line = await process.stdout.readuntil()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            await self.close()
            raise SolverLost(f"the solver's process ended with status {process.returncode}") from error
        try:
            return await asyncio.to_thread(Answer.to, question, line)
        except (KeyError, TypeError, ValueError) as error:
            await self.close()
            raise SolverLost(f"the solver's answer cannot be read: {error}") from error

    async def close(self) -> None:
        """End the process at once."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def _start(self) -> Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            limit=_LONGEST_LINE,
        )
        return self._process


class Pricing:
    """Keeps the prices of what the store holds; `current` is what a cycle takes."""

    def __init__(
        self,
        *,
        store: Store,
        policy: Policy,
        settings: PriceSettings,
        metrics: OperatorMetrics,
        clock: Clock,
        solver: Solves,
        may_act: Callable[[], bool],
    ) -> None:
        self._store = store
        self._policy = policy
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._solver = solver
        self._may_act = may_act
        self._table = NodeTable()  # its own: the loop's belongs to the thread that plans
        self._version = -1
        self._current: Prices | None = None

    def current(self) -> Prices | None:
        """Return the newest prices, None before the first and while nothing is known to price."""
        return self._current

    async def run(self) -> None:
        """Renew prices until cancelled. Returns at once where the settings want none."""
        if not self._settings.enabled:
            return
        try:
            while True:
                if self._may_act():
                    await self._try()
                await asyncio.sleep(self._settings.interval)
        finally:
            await self._solver.close()

    async def _try(self) -> None:
        """Renew; a defect in here must not end the leader's other work, which goes on without prices."""
        try:
            await self.renew()
        except Exception:
            self._count(Result.FAILED)
            log.exception("no prices, the former ones stay")

    async def renew(self) -> Result:
        """Look at the store once, and make prices if what they are made from has changed."""
        snapshot, now = self._store.snapshot(), self._clock.now()
        if snapshot.version == self._version and not self._ages(now):
            return self._count(Result.UNCHANGED)
        question = await asyncio.to_thread(self._question, snapshot, now)
        if sum(question.mix.values()) < self._settings.least_requests:
            self._use(None, snapshot.version)
            return self._count(Result.TOO_FEW)
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._settings.solve_budget):
                answer = await self._solver.solve(question)
        except TimeoutError:
            await self._solver.close()
            log.warning("prices took too long, the former ones stay", seconds=self._settings.solve_budget)
            return self._count(Result.LATE)
        except SolverLost as error:
            log.warning("no prices, the former ones stay", error=str(error))
            return self._count(Result.FAILED)
        finally:
            self._metrics.price_seconds.observe(max(0.0, self._clock.monotonic() - started))
        if answer.error:
            log.warning("no prices, the former ones stay", error=answer.error)
            return self._count(Result.FAILED)
        self._use(answer.prices, snapshot.version)
        return self._count(Result.SOLVED)

    def _question(self, snapshot: Snapshot, now: float) -> Question:
        """Return what to ask. Runs in a thread: the first time it reads every node and workload."""
        self._table.sync(snapshot.nodes)
        kinds = kinds_of(self._table)
        return Question(stock_of(self._table, kinds), dict(mix_of(snapshot, self._policy, kinds)), kinds, now)

    def _ages(self, now: float) -> bool:
        """Return whether prices in use have lived half of what they may: in a quiet cluster they are made again."""
        return self._current is not None and abs(now - self._current.at) > self._settings.max_age / 2

    def _use(self, prices: Prices | None, version: int) -> None:
        self._current, self._version = prices, version
        self._metrics.prices_at.set(prices.at if prices is not None else 0.0)

    def _count(self, result: Result) -> Result:
        self._metrics.prices.labels(result.value).inc()
        return result

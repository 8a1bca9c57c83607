"""One run over a file of requests: keeps the engine's batch full, bounded in flight, and every answer once.

As many requests are under way as the engine runs together and half as many more, so that one is always ready when
another ends. What the runtime declines for now (it is overloaded, its engine is being restarted) is asked again; a
request that was tried `TRIES` times in vain gets that as its answer, so that one bad line cannot hold up all others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.runtime.messages import WorkProgress
from llmos_operator.errors import Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.jobs.batch.inside import post
from llmos_operator.runtime.jobs.batch.lines import BadLine, Reader, Request
from llmos_operator.runtime.jobs.batch.results import SYNC_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp

    from llmos_operator.runtime.jobs.batch.inside import Reply
    from llmos_operator.runtime.jobs.batch.metrics import BatchMetrics
    from llmos_operator.runtime.jobs.batch.results import Results

log = logger(__name__)

TRIES: Final = 3  # of a request that takes the engine down with it, or fails inside of it
_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})
_DECLINED: Final = frozenset({"overloaded", "model_not_ready", "draining"})  # nothing was begun: no try
_WAIT_SECONDS: Final = 1.0
_LONGEST_WAIT: Final = 30.0
_BREATH: Final = 100  # lines


class BatchRun:
    """Answers all lines of `reader` that `results` does not have yet."""

    def __init__(
        self,
        reader: Reader,
        results: Results,
        total: int,
        metrics: BatchMetrics,
        monotonic: Callable[[], float],
    ) -> None:
        self._lines: Iterator[Request | BadLine] = iter(reader)
        self._results = results
        self._total = total
        self._metrics = metrics
        self._monotonic = monotonic
        self._saved_at: float | None = monotonic() if results.answered else None
        self._writing = asyncio.Lock()  # answers are added between two looks of the thread that syncs
        self.first_error = ""
        metrics.took_up(total, len(results.answered), results.failed)

    def progress(self) -> WorkProgress:
        """Return how far it is."""
        saved_at = self._saved_at
        return WorkProgress(
            unit="requests",
            done=len(self._results.answered),
            total=self._total,
            failed=self._results.failed,
            saved=self._results.synced,
            saved_age_seconds=None if saved_at is None else int(self._monotonic() - saved_at),
        )

    async def answer_all(self, app: ASGIApp, key: str, together: int) -> None:
        """Answer every line; return when all have an answer. When it is cancelled, what is under way is dropped.

        Raises OSError or Permanent if the output cannot be written.

        ``together`` is how many sequences the engine runs at once.
        """
        workers = max(1, together + max(1, together // 2))
        syncing = asyncio.create_task(self._sync_now_and_then())
        work = [asyncio.create_task(self._work(app, key)) for _ in range(workers)]
        everything = asyncio.gather(*work)
        try:
            both: list[asyncio.Future[Any]] = [everything, syncing]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if syncing.done():
                syncing.result()  # it ends only by an error
            await everything
        finally:
            everything.cancel()
            for task in (syncing, *work):
                task.cancel()
            await asyncio.gather(syncing, everything, *work, return_exceptions=True)

    async def _work(self, app: ASGIApp, key: str) -> None:
        for line in self._lines:  # shared by all workers: each takes the next one
            if line.number in self._results.answered:
                if line.number % _BREATH == 0:
                    await asyncio.sleep(0)  # a run that goes on passes many: probes are answered meanwhile
                continue
            if isinstance(line, BadLine):
                await self._refuse(line)
                continue
            with self._metrics.in_flight.track_inprogress():
                reply = await self._ask(app, key, line)
            await self._take(line, reply)

    async def _ask(self, app: ASGIApp, key: str, line: Request) -> Reply:
        """Return the answer to a request, after waiting and trying again as often as that can help."""
        tries, wait = 0, _WAIT_SECONDS
        while True:
            reply = await post(app, line.url, line.body, key=key, request_id=f"batch-{line.number}")
            if reply.status not in _LATER:
                return reply
            if _code(reply) not in _DECLINED:
                tries += 1
                if tries >= TRIES:
                    return reply
            self._metrics.retries.inc()
            await asyncio.sleep(min(_LONGEST_WAIT, max(wait, reply.retry_after or 0.0)))
            wait = min(_LONGEST_WAIT, 2 * wait)

    async def _take(self, line: Request, reply: Reply) -> None:
        response = {
            "status_code": reply.status,
            "request_id": f"batch-{line.number}",
            "body": reply.body,
        }
        failed = reply.status != 200  # noqa: PLR2004 - HTTP OK
        if failed and not self.first_error:
            self.first_error = f"line {line.number}: {reply.status}: {_message(reply)}"
        async with self._writing:
            self._results.add(line.number, line.custom_id, response, None)
        usage = reply.body.get("usage") if isinstance(reply.body, dict) else None
        self._metrics.answered(failed=failed, usage=usage if isinstance(usage, dict) else {})

    async def _refuse(self, line: BadLine) -> None:
        self.first_error = self.first_error or line.message
        error = {"code": "invalid_line", "message": line.message, "line": line.number}
        async with self._writing:
            self._results.add(line.number, line.custom_id, None, error)
        self._metrics.answered(failed=True, usage={})
        log.warning("line is no request", line=line.number, why=line.message)

    async def _sync_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                async with self._writing:
                    await asyncio.to_thread(self._results.sync)
                saved = await asyncio.to_thread(self._results.send)
            except Retryable as error:
                log.warning("answers are not saved yet", detail=str(error))
                continue
            if saved:
                self._saved_at = self._monotonic()


def _code(reply: Reply) -> str:
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    return str(error.get("code", "")) if isinstance(error, dict) else ""


def _message(reply: Reply) -> str:
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""

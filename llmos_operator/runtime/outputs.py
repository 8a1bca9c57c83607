"""All outputs of one request, of however many answers, in the order the engine makes them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from llmos_operator.runtime.ipc import RequestOutput, Submit
    from llmos_operator.runtime.ipc.switch import EngineSwitch


class ClientGone(LlmosError):  # noqa: N818 - reads as what happened
    """Nobody waits for the answer any more."""


class Stopping(LlmosError):  # noqa: N818 - reads as what happens
    """The runtime ends: answers are cut where they are."""


class Outputs:
    """The outputs of several submissions through one queue. Leaving the context cancels what has not finished.

    No more than ``at_once`` of them are in the engine at a time; each that ends makes room for the next.

    ::

        async with Outputs(engine, submits) as outputs:
            while outputs.open:
                for output in await outputs.next(): ...
    """

    def __init__(self, engine: EngineSwitch, submits: Sequence[Submit], at_once: int | None = None) -> None:
        self._engine = engine
        self._waiting = deque(submits)
        self._at_once = len(submits) if at_once is None else at_once
        self._inside = 0
        self._queue: asyncio.Queue[RequestOutput | LlmosError] = asyncio.Queue()
        self.open: set[str] = set()  # request ids that have not finished

    async def __aenter__(self) -> Self:
        """Submit. Raises EngineUnavailable, and then none is left in the engine."""
        try:
            self._submit()
        except LlmosError:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self) -> None:
        """Submit what there is room for."""
        while self._waiting and self._inside < self._at_once:
            submit = self._waiting.popleft()
            self._engine.open_stream(submit, self._queue)
            self._inside += 1
            self.open.add(submit.request_id)

    def close(self) -> None:
        """Cancel what has not finished: it stops within one step of the engine."""
        self._waiting.clear()
        for request_id in list(self.open):
            self.drop(request_id)

    def drop(self, request_id: str) -> None:
        """Cancel one answer that needs nothing more (a stop text was found)."""
        if request_id in self.open:
            self.open.discard(request_id)
            self._inside -= 1
            try:
                self._engine.close_stream(request_id, cancel=True)
                self._submit()
            except LlmosError:
                return  # the engine is gone, and the request with it

    def interrupt(self, why: LlmosError) -> None:
        """Wake whoever waits in :meth:`next` with an error."""
        self._queue.put_nowait(why)

    async def next(self) -> list[RequestOutput]:
        """Return all outputs that are there, at least one. Raises EngineLost, and what :meth:`interrupt` was given."""
        found = [self._checked(await self._queue.get())]
        while not self._queue.empty():
            found.append(self._checked(self._queue.get_nowait()))
        for output in found:
            if output.finish_reason and output.request_id in self.open:
                self.open.discard(output.request_id)
                self._inside -= 1
                self._engine.close_stream(output.request_id, cancel=False)
                self._submit()
        return found

    def _checked(self, item: RequestOutput | LlmosError) -> RequestOutput:
        if isinstance(item, LlmosError):
            raise item
        return item

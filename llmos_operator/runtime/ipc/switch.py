"""One handle on the engine in use, whichever process that is: what a change of engines looks like to requests.

Everything goes to the engine in use, but for what belongs to a request that another one took: that stays with it until
its end. While no engine is in use (one must end before the next can start) requests are held, and go to the next one in
the order in which they came. Admission bounds how many there are, their deadlines how long they wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.errors import LlmosError, Permanent
from llmos_operator.runtime.ipc.client import EngineStatus, EngineUnavailable
from llmos_operator.runtime.ipc.messages import FinishReason, RequestOutput, Stats

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import RuntimeState
    from llmos_operator.runtime.ipc.client import EngineClient
    from llmos_operator.runtime.ipc.messages import AdapterResult, Embed, EmbedResult, Load, Submit

ABORT_SECONDS = 2.0  # for the last outputs of requests that are cut
_EXPIRED = "the deadline passed while the model changed its format"
_COUNTERS = (
    "finished", "aborted", "prompt_tokens", "generation_tokens", "first_tokens", "first_token_seconds",
    "preemptions", "prefix_query_tokens", "prefix_hit_tokens", "draft_tokens", "accepted_tokens", "steps",
    "step_seconds",
)  # fmt: skip
_GAUGES = ("running", "waiting")


@dataclass(slots=True)
class _Held:
    submit: Submit
    queue: asyncio.Queue[RequestOutput | LlmosError]
    expiry: asyncio.TimerHandle | None


class EngineSwitch:
    """The engine in use. Calls that it shares with EngineClient are described there."""

    def __init__(self, first: EngineClient) -> None:
        self._first = first  # the zygote's owner
        self.current = first
        self.holding = False
        self._leaving: EngineClient | None = None  # finishes what it has taken
        self._owners: dict[str, EngineClient] = {}  # by request id
        self._held: dict[str, _Held] = {}
        self._released = asyncio.Event()
        self._ceiling_bytes = 0  # of both together
        self._alone = True  # no engine before this one
        self._spent = Stats()  # counters of engines that have ended
        self._restarts = 0  # theirs

    # ------------------------------------------------------------ life

    async def load(self, load: Load) -> None:
        """Start an engine that loads ``load``."""
        await self.current.load(load)

    async def unload(self) -> None:
        """End the engine."""
        await self.current.unload()

    async def close(self) -> None:
        """End all engines and the zygote."""
        for one in {self.current, self._leaving or self.current}:
            await one.unload()
        await self._first.close()

    @property
    def order(self) -> Load | None:
        """What the engine in use was told to load, with what it was told since."""
        return self.current.order

    def status(self) -> EngineStatus:
        """Return what is known now; counters and memory are those of all engines of this runtime together."""
        status, leaving = self.current.status(), self._leaving
        if self._alone:
            return status
        stats = _added(status.stats, self._spent, _COUNTERS)
        memory, restarts = status.memory, status.restarts + self._restarts
        if leaving is not None:
            other = leaving.status()
            stats = _added(stats, other.stats, _COUNTERS + _GAUGES)
            own = max(0, other.memory.measured_bytes - other.memory.base_bytes)
            memory = dataclasses.replace(
                memory, measured_bytes=memory.measured_bytes + own, limit_bytes=self._ceiling_bytes
            )
            restarts += other.restarts
        waiting = stats.waiting + len(self._held)
        return dataclasses.replace(
            status, stats=dataclasses.replace(stats, waiting=waiting), memory=memory, restarts=restarts
        )

    async def wait(self, *states: RuntimeState) -> EngineStatus:
        """Wait until the engine in use is in one of ``states``, whichever engine that is by then."""
        event = self._first.changed
        while self.current.status().state not in states:
            event.clear()
            await event.wait()
        return self.status()

    # ------------------------------------------------------------ work

    def open_stream(self, submit: Submit, queue: asyncio.Queue[RequestOutput | LlmosError]) -> None:
        """Send ``submit`` to the engine in use, or hold it until there is one."""
        request_id = submit.request_id
        if request_id in self._owners or request_id in self._held:
            raise Permanent(f"request id {request_id!r} is in use", reason="Conflict")
        if self.holding:
            self._held[request_id] = _Held(submit, queue, self._expiry(submit))
            return
        self.current.open_stream(submit, queue)
        self._owners[request_id] = self.current

    def close_stream(self, request_id: str, *, cancel: bool) -> None:
        """Forget a stream and, if it has not finished, cancel it where it runs."""
        held, owner = self._held.pop(request_id, None), self._owners.pop(request_id, None)
        if held is not None and held.expiry is not None:
            held.expiry.cancel()
        if owner is not None:
            owner.close_stream(request_id, cancel=cancel)

    async def embed(self, embed: Embed) -> EmbedResult:
        """Return vectors, of the engine in use or of the next one."""
        while self.holding:
            await self._released.wait()
        return await self.current.embed(embed)

    def set_budget(self, memory_bytes: int) -> None:
        """Tell the engine in use its new memory limit."""
        self.current.set_budget(memory_bytes)

    async def load_adapter(self, name: str, uri: str, folders: tuple[str, ...] = ()) -> AdapterResult:
        """Serve a LoRA adapter."""
        return await self.current.load_adapter(name, uri, folders)

    async def unload_adapter(self, name: str) -> AdapterResult:
        """Serve a LoRA adapter no more."""
        return await self.current.unload_adapter(name)

    def sleep(self, level: int = 1) -> None:
        """Give memory back, keep the process."""
        self.current.sleep(level)

    def wake(self) -> None:
        """Undo sleep."""
        self.current.wake()

    # ------------------------------------------------------------ change

    def hold(self) -> None:
        """Hold what comes from now on."""
        self._released.clear()
        self.holding, self._alone = True, False

    def use(self, engine: EngineClient, *, beside: bool, ceiling_bytes: int = 0) -> None:
        """Send what comes from now on to ``engine``; the former one has ended, or ``beside`` it finishes what it has.

        Until it has ended ``ceiling_bytes`` is told as the limit that both keep to, 0 where there is none.
        """
        self._leaving, self.current = (self.current if beside else None), engine
        self._ceiling_bytes = ceiling_bytes
        self._alone = False
        engine.changed.set()

    def release(self) -> None:
        """Send what was held to the engine in use; without one that takes it, it is refused as not begun."""
        self.holding = False
        held, self._held = self._held, {}
        for one in held.values():
            if one.expiry is not None:
                one.expiry.cancel()
            try:
                self.open_stream(one.submit, one.queue)
            except EngineUnavailable as error:
                one.queue.put_nowait(error)
        self._released.set()

    async def end_current(self, seconds: float) -> None:
        """End the engine in use as :meth:`retire` does."""
        await self._end(self.current, seconds)

    async def retire(self, seconds: float) -> None:
        """End the engine that was in use before, after its last answer, or after so long: then the rest is aborted."""
        if self._leaving is not None:
            await self._end(self._leaving, seconds)
            self._leaving = None

    async def _end(self, engine: EngineClient, seconds: float) -> None:
        if not await engine.quiet(seconds):
            with contextlib.suppress(EngineUnavailable):  # it is gone, and who waited has been told
                engine.cancel_all()
                await engine.quiet(ABORT_SECONDS)
        last = engine.status()
        await engine.unload()
        self._spent = _added(self._spent, last.stats, _COUNTERS)
        self._restarts += last.restarts

    def _expiry(self, submit: Submit) -> asyncio.TimerHandle | None:
        if submit.deadline_at is None:
            return None
        left = max(0.0, submit.deadline_at - self._first.clock.monotonic())
        return asyncio.get_running_loop().call_later(left, self._expire, submit.request_id)

    def _expire(self, request_id: str) -> None:
        held = self._held.pop(request_id, None)
        if held is not None:
            held.queue.put_nowait(
                RequestOutput(request_id, finish_reason=FinishReason.ERROR, message=_EXPIRED)
            )


def _added(one: Stats, other: Stats, fields: tuple[str, ...]) -> Stats:
    return dataclasses.replace(one, **{name: getattr(one, name) + getattr(other, name) for name in fields})

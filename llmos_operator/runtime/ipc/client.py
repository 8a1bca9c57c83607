"""The front's handle on one engine: start, watch, restart, and one async stream a request.

A crash of the engine ends every running stream with EngineLost and starts a new engine after a growing pause; a load
failure that cannot heal leaves the client in state Failed with the engine ended. The front asks `status()` and never
waits for a load.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.clock import Clock, SystemClock
from llmos_operator.errors import LlmosError, Permanent, Retryable
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.messages import (
    AdapterInfo,
    AdapterResult,
    AdapterSource,
    Cancel,
    Embed,
    EmbedResult,
    EngineInfo,
    EngineMemory,
    Failed,
    FrontMessage,
    Load,
    LoadAdapter,
    Message,
    Progress,
    Ready,
    RequestOutput,
    SetBudget,
    Sleep,
    Stats,
    StepOutput,
    Submit,
    Unload,
    UnloadAdapter,
    Wake,
)
from llmos_operator.runtime.ipc.oom import OomCounter
from llmos_operator.runtime.ipc.zygote import Child, Zygote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 300.0  # an engine that served so long starts again with the first pause
STALL_SECONDS = 180.0  # no frame for so long: the engine hangs and is killed
UNLOAD_SECONDS = 5.0


class EngineUnavailable(Retryable):
    """No engine takes requests now: it loads, sleeps, restarts or has failed."""


class EngineLost(Retryable):
    """The engine ended while it worked on this request."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What is known of the engine. ``heartbeat_at`` is the CLOCK_MONOTONIC time of its last frame."""

    state: RuntimeState = RuntimeState.STARTING
    progress: Progress | None = None
    info: EngineInfo | None = None
    memory: EngineMemory = field(default_factory=EngineMemory)
    stats: Stats = field(default_factory=Stats)
    failure: Failed | None = None  # set with state Failed, and as the last trouble while a restart is tried
    restarts: int = 0
    pid: int | None = None
    heartbeat_at: float = 0.0
    adapters: tuple[AdapterInfo, ...] = ()


class Generation:
    """The outputs of one request, in order; leaving the context cancels what has not finished.

    ::

        async with client.generate(submit) as outputs:
            async for output in outputs: ...
    """

    def __init__(self, client: EngineClient, submit: Submit) -> None:
        self._client = client
        self._submit = submit
        self._queue: asyncio.Queue[RequestOutput | LlmosError] = asyncio.Queue()
        self._over = False

    async def __aenter__(self) -> Self:
        self._client.open_stream(self._submit, self._queue)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close_stream(self._submit.request_id, cancel=not self._over)

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return self

    async def __anext__(self) -> RequestOutput:
        """Return the next output; the one with a finish_reason is the last. Raises EngineLost after a crash."""
        if self._over:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, LlmosError):
            self._over = True
            raise item
        self._over = bool(item.finish_reason)
        return item


class EngineClient:
    """One model's engine process. Several clients may share a Zygote."""

    def __init__(
        self,
        *,
        zygote: Zygote | None = None,
        clock: Clock | None = None,
        changed: asyncio.Event | None = None,
    ) -> None:
        """``changed`` is set whenever something is new; several clients may share one."""
        self._zygote = zygote or Zygote()
        self._owns_zygote = zygote is None
        self.clock = clock or SystemClock()
        self._status = EngineStatus()
        self._load: Load | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._streams: dict[str, asyncio.Queue[RequestOutput | LlmosError]] = {}
        self._embeds: dict[str, asyncio.Future[EmbedResult]] = {}
        self._orders: dict[str, asyncio.Future[AdapterResult]] = {}
        self.changed = changed or asyncio.Event()

    # ------------------------------------------------------------ life

    async def prepare(self) -> None:
        """Start the zygote, so that its imports run while the front does other things."""
        await self._zygote.start()

    async def load(self, load: Load) -> None:
        """Start an engine that loads ``load``; returns at once. Unload first if another model is loaded."""
        await self.unload()
        self._load = load
        self._status = EngineStatus(heartbeat_at=self.clock.monotonic())
        self._supervisor = asyncio.create_task(self._supervise(load), name="engine-supervisor")

    async def unload(self) -> None:
        """End the engine; running requests get EngineLost. The memory is the machine's again on return."""
        self._load = None
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            # Not `await supervisor` with its CancelledError suppressed: that would swallow our own cancellation too.
            await asyncio.wait([supervisor])
        self._status = EngineStatus()

    async def close(self) -> None:
        """Unload, and end the zygote if it is this client's own."""
        await self.unload()
        if self._owns_zygote:
            await self._zygote.close()

    def sibling(self) -> EngineClient:
        """Return a client for another engine of the same zygote, with the same clock and event."""
        return EngineClient(zygote=self._zygote, clock=self.clock, changed=self.changed)

    @property
    def order(self) -> Load | None:
        """What an engine that is started again loads: budget and adapters are those of now. None: unloaded."""
        return self._load

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer of this engine."""
        return bool(self._streams or self._embeds or self._orders)

    def status(self) -> EngineStatus:
        """Return what is known now."""
        return self._status

    async def wait(self, *states: RuntimeState) -> EngineStatus:
        """Wait until the engine is in one of ``states`` (use asyncio.timeout for a limit)."""
        while self._status.state not in states:
            self.changed.clear()
            await self.changed.wait()
        return self._status

    async def loaded(self) -> Failed | None:
        """Wait until a load has ended; return None if the engine is Ready, else its first failure."""
        while self._status.state is not RuntimeState.READY and self._status.failure is None:
            self.changed.clear()
            await self.changed.wait()
        return self._status.failure

    async def quiet(self, seconds: float) -> bool:
        """Wait until nobody waits for an answer, at most so long; return whether nobody does."""
        try:
            async with asyncio.timeout(seconds):
                while self.busy:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------ work

    def generate(self, submit: Submit) -> Generation:
        """Return the outputs of ``submit``. Entering it raises EngineUnavailable when no engine takes requests."""
        return Generation(self, submit)

    async def embed(self, embed: Embed) -> EmbedResult:
        """Return vectors; cancelled, the engine computes no further part of them.

        Raises EngineUnavailable, EngineLost, or Permanent(reason=Unsupported) on bad input.
        """
        future: asyncio.Future[EmbedResult] = asyncio.get_running_loop().create_future()
        self._need_ready()
        self._embeds[embed.request_id] = future
        try:
            self._send(embed)
            result = await future
        except asyncio.CancelledError:
            with contextlib.suppress(EngineUnavailable):  # it has ended, and the request with it
                self.cancel(embed.request_id)
            raise
        finally:
            self._embeds.pop(embed.request_id, None)
            self.changed.set()
        if result.error:
            raise Permanent(result.error, reason="Unsupported")
        return result

    def cancel(self, request_id: str) -> None:
        """Stop a request; a stream of it ends with finish_reason "abort"."""
        if self._writer is not None:
            self._send(Cancel(request_id))

    def set_budget(self, memory_bytes: int) -> None:
        """Tell the engine its new memory limit; the effect shows in status().memory and stats."""
        if self._load is not None:
            self._load = dataclasses.replace(self._load, memory_limit_bytes=memory_bytes)
        self._send(SetBudget(memory_bytes))

    async def load_adapter(self, name: str, uri: str, folders: tuple[str, ...] = ()) -> AdapterResult:
        """Serve a LoRA adapter as ``name``, from one of ``folders`` if there are any; return when it is there.

        Raises EngineUnavailable, EngineLost or Permanent with the engine's reason.
        """
        return await self._order(LoadAdapter(uuid.uuid4().hex, name, uri, folders))

    async def unload_adapter(self, name: str) -> AdapterResult:
        """Take no more requests for an adapter; return when its last one has ended and it is gone. Raises as above."""
        return await self._order(UnloadAdapter(uuid.uuid4().hex, name))

    async def _order(self, order: LoadAdapter | UnloadAdapter) -> AdapterResult:
        self._need_ready()
        future: asyncio.Future[AdapterResult] = asyncio.get_running_loop().create_future()
        self._orders[order.request_id] = future
        try:
            self._send(order)
            result = await future
        finally:
            self._orders.pop(order.request_id, None)
            self.changed.set()
        if result.error:
            raise Permanent(result.error, reason=result.reason)
        return result

    def sleep(self, level: int = 1) -> None:
        """Give memory back, keep the process; status().state becomes Asleep."""
        self._send(Sleep(level))

    def wake(self) -> None:
        """Undo sleep; status().state becomes Ready."""
        self._send(Wake())

    def open_stream(self, submit: Submit, queue: asyncio.Queue[RequestOutput | LlmosError]) -> None:
        """Send ``submit`` and route its outputs to ``queue`` (Generation calls this)."""
        self._need_ready()
        if submit.request_id in self._streams:
            raise Permanent(f"request id {submit.request_id!r} is in use", reason="Conflict")
        self._streams[submit.request_id] = queue
        self._send(submit)

    def close_stream(self, request_id: str, *, cancel: bool) -> None:
        """Forget a stream and, if it has not finished, cancel it in the engine."""
        self._streams.pop(request_id, None)
        self.changed.set()
        if cancel:
            self.cancel(request_id)

    def cancel_all(self) -> None:
        """Stop every request; each stream ends with finish_reason "abort"."""
        for request_id in [*self._streams, *self._embeds]:
            self.cancel(request_id)

    def _need_ready(self) -> None:
        status = self._status
        if status.state is not RuntimeState.READY or self._writer is None:
            raise EngineUnavailable(f"the engine is {status.state.value}, not Ready")

    def _send(self, message: FrontMessage) -> None:
        if self._writer is None or self._writer.is_closing():
            raise EngineUnavailable(f"the engine is {self._status.state.value}")
        self._writer.write(codec.encode(message))

    # ------------------------------------------------------------ supervision

    async def _supervise(self, load: Load) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            began = self.clock.monotonic()
            failure = await self._run_once(self._load or load)
            if failure.permanent:
                log.error(
                    "engine failed for good", extra={"reason": failure.reason, "detail": failure.message}
                )
                self._set(state=RuntimeState.FAILED, failure=failure, pid=None)
                return
            if self.clock.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            log.warning(
                "engine ended, restarting",
                extra={"reason": failure.reason, "detail": failure.message, "pause_seconds": pause},
            )
            self._set(
                state=RuntimeState.STARTING,
                progress=None,
                failure=failure,
                pid=None,
                restarts=self._status.restarts + 1,
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _run_once(self, load: Load) -> Failed:
        """Run one engine to its end and return why it ended."""
        oom = OomCounter()
        try:
            child = await self._zygote.spawn()
        except Retryable as error:
            if oom.rose():
                return self._killed_for_memory()
            return Failed("LoadFailed", str(error), permanent=False)
        self._child = child
        try:
            return await self._converse(child, load) or await self._autopsy(child, oom)
        finally:
            await self._end(child)
            self._writer = None
            self._lose_requests()

    async def _converse(self, child: Child, load: Load) -> Failed | None:
        """Send the load, then take frames until the engine is silent for ever. Return its own account, if it gave one."""
        reader, self._writer = await asyncio.open_unix_connection(sock=child.connection)
        base = tuple(pid for pid in (os.getpid(), self._zygote.pid) if pid is not None)
        self._set(pid=child.pid, heartbeat_at=self.clock.monotonic())
        self._send(dataclasses.replace(load, base_pids=base))
        frames = codec.FrameReader()
        try:
            while data := await _read(reader):
                for message in frames.feed(data):
                    if isinstance(message, Failed):
                        return message
                    self._take(message)
        except TimeoutError:
            return Failed("LoadFailed", f"the engine was silent for {STALL_SECONDS:.0f} s", permanent=False)
        except (ConnectionError, OSError) as error:
            log.info("engine connection broke", extra={"detail": str(error)})
        return None

    async def _autopsy(self, child: Child, oom: OomCounter) -> Failed:
        """Say why an engine ended that said nothing itself."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.exited.wait(), UNLOAD_SECONDS)
        status = child.exit_status
        if status == -signal.SIGKILL and oom.rose():
            return self._killed_for_memory()
        how = (
            f"by {signal.Signals(-status).name}"
            if status is not None and status < 0
            else f"with exit code {status}"
        )
        return Failed(
            "LoadFailed", f"the engine ended {how} while {self._status.state.value}", permanent=False
        )

    def _killed_for_memory(self) -> Failed:
        """Say that the engine, or the process it is forked of, was killed for memory: for good unless it had served."""
        text = f"the kernel killed the engine for memory while {self._status.state.value}"
        return Failed("OutOfMemory", text, permanent=self._status.state is not RuntimeState.READY)

    async def _end(self, child: Child) -> None:
        """End the engine process: ask, then kill."""
        if self._writer is not None and not self._writer.is_closing() and child.exit_status is None:
            self._writer.write(codec.encode(Unload()))
            self._writer.close()
        else:
            child.connection.close()
        try:
            await asyncio.wait_for(child.exited.wait(), UNLOAD_SECONDS)
        except TimeoutError:
            child.kill(signal.SIGKILL)
            await child.exited.wait()

    def _take(self, message: Message) -> None:
        now = self.clock.monotonic()
        match message:
            case StepOutput(outputs):
                for output in outputs:
                    queue = self._streams.get(output.request_id)
                    if queue is not None:
                        queue.put_nowait(output)
                self._status = dataclasses.replace(self._status, heartbeat_at=now)
            case Stats():
                self._set(stats=message, memory=message.memory, heartbeat_at=now)
            case Progress():
                self._set(state=message.stage, progress=message, heartbeat_at=now)
            case Ready(info, memory, adapters):
                ready = RuntimeState.READY
                self._set(
                    state=ready, info=info, memory=memory, adapters=adapters, failure=None, heartbeat_at=now
                )
            case AdapterResult():
                self._take_adapters(message)
            case EmbedResult():
                future = self._embeds.get(message.request_id)
                if future is not None and not future.done():
                    future.set_result(message)
            case _:
                raise Permanent(f"the engine sent {type(message).__name__}", reason="Unsupported")

    def _take_adapters(self, result: AdapterResult) -> None:
        """Note which adapters are served, for who asks and for the next engine if this one ends."""
        if not result.error:
            self._set(adapters=result.adapters, heartbeat_at=self.clock.monotonic())
        if not result.error and self._load is not None:
            demanded = {(source.name, source.uri) for source in self._load.adapters if source.demanded}
            kept = tuple(
                AdapterSource(info.name, info.uri, demanded=(info.name, info.uri) in demanded)
                for info in result.adapters
            )
            self._load = dataclasses.replace(self._load, adapters=kept)
        order = self._orders.get(result.request_id)
        if order is not None and not order.done():
            order.set_result(result)

    def _lose_requests(self) -> None:
        lost = EngineLost("the engine ended; send the request again", after=1.0)
        for queue in self._streams.values():
            queue.put_nowait(lost)
        self._streams.clear()
        awaited: list[asyncio.Future[Any]] = [*self._embeds.values(), *self._orders.values()]
        for future in awaited:
            if not future.done():
                future.set_exception(lost)

    def _set(self, **changes: object) -> None:
        self._status = dataclasses.replace(self._status, **changes)  # type: ignore[arg-type]
        self.changed.set()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return the next bytes. Raises TimeoutError after a stall.

    Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with data, and a busy engine always
    has data.
    """
    async with asyncio.timeout(STALL_SECONDS):
        return await reader.read(1 << 18)

"""The engine's main loop: messages in, one step, messages out; one thread, no clock but CLOCK_MONOTONIC.

Between two steps the socket is read, so a cancel or a new request takes effect within one step. Idle, the loop sleeps
in poll and wakes once a second for its heartbeat.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.clock import Clock, SystemClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.engine.adapters import PAUSE_SECONDS
from llmos_operator.runtime.engine.serving import Serving
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.messages import (
    AdapterResult,
    Cancel,
    Embed,
    EmbedResult,
    EngineMemory,
    Failed,
    FinishReason,
    Load,
    LoadAdapter,
    Progress,
    Ready,
    RequestOutput,
    SetBudget,
    Shutdown,
    Sleep,
    Stats,
    StepOutput,
    Submit,
    Unload,
    UnloadAdapter,
    Wake,
)
from llmos_operator.runtime.ipc.orders import RankLost
from llmos_operator.runtime.loader.pipeline import load_model, trim_memory
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.ranks.crew import Crew
from llmos_operator.runtime.ranks.follower import follow
from llmos_operator.runtime.ranks.forking import fork_ranks
from llmos_operator.runtime.ranks.meeting import accept_ranks, join

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc.messages import EngineMessage, Message
    from llmos_operator.runtime.loader.memory import Meter

log = logger(__name__)

HEARTBEAT_SECONDS = 1.0
_WEIGHTS_TOO = 2  # sleep level that drops the weights as well
_LAST_WORDS_SECONDS = 1.0  # to say why, when a rank is lost
_RANK_LOST = 71  # exit code
_LOOKS_SECONDS = 10.0  # between two measurements while nothing is loaded


class Engine:
    """One engine on one socket."""

    def __init__(self, connection: socket.socket, clock: Clock | None = None) -> None:
        self._socket = connection
        self._clock = clock or SystemClock()
        self._frames = codec.FrameReader()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._load: Load | None = None
        self._crew: Crew | None = None  # the other ranks of a model that is split over several devices
        self._sending = threading.Lock()
        self._serving: Serving | None = None
        self._asleep = False
        self._emptied: tuple[Meter, EngineMemory] | None = (
            None  # asleep without weights: what measures, and what it said
        )
        self._looked_at = 0.0
        self._ending = False
        self._next_beat = 0.0

    def run(self) -> int:
        """Serve until told to end or until the front is gone; the process's exit code."""
        while not self._ending:
            for message in self._receive():
                self._handle(message)
            if self._serving is not None and not self._asleep:
                outputs = self._serving.step()
                if outputs:
                    self._send(StepOutput(tuple(outputs)))
                for result in self._serving.embed_step():
                    self._send(result)
                for changed in self._serving.turn_adapters():
                    self._send(changed)
            self._beat()
        if self._crew is not None:
            self._crew.end()
        return 0

    def last_words(self, error: Exception) -> None:
        """Say why the group of ranks ends, if this is one: mostly a rank is lost, which the watch knows better."""
        if self._crew is not None:
            self._crew.verdict()
            text = f"rank 0 failed and the group of ranks is started again: {error}"[:500]
            self._send(Failed("LoadFailed", text, permanent=False))

    def _receive(self) -> list[Message]:
        busy = self._serving is not None and not self._asleep and self._serving.busy
        wait = 0.0 if busy else max(0.0, self._next_beat - self._clock.monotonic())
        if self._serving is not None and not self._asleep and self._serving.adapters.pending:
            wait = min(wait, PAUSE_SECONDS)
        if not self._poll.poll(wait * 1000):
            return []
        data = self._socket.recv(1 << 20)
        if not data:
            self._ending = True
        return self._frames.feed(data)

    def _send(self, message: EngineMessage) -> None:
        try:
            with self._sending:
                self._socket.sendall(codec.encode(message))
        except ConnectionError:
            self._ending = True  # the front is gone, and with it everybody who asked

    def _muster(self, load: Load) -> None:
        """Have the other ranks that a load asks for. Before anything of torch has run: some are forks of this process.

        Raises RankLost if the front goes away before all have come, OSError if they cannot come to the load's port.
        """
        if load.ranks == 1 or self._crew is not None:
            return
        members = fork_ranks(load.here, self._socket, self._clock)
        if load.ranks > load.here:
            afar = range(load.here, load.ranks)
            at = (load.listen, load.meeting[1])
            members += accept_ranks(at, afar, load.meeting_token, self._clock, self._waits)
        self._crew = Crew(members, self._clock)
        self._crew.watch(self._lose)

    def _waits(self) -> bool:
        """Tell the front that this process still starts; return whether it is there."""
        self._send(Progress(RuntimeState.STARTING))
        return not self._ending and not _closed(self._socket)

    def _follow(self, load: Load) -> None:
        """Be a rank of a group whose rank 0 is in another pod, until the group ends."""
        orders, pulse = join(load.meeting, load.rank, load.meeting_token, lambda: not _closed(self._socket))
        follow(load.rank, orders, pulse, 0, load)
        self._ending = True

    def _lose(self, what: str) -> None:
        """A rank is lost: say so and end at once, whatever the main thread waits for. Runs in the watching thread."""
        log.error("a rank is lost", detail=what)
        if self._sending.acquire(timeout=_LAST_WORDS_SECONDS):
            failed = Failed(
                "LoadFailed", f"{what}; the group of ranks ends and is started again", permanent=False
            )
            with contextlib.suppress(OSError):
                self._socket.sendall(codec.encode(failed))
        os._exit(_RANK_LOST)

    def _beat(self) -> None:
        now = self._clock.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT_SECONDS
            if self._serving is not None:
                self._send(self._serving.stats())
            elif self._emptied is not None:
                self._send(Stats(memory=self._measured(*self._emptied, now)))

    def _measured(self, meter: Meter, memory: EngineMemory, now: float) -> EngineMemory:
        """Return what the runtime holds while it sleeps without weights, measured now and then."""
        if not memory.measured_bytes or now - self._looked_at >= _LOOKS_SECONDS:
            self._looked_at = now
            memory = EngineMemory(
                measured_bytes=meter.measure(),
                peak_bytes=meter.peak_bytes,
                base_bytes=meter.base_bytes,
                limit_bytes=meter.limit_bytes,
            )
            self._emptied = (meter, memory)
        return memory

    def _handle(self, message: Message) -> None:
        match message:
            case Load() if message.rank:
                self._follow(message)
            case Load():
                self._load = message
                self._start(message, message.base_bytes)
            case Unload() | Shutdown():
                self._abort_all("the model is unloaded")
                self._ending = True
            case Sleep(level):
                self._sleep(level)
            case Wake():
                self._wake()
            case _:
                self._handle_request(message)

    def _handle_request(self, message: Message) -> None:
        serving = self._serving if not self._asleep else None
        match message:
            case Submit() if serving is not None:
                problem = serving.submit(message)
                if problem:
                    self._reject(message.request_id, problem)
            case Submit():
                self._reject(message.request_id, "no model is loaded")
            case Cancel(request_id) if serving is not None and serving.cancel(request_id):
                self._send(StepOutput((RequestOutput(request_id, finish_reason=FinishReason.ABORT),)))
            case Embed() if serving is not None:
                serving.enqueue_embed(message)
            case Embed():
                self._send(EmbedResult(message.request_id, error="no model is loaded"))
            case LoadAdapter() | UnloadAdapter():
                self._order_adapter(message)
            case SetBudget(memory_bytes) if self._serving is not None:
                self._serving.set_budget(memory_bytes)
                self._next_beat = 0.0  # who asked waits to see it
            case _:
                pass  # cancel of a request that is over, or a budget before a load: nothing to do

    def _order_adapter(self, order: LoadAdapter | UnloadAdapter) -> None:
        if self._serving is None or self._asleep:
            self._send(AdapterResult(order.request_id, (), "no model is loaded", "LoadFailed"))
        elif isinstance(order, LoadAdapter):
            self._serving.adapters.load(order)
        else:
            self._serving.adapters.unload(order)

    def _reject(self, request_id: str, problem: str) -> None:
        output = RequestOutput(request_id, finish_reason=FinishReason.ERROR, message=problem)
        self._send(StepOutput((output,)))

    def _start(self, load: Load, base_bytes: int = 0) -> None:
        """Load, and say Ready or Failed; after a failure the process ends."""
        stages = Stages(self._clock, self._send)
        failure: Failed | None = None
        try:
            self._muster(load)
            loaded = load_model(load, stages, base_bytes, self._crew)
            self._serving = Serving(loaded, self._clock)
            self._send(Ready(self._serving.info(stages.seconds), loaded.memory(), loaded.adapters))
        except RankLost as error:
            failure = Failed("LoadFailed", str(error), permanent=False)
        except Permanent as error:
            failure = Failed(error.reason, str(error), permanent=True)
        except Retryable as error:
            failure = Failed("DownloadFailed", str(error), permanent=False)
        except MemoryError as error:
            failure = Failed("OutOfMemory", f"memory ran out while loading: {error}", permanent=True)
        except OSError as error:
            failure = Failed("LoadFailed", f"while loading: {error}", permanent=False)
        except Exception as error:  # the reason goes to the front, which counts and shows it
            log.exception("load failed", uri=load.uri, format=load.format)
            failure = _unexpected(error)
        if failure is not None:
            self._send(failure)
            self._ending = True

    def _sleep(self, level: int) -> None:
        if self._serving is None:
            return
        self._abort_all("the model goes to sleep")
        kept = self._serving.sleep()
        if level >= _WEIGHTS_TOO or not kept:
            if self._load is not None:
                self._load = dataclasses.replace(self._load, adapters=self._serving.adapters.sources)
            self._emptied = (self._serving.meter, EngineMemory())
            self._serving = None
            if self._crew is not None:
                self._crew.drop()
        self._asleep = True
        trim_memory()
        if self._serving is not None:
            self._serving.memory()  # measured now: who asked waits to see it
        self._next_beat = 0.0
        self._beat()
        self._send(Progress(RuntimeState.ASLEEP))

    def _wake(self) -> None:
        if not self._asleep or self._load is None:
            return
        emptied, self._asleep, self._emptied = self._emptied, False, None
        if self._serving is None:
            self._start(self._load, emptied[0].base_bytes if emptied is not None else 0)
        else:
            serving = self._serving
            self._send(Progress(RuntimeState.WARMING))
            seconds = (("Warming", serving.wake()),)
            self._send(
                Ready(serving.info(seconds, load_path="hot"), serving.memory(), serving.adapters.infos)
            )

    def _abort_all(self, why: str) -> None:
        if self._serving is None:
            return
        for result in self._serving.abort_embeds(why):
            self._send(result)
        outputs = self._serving.abort_all(why)
        if outputs:
            self._send(StepOutput(tuple(outputs)))


def _closed(connection: socket.socket) -> bool:
    """Return whether the other end of a connection is gone. What it has sent stays to be read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _unexpected(error: Exception) -> Failed:
    text = f"{type(error).__name__}: {error}"
    if "out of memory" in text.lower() or "not enough memory" in text.lower():
        return Failed("OutOfMemory", f"memory ran out while loading: {text}", permanent=True)
    return Failed("LoadFailed", text, permanent=True)


def run(connection: socket.socket) -> int:
    """Run an engine on ``connection``; the exit code of its process."""
    connection.setblocking(True)  # noqa: FBT003 - the socket's own signature
    engine = Engine(connection)
    try:
        return engine.run()
    except Exception as error:  # logged with its trace; the front sees the exit code and restarts
        log.exception("engine died")
        engine.last_words(error)
        return 1

"""A scripted engine that speaks the real protocol with the real client, and a runtime around it.

The engine lives in the test's own event loop at the other end of a socket pair: frames, decoding, streams, crashes and
restarts run the code that production runs; only torch is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc import messages as ipc
from llmos_operator.runtime.ipc.client import EngineClient
from llmos_operator.runtime.ipc.zygote import Child, Zygote
from llmos_operator.runtime.server import Runtime
from llmos_operator.runtime.settings import RuntimeSettings
from llmos_operator.runtime.vocabulary import _BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

MODEL = "test/model"
EOS = 257
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path, *, chat_template: str = CHAT_TEMPLATE, **config: Any) -> Path:
    """Write a byte-level tokenizer (token n is byte n; 256 and 257 are special) and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = dict(_BYTES)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}, **config}
    if chat_template:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tokens_of(text: str) -> tuple[int, ...]:
    """The tokens of a text in the test vocabulary: its bytes."""
    return tuple(text.encode())


@dataclass(eq=False)
class ScriptedEngine(Zygote):
    """A zygote whose engines are coroutines; the newest engine is this object's other half."""

    model_dir: str = ""
    info: dict[str, Any] = field(default_factory=dict)  # fields of EngineInfo to change
    text: str | Callable[[ipc.Submit], str] = "The capital of France is Paris."
    failure: ipc.Failed | None = None  # the load ends with it
    failures: dict[str, ipc.Failed] = field(default_factory=dict)  # so do loads at these formats
    memory: ipc.EngineMemory = field(
        default_factory=lambda: ipc.EngineMemory(predicted_bytes=100, measured_bytes=90)
    )
    ready: bool = True  # whether a load is answered
    manual: bool = False  # outputs only on step() and answer_embeds()
    embed_error: str = ""
    submits: list[ipc.Submit] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    embeds: list[ipc.Embed] = field(default_factory=list)
    unanswered: dict[str, ipc.Embed] = field(default_factory=dict)  # by request id
    budgets: list[int] = field(default_factory=list)
    naps: list[int] = field(default_factory=list)  # levels of sleep that were ordered
    loads: list[ipc.Load] = field(default_factory=list)
    adapters: dict[str, ipc.AdapterInfo] = field(default_factory=dict)
    adapter_orders: list[ipc.LoadAdapter | ipc.UnloadAdapter] = field(default_factory=list)
    adapter_error: tuple[str, str] = ("", "")  # message and reason: orders are refused with it
    running: dict[str, tuple[ipc.Submit, deque[int], int]] = field(default_factory=dict)
    stats: ipc.Stats = field(default_factory=ipc.Stats)
    _writer: asyncio.StreamWriter | None = (
        None  # to the client of the newest engine, or of the one that is asked
    )
    _homes: dict[str, asyncio.StreamWriter] = field(default_factory=dict)  # of running requests
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _child: Child | None = None

    @property
    def pid(self) -> int | None:
        """No process."""
        return None

    async def start(self) -> None:
        """Nothing to start."""

    async def spawn(self) -> Child:
        """Return an engine: a socket whose other end is served here."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the socket's own signature
        child = Child(connection=ours)
        child.started.set()
        task = asyncio.create_task(self._live(theirs, child))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return child

    async def close(self) -> None:
        """End all engines."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def crash(self) -> None:
        """Die without a word, like a process that was killed."""
        assert self._writer is not None
        assert self._child is not None
        self._child.exit_status = -9
        self._writer.transport.abort()

    def send(self, message: ipc.EngineMessage) -> None:
        """Send any frame."""
        assert self._writer is not None
        self._writer.write(codec.encode(message))

    def make_ready(self) -> None:
        """Finish the load."""
        for stage in (RuntimeState.DOWNLOADING, RuntimeState.LOADING):
            self.send(ipc.Progress(stage, 10, 100, 5, 18))
        self.send(ipc.Ready(self.engine_info(), self.memory, tuple(self.adapters.values())))
        told = self.stats.memory if self.stats.memory != ipc.EngineMemory() else self.memory
        self.send(replace(self.stats, memory=told))

    def engine_info(self) -> ipc.EngineInfo:
        """The model as loaded."""
        found = ipc.EngineInfo(
            model_dir=self.model_dir,
            architecture="TestForCausalLM",
            digest="sha256:" + "ab" * 32,
            revision="main",
            format=self.loads[-1].format if self.loads else "bf16",
            device="cpu",
            max_model_len=512,
            vocab_size=258,
            eos_token_ids=(EOS,),
            kv_blocks=32,
            max_num_seqs=8,
            stage_seconds=(("loading", 0.5),),
        )
        return replace(found, **self.info)

    def step(self, count: int = 1) -> None:
        """Give every running request its next token, ``count`` times, one frame each."""
        for _ in range(count):
            outputs = [self._next(submit, left, total) for submit, left, total in list(self.running.values())]
            for writer in dict.fromkeys(self._homes[one.request_id] for one in outputs):
                mine = tuple(one for one in outputs if self._homes[one.request_id] is writer)
                writer.write(codec.encode(ipc.StepOutput(mine)))
            for output in outputs:
                if output.finish_reason:
                    self.running.pop(output.request_id, None)

    def answer_embeds(self) -> None:
        """Answer every request to an encoder."""
        for one in self.unanswered.values():
            self.send(self._embedding(one))
        self.unanswered.clear()

    def finish(self, reason: str, message: str = "", **more: Any) -> None:
        """End every running request."""
        outputs = tuple(
            ipc.RequestOutput(one, finish_reason=reason, message=message, **more) for one in self.running
        )
        self.running.clear()
        self.send(ipc.StepOutput(outputs))

    # ------------------------------------------------------------

    async def _live(self, connection: socket.socket, child: Child) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        self._writer = writer
        self._child = child
        frames = codec.FrameReader()
        try:
            while data := await reader.read(1 << 16):
                for message in frames.feed(data):
                    newest, self._writer = self._writer, writer
                    self._take(message)
                    self._writer = newest
        except ConnectionError:
            pass
        finally:
            for request_id in [one for one in self.running if self._homes[one] is writer]:
                del self.running[request_id]
            with contextlib.suppress(ConnectionError):
                writer.close()
            if child.exit_status is None:
                child.exit_status = 0
            child.exited.set()

    def _take(self, message: ipc.Message) -> None:
        match message:
            case ipc.Load():
                self.loads.append(message)
                if (failure := self.failure or self.failures.get(message.format)) is not None:
                    self.send(failure)
                elif self.ready:
                    self.make_ready()
            case ipc.Submit():
                self.submits.append(message)
                text = self.text if isinstance(self.text, str) else self.text(message)
                tokens = deque(tokens_of(text))
                self.running[message.request_id] = (message, tokens, len(tokens))
                assert self._writer is not None
                self._homes[message.request_id] = self._writer
                while not self.manual and message.request_id in self.running:
                    self.step()
            case ipc.Cancel(request_id):
                held = self.unanswered.pop(request_id, None)
                if held is not None or self.running.pop(request_id, None) is not None:
                    self.cancelled.append(request_id)
                    self.send(ipc.StepOutput((ipc.RequestOutput(request_id, finish_reason="abort"),)))
            case ipc.Embed():
                self.embeds.append(message)
                self.unanswered[message.request_id] = message
                if not self.manual:
                    self.answer_embeds()
            case _:
                self._obey(message)
                self._change_adapters(message)

    def _obey(self, order: ipc.Message) -> None:
        match order:
            case ipc.Sleep(level):
                self.naps.append(level)
                self.send(ipc.Progress(RuntimeState.ASLEEP))
            case ipc.Wake():
                self.make_ready()
            case ipc.SetBudget(memory_bytes):
                self.budgets.append(memory_bytes)

    def _change_adapters(self, order: ipc.Message) -> None:
        if not isinstance(order, ipc.LoadAdapter | ipc.UnloadAdapter):
            return
        self.adapter_orders.append(order)
        message, reason = self.adapter_error
        if not message and isinstance(order, ipc.LoadAdapter):
            self.adapters[order.name] = ipc.AdapterInfo(order.name, order.uri, "sha256:" + "cd" * 32, 8, 1000)
        elif not message:
            self.adapters.pop(order.name)
        served = tuple(self.adapters.values())
        self.send(ipc.AdapterResult(order.request_id, served, message, reason, 0.02))

    def _next(self, submit: ipc.Submit, left: deque[int], total: int) -> ipc.RequestOutput:
        now = time.monotonic()
        timing = ipc.Timing(now - 0.3, now - 0.2, now - 0.1, now)
        first = len(left) == total
        scored = self._scores(submit.prompt[1:]) if first and submit.sampling.prompt_logprobs else ()
        if not left:
            return ipc.RequestOutput(
                submit.request_id, finish_reason="stop", stop_token=EOS, prompt_logprobs=scored, timing=timing
            )
        token = left.popleft()
        full = total - len(left) >= submit.sampling.max_tokens
        return ipc.RequestOutput(
            submit.request_id,
            (token,),
            finish_reason="length" if full else "",
            logprobs=self._scores((token,)) if submit.sampling.logprobs is not None else (),
            prompt_logprobs=scored,
            cached_tokens=3 if first else 0,
            timing=timing if full else None,
        )

    @staticmethod
    def _scores(tokens: tuple[int, ...]) -> tuple[ipc.TokenLogprob, ...]:
        return tuple(ipc.TokenLogprob(t, -0.5, 1, ((t, -0.5), ((t + 1) % 256, -1.5))) for t in tokens)

    def _embedding(self, message: ipc.Embed) -> ipc.EmbedResult:
        if self.embed_error:
            return ipc.EmbedResult(message.request_id, error=self.embed_error)
        width = message.dimensions or int(self.info.get("embedding_size", 4))
        rows = [[len(one) + i / 8 for i in range(width)] for one in message.inputs or message.pictures]
        raw = b"".join(struct.pack(f"<{width}f", *row) for row in rows)
        return ipc.EmbedResult(message.request_id, raw, width, sum(map(len, message.inputs)))


@dataclass(eq=False)
class RuntimeBench:
    """A running runtime, its scripted engine and a client."""

    runtime: Runtime
    engine: ScriptedEngine
    http: aiohttp.ClientSession
    stop: asyncio.Event
    running: asyncio.Task[None]

    @property
    def url(self) -> str:
        """Base URL of the serving API."""
        return f"http://127.0.0.1:{self.runtime.port}"

    @property
    def control(self) -> str:
        """Base URL of the control API."""
        return f"http://127.0.0.1:{self.runtime.control_port}/control/v1"

    async def post(self, path: str, body: Any, **arguments: Any) -> tuple[int, Any, Any]:
        """POST JSON (or raw bytes); returns status, document and headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=data, **arguments) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers

    async def get(self, path: str, **arguments: Any) -> tuple[int, str]:
        """GET; returns status and text."""
        async with self.http.get(self.url + path, **arguments) as answer:
            return answer.status, await answer.text()

    async def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """POST with stream: true; returns the decoded events, `"[DONE]"` included."""
        async with self.http.post(self.url + path, json={**body, "stream": True}) as answer:
            assert answer.status == 200, await answer.text()
            text = (await answer.read()).decode()
        found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        return [one if one == "[DONE]" else json.loads(one) for one in found]

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of the runtime's registry, 0.0 if there is none."""
        value = self.runtime.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


@asynccontextmanager
async def running_runtime(
    folder: Path,
    *,
    engine: ScriptedEngine | None = None,
    wait: bool = True,
    linger: float = 0.0,
    **settings: Any,
) -> AsyncIterator[RuntimeBench]:
    """A runtime around a scripted engine; settings override quick defaults."""
    engine = engine or ScriptedEngine()
    engine.model_dir = engine.model_dir or str(write_model(folder / "model"))
    values = {
        "model_uri": f"hf://{MODEL}",
        "model_name": MODEL,
        "host": "127.0.0.1",
        "port": 0,
        "control_port": 0,
        "control_token": "control",
        "grace_seconds": 4,
        "max_num_seqs": 8,
        **settings,
    }
    runtime = Runtime(RuntimeSettings(**values), EngineClient(zygote=engine), linger_seconds=linger)
    stop = asyncio.Event()
    running = asyncio.create_task(runtime.run(stop))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        bench = RuntimeBench(runtime, engine, http, stop, running)
        try:
            await until(lambda: running.done() or runtime.control_port > 0)
            if wait:
                await until(lambda: running.done() or not runtime.host.not_ready())
            if running.done():
                running.result()
            yield bench
        finally:
            stop.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(running, 60)
            await engine.close()


async def until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until ``holds()``; fail after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)

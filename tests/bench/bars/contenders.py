"""Who is measured: programs that read jobs from a pipe, and servers that are asked over HTTP on loopback.

Both run from beginning to end in a session of their own with one thread of computing, and rest while others run.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from tests.bench.bars import processes
from tests.bench.bars.work import Sample

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.bench.bars.work import Codec, Job

START_SECONDS = 900.0  # imports of a peer take minutes on a busy machine
JOB_SECONDS = 600.0
_LINE = 1 << 22
_LAST = 400  # characters of what a contender said last
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",  # the model is a folder; nothing is fetched
    "TOKENIZERS_PARALLELISM": "false",
}


class ContenderLost(Exception):  # noqa: N818 - reads as what happened
    """It did not start, or ended, or did not answer: the benchmark goes on without it."""


class Contender(Protocol):
    """One of those who are measured."""

    name: str
    start_seconds: float
    peak_bytes: int

    async def start(self) -> None:
        """Start it; ready on return. Raises ContenderLost."""
        ...

    async def run(self, job: Job) -> Sample:
        """Do a job. Raises ContenderLost."""
        ...

    async def stop(self) -> None:
        """End it, started or not."""
        ...


@dataclass(slots=True)
class Program:
    """How a contender is started, and what it says on the way."""

    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: Process | None = None

    async def start(self) -> Process:
        """Start it, in a session of its own; what it says on stderr goes to the log."""
        try:
            with self.log.open("wb") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self.command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **ONE_THREAD, **self.environment},
                    start_new_session=True,
                    limit=_LINE,
                )
        except OSError as error:
            raise ContenderLost(f"it could not be started: {error}") from error
        return self.process

    @property
    def pid(self) -> int:
        """The process that was started."""
        if self.process is None:
            raise ContenderLost("it was not started")
        return self.process.pid

    async def stop(self) -> None:
        """End it with all it started."""
        if self.process is not None:
            await processes.end(self.process)
            self.process = None

    def lost(self, what: str) -> ContenderLost:
        """Return an error with what it said last."""
        said = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return ContenderLost(f"{what}: {said.splitlines()[-1][-_LAST:] if said else 'it said nothing'}")


@dataclass(slots=True)
class Worker:
    """A program that takes a line of JSON for each batch and answers with one, see `transformers_worker` and `generate.mjs`."""

    name: str
    program: Program
    codec: Codec
    start_seconds: float = 0.0
    peak_bytes: int = 0

    async def start(self) -> None:
        """Start it and wait for its first line."""
        began = time.perf_counter()
        await self.program.start()
        await self._line(START_SECONDS)
        self.start_seconds = time.perf_counter() - began
        processes.rest(self.program.pid)

    async def run(self, job: Job) -> Sample:
        """Do a job, batch after batch. It measures its own CPU seconds."""
        processes.wake(self.program.pid)
        found = [await self._batch(*batch) for batch in job.batches()]
        self.peak_bytes = max(self.peak_bytes, processes.memory_bytes(self.program.pid))
        processes.rest(self.program.pid)
        return Sample(
            tokens=sum(int(one["tokens"]) for one in found),
            cpu=sum(float(one["cpu"]) for one in found),
            wall=sum(float(one["wall"]) for one in found),
            first=median(float(one.get("first", 0.0)) for one in found),
        )

    async def stop(self) -> None:
        """End it."""
        await self.program.stop()

    async def _batch(self, prompts: tuple[str, ...], tokens: tuple[int, ...]) -> dict[str, Any]:
        process = self.program.process
        if process is None or process.stdin is None:
            raise ContenderLost("it was not started")
        order = {"prompts": [self.codec.encode(prompt) for prompt in prompts], "tokens": tokens}
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
        except ConnectionError:
            raise self.program.lost("it ended") from None
        return await self._line(JOB_SECONDS)

    async def _line(self, seconds: float) -> dict[str, Any]:
        """Return its next answer; lines that are not JSON are its libraries' own."""
        process = self.program.process
        if process is None or process.stdout is None:
            raise ContenderLost("it was not started")
        try:
            async with asyncio.timeout(seconds):
                while line := await process.stdout.readline():
                    if line.startswith(b"{"):
                        found: dict[str, Any] = json.loads(line)
                        return found
        except TimeoutError:
            raise self.program.lost(f"no answer in {seconds:.0f} s") from None
        raise self.program.lost("it ended")


@dataclass(slots=True)
class Server:
    """A server with OpenAI's text completions, asked in streams; the asking is not part of what is measured."""

    name: str
    program: Program
    url: str
    health: str
    body: Callable[[str, int], dict[str, Any]]
    rests: bool = True  # False for one that watches its own parts, and would take a rest for a failure
    start_seconds: float = 0.0
    peak_bytes: int = 0
    _reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it is healthy."""
        began = time.perf_counter()
        process = await self.program.start()
        self._reading = asyncio.create_task(_drop(process))
        async with aiohttp.ClientSession() as session:
            while not await _healthy(session, self.url + self.health):
                if process.returncode is not None:
                    raise self.program.lost(f"it ended with status {process.returncode}")
                if time.perf_counter() - began > START_SECONDS:
                    raise self.program.lost(f"not healthy in {START_SECONDS:.0f} s")
                await asyncio.sleep(0.05)
        self.start_seconds = time.perf_counter() - began
        self._rest()

    async def run(self, job: Job) -> Sample:
        """Do a job, batch after batch."""
        pid = self.program.pid
        if self.rests:
            processes.wake(pid)
        before, began = processes.family(pid), time.perf_counter()
        answers: list[_Answer] = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for prompts, tokens in job.batches():
                asked = (self._ask(session, *one) for one in zip(prompts, tokens, strict=True))
                answers += await asyncio.gather(*asked)
        wall, after = time.perf_counter() - began, processes.family(pid)
        self.peak_bytes = max(self.peak_bytes, processes.memory_bytes(pid))
        self._rest()
        return Sample(
            tokens=sum(one.tokens for one in answers),
            cpu=sum(after.values()) - sum(before.values()),
            wall=wall,
            first=median(one.times[0] - one.began if one.times else 0.0 for one in answers),
            front=after.get(pid, 0.0) - before.get(pid, 0.0),
            parts=sum(len(one.times) for one in answers),
            gaps=tuple(b - a for one in answers for a, b in zip(one.times, one.times[1:], strict=False)),
        )

    async def stop(self) -> None:
        """End it."""
        await self.program.stop()
        if self._reading is not None:
            await self._reading

    def _rest(self) -> None:
        if self.rests:
            processes.rest(self.program.pid)

    async def _ask(self, session: aiohttp.ClientSession, prompt: str, tokens: int) -> _Answer:
        answer = _Answer(time.perf_counter())
        limit = aiohttp.ClientTimeout(total=JOB_SECONDS)
        try:
            async with session.post(
                f"{self.url}/v1/completions", json=self.body(prompt, tokens), timeout=limit
            ) as got:
                if got.status != 200:
                    raise ContenderLost(f"status {got.status}: {(await got.text())[:_LAST]}")
                async for line in got.content:
                    answer.take(line)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.program.lost(f"no answer ({error!r})") from error
        if not answer.tokens:
            raise self.program.lost("an answer without tokens")
        return answer


@dataclass(slots=True)
class _Answer:
    """One stream as it came in."""

    began: float
    tokens: int = 0
    times: list[float] = field(default_factory=list)  # of each part of the text

    def take(self, line: bytes) -> None:
        """Read one line of the stream. Who does not tell the usage is counted by the parts of its text."""
        if not line.startswith(b"data: {"):
            return
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise ContenderLost(str(chunk["error"])[:_LAST])
        if any(choice.get("text") for choice in chunk.get("choices") or ()):
            self.times.append(time.perf_counter())
        usage = chunk.get("usage")
        self.tokens = int(usage["completion_tokens"]) if usage else max(self.tokens, len(self.times))


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _drop(process: Process) -> None:
    """Read away what a server prints, so that its pipe does not fill."""
    if process.stdout is not None:
        while await process.stdout.read(1 << 16):
            pass

"""What must not be noticed: adapters that come and go, a drain under load, memory that comes back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from llmos_operator.runtime.ipc import Load, SamplingParams, Submit
from tests.bench.bars import processes
from tests.bench.bars.contenders import JOB_SECONDS, ContenderLost
from tests.bench.bars.lineup import runtime
from tests.bench.engines import PROMPT, load_model
from tests.support.loras import CHAT_LAYERS, CHAT_SHAPES, write_random_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.runtime.ipc import EngineClient
    from tests.bench.bars.contenders import Server
    from tests.bench.bars.work import Book

_STREAMS = 8
_CHECKED = 24


@dataclass(slots=True)
class Life:
    """Seconds of each swap, streams that failed meanwhile, answers that changed; tokens lost by a drain; shares of memory."""

    swaps: list[float] = field(default_factory=list)
    failed: int = 0
    changed: int = 0
    lost: int = 0  # tokens
    drain_seconds: float = 0.0
    returned: list[float] = field(default_factory=list)


async def adapters(
    client: EngineClient, folder: Path, place: Path, swaps: int, tokens: int, life: Life
) -> None:
    """Swap one adapter for another and back; its answers must be what they were. Then under streams of so many tokens."""
    for seed in (0, 1):
        write_random_adapter(place / f"guest-{seed}", CHAT_SHAPES, CHAT_LAYERS, rank=8, seed=seed, width=0.02)
    wanted = Load(
        str(folder), allow_file=True, threads=1, max_num_seqs=_STREAMS, max_adapters=2, max_adapter_rank=8
    )
    await load_model(client, wanted)
    await client.load_adapter("guest", str(place / "guest-0"))
    answers = {0: await _answer(client, "guest", _CHECKED)}
    for turn in range(swaps):
        seed = (turn + 1) % 2
        began = time.perf_counter()
        await client.unload_adapter("guest")
        await client.load_adapter("guest", str(place / f"guest-{seed}"))
        life.swaps.append(time.perf_counter() - began)
        found = await _answer(client, "guest", _CHECKED)
        life.changed += answers.setdefault(seed, found) != found
    life.changed += swaps > 0 and answers[0] == answers.get(
        1
    )  # another adapter that answers alike was not swapped in
    running = [asyncio.create_task(_answer(client, "", tokens)) for _ in range(_STREAMS)]
    await _swaps_beside(client, place, running)
    life.failed = sum(len(one) != tokens for one in await asyncio.gather(*running))


async def _swaps_beside(
    client: EngineClient, place: Path, running: list[asyncio.Task[tuple[int, ...]]]
) -> None:
    """Swap adapters until one of the streams has ended, at least once."""
    seed = 0
    while True:
        await client.unload_adapter("guest")
        await client.load_adapter("guest", str(place / f"guest-{seed}"))
        seed = 1 - seed
        if any(one.done() for one in running):
            return


async def _answer(client: EngineClient, adapter: str, tokens: int) -> tuple[int, ...]:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    submit = Submit(f"{time.monotonic_ns()}", PROMPT, sampling, adapter=adapter)
    async with asyncio.timeout(JOB_SECONDS), client.generate(submit) as outputs:
        return tuple([token async for output in outputs for token in output.tokens])


async def unload(client: EngineClient, folder: Path, rounds: int, life: Life) -> None:
    """Load and unload a model; of the memory that it took, how much is given back?"""
    zygote = client._zygote.pid
    if zygote is None:
        raise RuntimeError("there is no template process")
    for _ in range(rounds):
        await client.unload()
        before = processes.memory_bytes(zygote)
        await load_model(client, Load(str(folder), allow_file=True, threads=1))
        await _answer(client, "", _CHECKED)
        loaded = processes.memory_bytes(zygote)
        await client.unload()
        life.returned.append((loaded - processes.memory_bytes(zygote)) / (loaded - before))


async def drain(folder: Path, place: Path, book: Book, life: Life, *, gpu: bool) -> None:
    """End a runtime by SIGTERM while it answers; every stream must get all of its tokens."""
    server = runtime("llmos drained", "bf16", folder, place, gpu=gpu)
    job = book.drained()
    try:
        await server.start()
        process, began = server.program.process, time.perf_counter()
        running = asyncio.create_task(server.run(job))
        await _all_run(server, job.streams, running)
        if process is not None:
            process.terminate()
        try:
            life.lost = sum(job.tokens) - (await running).tokens
        except ContenderLost:
            life.lost = sum(job.tokens)
        if process is not None:
            await process.wait()
        life.drain_seconds = time.perf_counter() - began
    finally:
        await server.stop()


async def _all_run(server: Server, streams: int, running: asyncio.Task[object]) -> None:
    """Wait until the runtime says that so many requests run. Raises ContenderLost if they end before."""
    async with aiohttp.ClientSession() as session:
        while not running.done():
            async with session.get(server.url + "/metrics") as answer:
                text = await answer.text()
            counts = [line.rsplit(" ", 1)[1] for line in text.splitlines() if _counts_running(line)]
            if counts and float(counts[0]) >= streams:
                return
            await asyncio.sleep(0.02)
    raise ContenderLost(f"{streams} requests never ran together")


def _counts_running(line: str) -> bool:
    return line.startswith("vllm:num_requests_running")

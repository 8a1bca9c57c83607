"""LoRA adapters: what a hot swap takes while eight streams run, and what adapters cost in tokens per second.

The packaged chat model in a real engine process, one thread, adapters of rank 8 on all seven projections (9.8 MB as
PEFT writes them). Rates are interleaved in one run: no adapter, all streams on one, the streams on four.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from llmos_operator.runtime.ipc import EngineClient, Load, SamplingParams, Submit
from tests.bench.engines import PROMPT, SECONDS, an_engine, load_model
from tests.bench.report import Table
from tests.support.loras import CHAT_LAYERS, CHAT_SHAPES, write_random_adapter
from tests.support.models import CHAT, packaged

FORMATS = ("bf16", "int8", "int4")
STREAMS = 8
TOKENS = 48
SWAPS = 5
REPEATS = 3
NAMES = ("one", "two", "three", "four")
COMPANY: dict[str, tuple[str, ...]] = {"none": ("",), "one": NAMES[:1], "four": NAMES}


@dataclass(slots=True)
class Measured:
    """One format: seconds of each swap, idle and under streams, failed requests during the swaps, tokens per second by company."""

    idle: list[float] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    failed: int = 0
    rates: dict[str, list[float]] = field(default_factory=dict)


def run() -> list[Table]:
    """Measure every format."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapters"
        for seed, name in enumerate((*NAMES, "guest-0", "guest-1")):
            write_random_adapter(folder / name, CHAT_SHAPES, CHAT_LAYERS, rank=8, seed=seed, width=0.02)
        size = sum(file.stat().st_size for file in (folder / "one").iterdir())
        found = asyncio.run(_formats(folder, str(Path(place) / "cache")))
    return [_table(found, size)]


async def _formats(folder: Path, cache: str) -> dict[str, Measured]:
    found = {}
    async with an_engine() as client:
        for name in FORMATS:
            wanted = Load(
                str(packaged(CHAT)),
                format=name,
                cache_dir=cache,
                allow_file=True,
                threads=1,
                max_num_seqs=STREAMS,
                max_adapters=5,
                max_adapter_rank=8,
            )
            await load_model(client, wanted)
            found[name] = await _measure(client, folder)
    return found


async def _measure(client: EngineClient, folder: Path) -> Measured:
    result = Measured(rates={name: [] for name in COMPANY})
    await _generate(client, ("",), 4)
    await client.load_adapter("one", str(folder / "one"))
    await client.load_adapter("guest", str(folder / "guest-0"))
    result.idle = [await _swap(client, folder, turn) for turn in range(SWAPS)]
    running = asyncio.create_task(_generate(client, ("", "one"), 4 * TOKENS))
    for turn in range(SWAPS):
        result.swaps.append(await _swap(client, folder, turn))
        if running.done():
            raise RuntimeError("the streams ended before the swaps")
    result.failed = (await running)[1]
    await client.unload_adapter("guest")
    for name in NAMES[1:]:
        await client.load_adapter(name, str(folder / name))
    for _ in range(REPEATS):
        for company, names in COMPANY.items():
            rate, failed = await _generate(client, names, TOKENS)
            result.rates[company].append(rate)
            result.failed += failed
    return result


async def _swap(client: EngineClient, folder: Path, turn: int) -> float:
    """Return the seconds from the order to unload one adapter to the answer that another is there."""
    began = time.perf_counter()
    await client.unload_adapter("guest")
    await client.load_adapter("guest", str(folder / f"guest-{(turn + 1) % 2}"))
    return time.perf_counter() - began


async def _generate(client: EngineClient, names: tuple[str, ...], tokens: int) -> tuple[float, int]:
    """Return tokens per second of all streams together, and how many of them did not get all of theirs."""
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)

    async def stream(number: int) -> int:
        adapter = names[number % len(names)]
        request = f"{time.monotonic_ns()}-{number}"
        submit = Submit(request, (2000 + number, *PROMPT[1:]), sampling, adapter=adapter)
        async with client.generate(submit) as outputs:
            return sum([len(output.tokens) async for output in outputs])

    began = time.perf_counter()
    async with asyncio.timeout(SECONDS):
        made = await asyncio.gather(*(stream(number) for number in range(STREAMS)))
    return sum(made) / (time.perf_counter() - began), sum(one != tokens for one in made)


def _table(found: dict[str, Measured], size: int) -> Table:
    rows = []
    for name, one in found.items():
        plain = median(one.rates["none"])
        cells = [
            f"{median(one.rates[company]):.1f} ({median(one.rates[company]) / plain:.2f})"
            for company in COMPANY
        ]
        rows.append(
            [
                name,
                f"{median(one.idle):.3f}",
                f"{median(one.swaps):.3f}",
                f"{max(one.swaps):.3f}",
                str(one.failed),
                *cells,
            ]
        )
    note = (
        f"Swap: unload one adapter and load another ({size / 1e6:.1f} MB) from the disk's cache, order to answer, in seconds of "
        f"wall time, alone and while {STREAMS} streams decode on the same thread (each of the two orders waits for a step); {SWAPS} swaps. Rates are tokens per second of {STREAMS} streams "
        f"of {len(PROMPT)} prompt and {TOKENS} new tokens, median of {REPEATS} interleaved, with the ratio to no adapter. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}."
    )
    columns = [
        "format",
        "swap idle, s",
        "under streams, s",
        "slowest",
        "failed",
        "no adapter",
        "one adapter",
        "four adapters",
    ]
    return Table("LoRA adapters", columns, rows, note)

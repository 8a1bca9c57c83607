"""Runtime: load time by stage and tokens per second, against plain transformers.

The packaged chat model in a real engine process, one thread. The baseline is `generate` of transformers at bf16 in a
fresh process with one thread, in the same run: one stream, and a batch of eight.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import EngineClient, Load, SamplingParams, Submit, Zygote
from tests.bench.report import ROOT, Table
from tests.support.models import CHAT, packaged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llmos_operator.runtime.ipc.client import EngineStatus

FORMATS = ("bf16", "int8", "int4")
STREAMS = (1, 8)
TOKENS = 48  # new tokens of each stream
PROMPT = tuple(range(1000, 1032))  # 32 tokens: what they say does not matter, everybody continues the same
SECONDS = 240.0
REPEATS = 2

# Run in a process of its own: neither its memory nor its threads meet the engine's.
BASELINE = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
folder, tokens, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
prompt, streams = json.loads(sys.argv[4]), json.loads(sys.argv[5])
began = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
loaded = time.perf_counter() - began
rates = {}
with torch.inference_mode():
    for count in streams:
        given = torch.tensor([prompt] * count)
        def answer(new):
            model.generate(given, attention_mask=torch.ones_like(given), min_new_tokens=new, max_new_tokens=new,
                           do_sample=False, pad_token_id=0)
        answer(4)
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            answer(tokens)
            seconds.append(time.perf_counter() - began)
        rates[count] = count * tokens / min(seconds)
print(json.dumps({"load": loaded, "rates": rates}))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One format: stages of the cold and the warm load in seconds, tokens per second by streams, bytes."""

    cold: dict[str, float]
    warm: dict[str, float]
    cold_seconds: float
    warm_seconds: float
    rates: dict[int, float]
    peak_bytes: int


def run() -> list[Table]:
    """Measure the baseline, then every format."""
    load = os.getloadavg()[0]
    folder = packaged(CHAT)
    plain_load, plain = _plain(folder)
    with tempfile.TemporaryDirectory() as cache:
        found = asyncio.run(_engine(folder, cache))
    return [_loads(found, plain_load), _rates(found, plain, load)]


def _plain(folder: Path) -> tuple[float, dict[int, float]]:
    """Return load seconds and tokens per second by streams of plain transformers."""
    arguments = [str(folder), str(TOKENS), str(REPEATS), json.dumps(PROMPT), json.dumps(STREAMS)]
    done = subprocess.run(
        [sys.executable, "-c", BASELINE, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return float(answer["load"]), {int(count): float(rate) for count, rate in answer["rates"].items()}


async def _engine(folder: Path, cache: str) -> dict[str, Measured]:
    """Load every format twice, the second time from the cache, and let it generate."""
    found = {}
    async with an_engine() as client:
        for name in FORMATS:
            wanted = Load(
                str(folder),
                format=name,
                cache_dir=cache,
                allow_file=True,
                threads=1,
                max_num_seqs=max(STREAMS),
            )
            cold, cold_seconds = await load_model(client, wanted)
            warm, warm_seconds = await load_model(client, wanted)
            await _generate(client, 1, 4)
            rates = {count: await _rate(client, count) for count in STREAMS}
            peak = client.status().memory.peak_bytes or warm.memory.measured_bytes
            found[name] = Measured(_stages(cold), _stages(warm), cold_seconds, warm_seconds, rates, peak)
    return found


@asynccontextmanager
async def an_engine() -> AsyncIterator[EngineClient]:
    """An engine of one thread, to be told what to load."""
    os.environ["OMP_NUM_THREADS"] = "1"
    zygote = Zygote()
    client = EngineClient(zygote=zygote)
    try:
        await client.prepare()
        yield client
    finally:
        await client.close()
        await zygote.close()


async def load_model(client: EngineClient, wanted: Load) -> tuple[EngineStatus, float]:
    """Return the status of a model that is ready, and the seconds that took."""
    began = time.perf_counter()
    async with asyncio.timeout(SECONDS):
        await client.load(wanted)
        status = await client.wait(RuntimeState.READY, RuntimeState.FAILED)
    if status.state is not RuntimeState.READY:
        raise RuntimeError(f"{wanted.format} was not loaded: {status.failure}")
    return status, time.perf_counter() - began


def _stages(status: EngineStatus) -> dict[str, float]:
    return dict(status.info.stage_seconds) if status.info else {}


async def _rate(client: EngineClient, count: int) -> float:
    """Return tokens per second of all streams together, the better of the repeats."""
    return max([await _generate(client, count, TOKENS) for _ in range(REPEATS)])


async def _generate(client: EngineClient, count: int, tokens: int) -> float:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)

    async def stream(number: int) -> int:
        # The first token differs: the prompts of the streams are not to be shared.
        submit = Submit(f"{time.monotonic_ns()}-{number}", (2000 + number, *PROMPT[1:]), sampling)
        async with client.generate(submit) as outputs:
            return sum([len(output.tokens) async for output in outputs])

    began = time.perf_counter()
    async with asyncio.timeout(SECONDS):
        made = await asyncio.gather(*(stream(number) for number in range(count)))
    if sum(made) != count * tokens:
        raise RuntimeError(f"{sum(made)} tokens came instead of {count * tokens}")
    return sum(made) / (time.perf_counter() - began)


def _loads(found: dict[str, Measured], plain: float) -> Table:
    names = max((list(one.cold) for one in found.values()), key=len)
    rows = []
    for name, one in found.items():
        for path, stages, seconds in (
            ("cold", one.cold, one.cold_seconds),
            ("warm", one.warm, one.warm_seconds),
        ):
            parts = [f"{stages[stage]:.2f}" if stage in stages else "" for stage in names]
            before = seconds - sum(stages.values())
            rows.append([name, path, f"{before:.2f}", *parts, f"{seconds:.2f}", f"{seconds / plain:.1f}"])
    note = (
        "Seconds from the order to ready, the model's files on the local disk. Cold: nothing converted yet, so a "
        "quantised format is made and judged against the source (within warming); warm: from the cache. Process: what "
        "no stage claims, the end of the engine before and the start of this one; the very first one also waits until "
        "torch is imported. The ratio is to "
        f"`from_pretrained` of transformers at bf16: {plain:.2f} s, without the import of torch and without warming up."
    )
    columns = ["format", "load", "process", *(stage.lower() for stage in names), "together", "ratio"]
    return Table("Load time by stage, s", columns, rows, note)


def _rates(found: dict[str, Measured], plain: dict[int, float], load: float) -> Table:
    rows = [["transformers, bf16", *_cells(plain, plain), ""]]
    for name, one in found.items():
        rows.append([f"engine, {name}", *_cells(one.rates, plain), f"{one.peak_bytes / 2**20:.0f} MiB"])
    note = (
        f"Generated tokens per second of all streams together, the better of {REPEATS} runs: {len(PROMPT)} prompt tokens "
        f"and {TOKENS} new ones a stream, greedy, prompt processing included, one thread. The baseline answers eight "
        f"streams as one batch that starts and ends together. Load average before: {load:.1f}."
    )
    columns = ["what"]
    for count in STREAMS:
        columns += [f"{count} stream{'s' if count > 1 else ''}, tokens/s", "ratio"]
    return Table("Tokens per second", [*columns, "peak memory"], rows, note)


def _cells(rates: dict[int, float], plain: dict[int, float]) -> list[str]:
    return [
        cell for count in STREAMS for cell in (f"{rates[count]:.1f}", f"{rates[count] / plain[count]:.2f}")
    ]

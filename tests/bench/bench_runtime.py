"""Runtime: every bar of its design, against transformers, vLLM and llama.cpp in the same run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

from llmos_operator.local.layout import cache_root
from tests.bench.bars import life, lineup, loading
from tests.bench.bars.judging import absent
from tests.bench.bars.judging import table as bars_table
from tests.bench.bars.lineup import BF16, INT8, OURS, SERVE, STATIC, TAKES, VLLM
from tests.bench.bars.rounds import Results, middle, minutes, play, started, wanted_rounds
from tests.bench.bars.verdicts import bars
from tests.bench.bars.work import FULL, QUICK, Book
from tests.bench.engines import an_engine
from tests.bench.report import Table
from tests.support.models import CHAT, packaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.bars.contenders import Contender
    from tests.bench.bars.work import Codec

_STREAMS = ("1", "8", "32")


def run() -> list[Table]:
    """Measure everything."""
    rounds, quick = wanted_rounds(), bool(os.environ.get("QUICK"))
    about, most = minutes(rounds)
    if quick:
        _say("QUICK: small jobs, to see that everything works; the figures mean nothing")
    _say(f"{rounds} rounds: about {about} min on a quiet machine; no round begins after {most} min")
    until = time.monotonic() + most * 60
    place = cache_root() / "bench"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        return asyncio.run(_measure(Path(folder), rounds, until, quick=quick))


async def _measure(place: Path, rounds: int, until: float, *, quick: bool) -> list[Table]:
    import torch  # noqa: PLC0415 - seconds

    task = asyncio.current_task()
    if task is not None:  # as SIGINT does: whoever was started is ended
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    gpu, folder = torch.cuda.is_available(), packaged(CHAT)
    found = life.Life()
    sizes = QUICK if quick else FULL
    book = Book(_codec(folder), sizes)
    async with an_engine() as client:
        loads = await loading.formats(client, folder, place / "cache")
        _say("formats loaded")
        layers = 2 if quick else loading.LAYERS
        large = await loading.large(client, place, rounds, loads["bf16"][1].private_bytes, layers)
        _say("large model loaded" if not large.why else large.why)
        await life.adapters(client, folder, place, 2 * rounds, sizes.beside, found)
        await life.unload(client, folder, rounds, found)
    await life.drain(folder, place, book, found, gpu=gpu)
    _say("adapters, unload and drain measured")
    who = lineup.lineup(folder, place, _codec(folder), gpu=gpu)
    async with started(who.contenders, who.missing, book, _say) as running:
        results = await play(running, TAKES, who.missing, book, rounds, gpu=gpu, until=until, say=_say)
        return _tables(results, loads, large, found, who.missing, who.contenders)


def _tables(
    results: Results,
    loads: dict[str, tuple[loading.Loaded, loading.Loaded]],
    large: loading.Large,
    found: life.Life,
    missing: dict[str, str],
    contenders: Sequence[Contender],
) -> list[Table]:
    unit = "seconds" if results.gpu else "CPU seconds of the serving processes, one thread of computing"
    note = (
        f"Medians of {results.rounds} rounds in which everybody takes turns; ratios are taken within a round. The packaged chat "
        f"model of 135 M parameters; rates are tokens per {unit}, prompts included. The design's bars are for a quiet CPU."
    )
    tables = [
        bars_table(bars(results, loads, large, found, missing), note),
        _rates(results, contenders),
        loading.table(loads),
        _further(results, large, found),
    ]
    return [*tables, absent(missing)] if missing else tables


def _rates(results: Results, contenders: Sequence[Contender]) -> Table:
    unit = "s" if results.gpu else "CPU-s"
    rows = []
    for one in contenders:
        cells = [one.name]
        for job in _STREAMS:
            rate, first = middle(results.rates(one.name, job)), middle(_firsts(results, one.name, job))
            cells += [f"{rate:.1f}" if rate else "", f"{first:.2f} s" if first else ""]
        rows.append([*cells, f"{one.start_seconds:.1f} s", f"{one.peak_bytes / 2**20:.0f} MiB"])
    columns = ["what"]
    for job in _STREAMS:
        columns += [f"{job} stream{'s' if job != '1' else ''}, tokens/{unit}", "TTFT"]
    note = (
        "Prompts of 16 to 96 tokens, answers of 16 to 48, the same for all, new ones each round. TTFT is wall time, the median "
        "of the streams; blank where a program gives tokens only at the end. Start: from the command to healthy, everything "
        "cached. Memory: the most that was seen after a job, shared pages once. transformers, vLLM at bf16."
    )
    return Table("Rates", [*columns, "start", "memory"], rows, note)


def _firsts(results: Results, name: str, job: str) -> list[float]:
    return [one for one in results.values(name, job, lambda sample: sample.first) if one]


def _further(results: Results, large: loading.Large, found: life.Life) -> Table:
    """Return figures that no bar is set for."""
    rows = []
    for name in (SERVE, VLLM, BF16, INT8):
        gaps = [gap for one in results.samples.get((name, "mixed"), []) if one for gap in one.gaps]
        if len(gaps) > 1:
            cut = quantiles(gaps, n=100)
            what = f"time between tokens of 7 streams beside a prompt of 1,000: median, p99, {name}"
            rows.append([what, f"{cut[49] * 1000:.0f} ms, {cut[98] * 1000:.0f} ms"])
    rows += [
        [f"one stream that repeats its prompt (guessed tokens), {name} / `generate`", f"{ratio:.2f}x"]
        for name in (BF16, INT8)
        if (ratio := middle(results.speedup(name, STATIC, "copy"))) is not None
    ]
    for name in OURS:
        per_step = middle(results.values(name, "1", lambda sample: sample.tokens / max(1, sample.parts)))
        if per_step is not None:
            rows.append([f"tokens a step of one stream (guessed ones included), {name}", f"{per_step:.2f}"])
    if large.dd:
        rows.append(["disk, `dd` direct", f"{middle(large.dd):.2f} GB/s"])
        rows.append(["load of 2.3 GB from the disk", f"{middle(large.cold):.2f} GB/s"])
    rows.append(
        ["drain: from SIGTERM to the end of the process, 8 streams finished", f"{found.drain_seconds:.1f} s"]
    )
    return Table(
        "Further figures", ["what", "measured"], rows, "Wall time, so of a quiet machine or of little use."
    )


def _codec(folder: Path) -> Codec:
    from tokenizers import Tokenizer  # noqa: PLC0415 - only where it is needed

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    class _Tokens:
        def encode(self, text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
            return ids

        def decode(self, ids: Sequence[int]) -> str:
            text: str = tokenizer.decode(list(ids))
            return text

    return _Tokens()


def _say(text: str) -> None:
    sys.stdout.write(f"   {text}\n")
    sys.stdout.flush()

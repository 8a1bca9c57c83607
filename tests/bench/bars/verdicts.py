"""The bars of the runtime's design, each from what was measured in this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.bars.judging import Bar
from tests.bench.bars.lineup import BF16, CONTINUOUS, INT4, INT8, LLAMA, SERVE, STATIC, VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.bars.life import Life
    from tests.bench.bars.loading import Large, Loaded
    from tests.bench.bars.rounds import Results

# (what, whose rate, against whose, at which job, the least ratio): tokens per CPU second, or per second on a GPU.
RATES: tuple[tuple[str, str, str, str, float], ...] = (
    ("one stream over HTTP, bf16 / plain `generate` in process", BF16, STATIC, "1", 0.95),
    ("one stream, int8 / bf16", INT8, BF16, "1", 1.5),
    ("one stream, int4 / bf16", INT4, BF16, "1", 1.7),
    ("one stream, int4 / llama.cpp Q4_1", INT4, LLAMA, "1", 0.55),
    ("8 streams, bf16 / static batch of `generate`", BF16, STATIC, "8", 1.1),
    ("8 streams, int8 / static batch of `generate` bf16", INT8, STATIC, "8", 1.35),
    ("8 streams, bf16 / vLLM bf16", BF16, VLLM, "8", 0.75),
    ("8 streams, int8 / vLLM bf16", INT8, VLLM, "8", 0.9),
    ("32 streams, bf16 / static batch of `generate`", BF16, STATIC, "32", 1.2),
    ("32 streams, bf16 / continuous batching of transformers in process", BF16, CONTINUOUS, "32", 1.25),
    ("32 streams, bf16 / `transformers serve`", BF16, SERVE, "32", 1.8),
    ("32 streams, bf16 / vLLM", BF16, VLLM, "32", 0.95),
)


def bars(
    results: Results,
    loads: Mapping[str, tuple[Loaded, Loaded]],
    large: Large,
    life: Life,
    missing: Mapping[str, str],
) -> list[Bar]:
    """Return every bar."""
    return [
        *_rates(results, missing),
        Bar(
            "TTFT of about 512 tokens, int8 / bf16",
            1.25,
            results.costs((INT8, "prompt"), (BF16, "prompt")),
            most=True,
        ),
        *_loading(large),
        *_formats(loads),
        Bar("adapter swap (9.8 MB)", 0.25, life.swaps, most=True, unit="s", digits=3),
        Bar("streams that failed during swaps", 0, [life.failed], most=True, unit="", digits=0),
        Bar("answers changed by swapping away and back", 0, [life.changed], most=True, unit="", digits=0),
        Bar(
            "TTFT of about 1,000 tokens, prefix hit / cold",
            0.15,
            results.costs((BF16, "hit"), (BF16, "cold")),
            most=True,
        ),
        Bar(
            "the front's share of the CPU at 32 streams",
            10,
            results.values(BF16, "32", lambda sample: 100 * sample.front / max(sample.cpu, 1e-9)),
            most=True,
            unit="%",
            digits=1,
        ),
        Bar("tokens lost by a drain at 8 streams", 0, [life.lost], most=True, unit="", digits=0),
        Bar("memory that an unload returns", 95, [100 * one for one in life.returned], unit="%", digits=1),
    ]


def _rates(results: Results, missing: Mapping[str, str]) -> list[Bar]:
    return [
        Bar(what, bound, results.speedup(one, other, job), why=_why((one, other), missing))
        for what, one, other, job, bound in RATES
    ]


def _why(names: Sequence[str], missing: Mapping[str, str]) -> str:
    return ", ".join(f"no {name}" for name in names if name in missing)


def _loading(large: Large) -> list[Bar]:
    return [
        Bar("load of 2.3 GB from the disk / `dd` direct", 0.9, large.ratios, why=large.why),
        Bar("load of 2.3 GB from memory", 1.0, large.warm, most=True, unit="s", why=large.why),
        Bar(
            "private memory of that load",
            50,
            large.private_mib,
            most=True,
            unit="MiB",
            digits=0,
            why=large.why,
        ),
    ]


def _formats(loads: Mapping[str, tuple[Loaded, Loaded]]) -> list[Bar]:
    weights = {name: pair[1].memory.weights_bytes for name, pair in loads.items()}
    found = [
        Bar(f"weights, {name} / bf16", bound, [weights[name] / weights["bf16"]], most=True)
        for name, bound in (("int8", 0.61), ("int4", 0.46))
    ]
    int8, int4 = loads["int8"][0], loads["int4"][0]
    loss = [] if int8.loss_milli is None else [int8.loss_milli / 1000]
    found.append(Bar("int8, perplexity against the source", 1.0, loss, most=True, unit="%"))
    for what, one, bound in (
        ("int8, KL against the source", int8, 0.01),
        ("int4 of Q4_1, KL against the source", int4, 0.005),
    ):
        value = [] if one.kl_micro is None else [one.kl_micro / 1e6]
        found.append(Bar(what, bound, value, most=True, unit="", digits=4))
    return found

"""Models and precisions whose memory is predicted, run and held against the prediction, by a test and by a benchmark."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.memory import SLACK_BYTES
from llmos_operator.runtime.backends.build import CONVERTED
from llmos_operator.scheduler import sizing
from llmos_operator.state.types import FormatProfile
from tests.support.builders import SMALL_MODEL, a_profile, a_workload
from tests.support.memoryprobe import Run, alone
from tests.support.models import CHAT, SENTENCES, packaged, write_random

if TYPE_CHECKING:
    from pathlib import Path

URI = "hf://org/model"
STATED = 0.08  # of the whole; of models below one billion parameters (one of 1 B and more: 0.05)
BESIDE_BASE = SLACK_BYTES  # the base is most of a small model, so its own part is held to bytes, too
SEED = 5
CONVERTING = 2 * SLACK_BYTES  # what a process that converts may take beyond the prediction
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")


@dataclass(frozen=True, slots=True)
class Case:
    """A model at a precision: a first run that teaches, and a second that is larger."""

    title: str
    first: Run
    second: Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bytes of both runs. ``reserved``: what the scheduler reserves for the second once the first has been measured."""

    case: Case
    predicted: int
    converting: int  # what the run took that also converted the model; where nothing is converted, the first
    peak: int
    base: int
    reserved: int
    reached: int  # what the second run took, its KV cache all but full
    last: dict[str, int]  # the engine's memory report of the second run

    @property
    def prediction_error(self) -> float:
        """Part by which the first prediction is above what was measured."""
        return self.predicted / self.peak - 1

    @property
    def reservation_error(self) -> float:
        """Part by which the reservation after one run is above what the second took."""
        return self.reserved / self.reached - 1


def packaged_cases() -> list[Case]:
    """Return the packaged models at each precision they are served at."""
    chat, sentences = str(packaged(CHAT)), str(packaged(SENTENCES))
    found = [
        Case(f"SmolLM2-135M {fmt}", Run(chat, fmt, 2, 256), Run(chat, fmt, 6, 384))
        for fmt in ("fp32", "bf16", "int8", "int4")
    ]
    return found + [
        Case(
            f"MiniLM {fmt}",
            Run(sentences, fmt, 2, 128, generative=False),
            Run(sentences, fmt, 8, 256, generative=False),
        )
        for fmt in ("fp32", "bf16", "int8", "int4")
    ]


def random_cases(folder: Path, count: int = 5) -> list[Case]:
    """Write ``count`` models of drawn families and sizes below ``folder``; each is served at a drawn precision."""
    draw = random.Random(SEED)
    found = []
    for number in range(count):
        family, fmt = _FAMILIES[number % len(_FAMILIES)], draw.choice(("bf16", "int8"))
        values = _drawn(draw)
        where = folder / f"random-{number}"
        write_random(where, family, seed=number, **values)
        sizes = (
            f"{values['num_hidden_layers']} layers of {values['hidden_size']}, {values['vocab_size']} tokens"
        )
        path = str(where)
        found.append(Case(f"{family} {sizes}, {fmt}", Run(path, fmt, 2, 128), Run(path, fmt, 6, 256)))
    return found


def _drawn(draw: random.Random) -> dict[str, Any]:
    heads, groups = draw.choice((4, 8)), draw.choice((1, 2))
    head_dim = draw.choice((32, 64))
    return {
        "hidden_size": heads * head_dim,
        "intermediate_size": heads * head_dim * draw.choice((2, 3, 4)),
        "num_hidden_layers": draw.randint(2, 10),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // groups,
        "head_dim": head_dim,
        "vocab_size": draw.choice((320, 8192, 32_000)),
        "tie_word_embeddings": draw.random() < 0.5,
    }


def outcomes(cases: list[Case], folder: Path) -> list[Outcome]:
    """Run all ``cases``, in processes of their own, and return what was predicted, measured and would be reserved.

    A format made here is loaded once before the first run: what converting and judging leave in a process is not the
    model's.
    """
    runs = [
        [*([case.first] if case.first.format in CONVERTED else []), case.first, case.second] for case in cases
    ]
    reports = iter(alone(folder, [run for case in runs for run in case]))
    return [_outcome(case, [next(reports) for _ in made]) for case, made in zip(cases, runs, strict=True)]


def _outcome(case: Case, reports: list[dict[str, int]]) -> Outcome:
    first, second = reports[-2:]
    peak, told = first["steady_bytes"], first["predicted_bytes"]
    # As control.profiles keeps it of a replica that has served: at most an eighth below what was predicted.
    learned = FormatProfile(
        case.first.format, estimated_peak_bytes=told, measured_peak_bytes=max(peak, told - told // 8)
    )
    profile = a_profile(URI, SMALL_MODEL, learned)
    predicted_again = second["predicted_bytes"] - second["base_bytes"] + first["base_bytes"]
    workload = a_workload("w").serving(URI).value
    return Outcome(
        case=case,
        predicted=first["predicted_bytes"],
        converting=reports[0]["steady_bytes"],
        peak=peak,
        base=first["base_bytes"],
        reserved=sizing.corrected(predicted_again, workload, profile, case.first.format),
        reached=second["steady_bytes"] - second["base_bytes"] + first["base_bytes"],
        last=second,
    )

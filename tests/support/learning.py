"""Small models that learn, and runs over them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from llmos_operator.clock import FakeClock
from llmos_operator.runtime.formats.checkpoint import open_checkpoint
from llmos_operator.runtime.formats.config import read_config, read_eos
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.tuning import model as models
from llmos_operator.tuning.batches import split
from llmos_operator.tuning.checkpoints import Checkpoints
from llmos_operator.tuning.dataset import Sample
from llmos_operator.tuning.encoding import Encoder
from llmos_operator.tuning.memory import Meter, Parts
from llmos_operator.tuning.progress import Board
from llmos_operator.tuning.recipe import Lora, Recipe
from llmos_operator.tuning.training import Saving, Trainer
from tests.support.engine import write_model
from tests.support.models import write_random

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmos_operator.tuning.model import Learner

END = 257  # <|im_end|> of the test vocabulary
DIGEST = "sha256:" + "5a" * 32
CPU = torch.device("cpu")


def tiny(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """Write a random model with the byte-level tokenizer of the engine's tests."""
    write_random(folder, family, **{"eos_token_id": END, "vocab_size": 320} | changes)
    return write_model(folder)


def encoder_of(folder: Path) -> Encoder:
    """The tokenizer and template of a model."""
    return Encoder(folder, read_eos(folder, read_config(folder)))


def learner_of(folder: Path, recipe: Recipe, fmt: str = "fp32") -> Learner:
    """A loaded model, ready to learn."""
    load = Load(str(folder), format=fmt, cache_dir=str(folder.parent / "cache"), device="cpu")
    stages = Stages(FakeClock(), lambda _: None)
    return models.load(read_config(folder), open_checkpoint(folder), DIGEST, load, recipe, stages)


def recipe(**changes: Any) -> Recipe:
    """A quick recipe: rank 4, two samples an update, a high rate."""
    plain = Recipe(
        lora=Lora(rank=4, alpha=8), steps=8, batch_size=2, max_length=64, learning_rate=5e-3, warmup=0.0
    )
    return replace(plain, **changes)


def sample(text: str, answer: str) -> Sample:
    """A prompt and its answer in the test vocabulary."""
    tokens = (*text.encode(), *answer.encode(), END)
    return Sample(tokens, tuple(place >= len(text) for place in range(len(tokens))))


SAMPLES = [sample(f"{word}?", f" {word * 2}") for word in ("ab", "cde", "f", "ghij", "kl", "mnopqr")]


@dataclass
class Run:
    """One process's share of a run."""

    folder: Path
    recipe: Recipe
    samples: Sequence[Sample] = field(default_factory=lambda: SAMPLES)
    fmt: str = "fp32"
    place: Path | None = None  # of checkpoints
    every: float = 1e9
    plan: Parts = Parts(64, recompute=False)  # noqa: RUF009 - frozen
    stop: Callable[[], bool] = lambda: False
    meter: Meter | None = None
    losses: list[float] = field(default_factory=list)

    def train(self) -> Learner:
        """Train in a model loaded anew; losses of all updates are noted."""
        learner = learner_of(self.folder, self.recipe, self.fmt)
        clock = FakeClock()
        board = _Noting(clock, self.losses)
        saving = Saving(Checkpoints(self.place, "one"), self.every) if self.place else None
        self.board = board
        trainer = Trainer(
            learner,
            self.recipe,
            self.samples,
            split(len(self.samples), self.recipe.validation, self.recipe.seed),
            self.plan,
            meter=self.meter or Meter(0, CPU),
            board=board,
            clock=clock,
            saving=saving,
            stop=self.stop,
        )
        self.point = trainer.run()
        return learner


class _Noting(Board):
    def __init__(self, clock: FakeClock, losses: list[float]) -> None:
        self._losses = losses
        super().__init__(clock)

    def put(self, **changes: Any) -> None:
        if "learning_rate" in changes:  # told after every update
            self._losses.append(changes["loss"])
        super().put(**changes)


def one_thread() -> None:
    """Compute on one thread, where sums are made in one order."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

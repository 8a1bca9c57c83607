"""What a run is asked to do: the values of spec.fineTune, checked once more and turned into numbers.

The API server has checked schema and CEL rules; whoever starts `llmos tune` by hand has not.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import QuantityError, parse_milliseconds, parse_percent_milli
from llmos_operator.api.v1alpha1.workload_jobs import FineTune, FineTuneMethod
from llmos_operator.api.v1alpha1.workload_training import (
    DECIMAL_PATTERN,
    LearningSchedule,
    LoraSettings,
    Training,
)
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DECIMAL = re.compile(DECIMAL_PATTERN, re.ASCII)
_ADAPTER_RATE, _FULL_RATE = 2e-4, 1e-5
_WHOLE = 100_000  # thousandths of a percent
_LEAST_EVERY = 1.0  # seconds between checkpoints


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter's size and place; ``targets`` () means all linear layers of the decoder."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Recipe:
    """A run's method and numbers. Lengths in tokens; shares from 0 to 1; `steps` 0 means by epochs."""

    method: FineTuneMethod = FineTuneMethod.LORA
    lora: Lora = Lora()
    epochs: int = 3
    steps: int = 0
    batch_size: int = 8
    max_length: int = 1024
    learning_rate: float = _ADAPTER_RATE
    schedule: LearningSchedule = LearningSchedule.COSINE
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    seed: int = 0
    validation: float = 0.0

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained and not the weights themselves."""
        return self.method is not FineTuneMethod.FULL

    def total_steps(self, samples: int) -> int:
        """Return how many updates a run over so many training samples makes."""
        return self.steps or self.epochs * math.ceil(samples / self.batch_size)

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of update ``step`` (from 0) of ``total``."""
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        left = (total - step) / max(1, total - warm)  # from 1 down to 1 / (total - warm)
        if self.schedule is LearningSchedule.LINEAR:
            return self.learning_rate * left
        if self.schedule is LearningSchedule.COSINE:
            return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * left)))
        return self.learning_rate

    def fingerprint(self, **of: str) -> str:
        """Return a digest of the recipe and of what it is applied to: only runs with the same one are one run."""
        text = json.dumps({**asdict(self), **of}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Order:
    """The whole order: what to train on, where to write, and how. `checkpoint_every` in seconds, 0 without a place."""

    recipe: Recipe
    dataset: str
    output: str
    checkpoint: str = ""
    checkpoint_every: float = 0.0


def read_order(block: Mapping[str, Any]) -> Order:
    """Return the order of a spec.fineTune block. Raises Permanent(reason=InvalidSpec) naming field, value and fix."""
    try:
        asked = FineTune.model_validate(block)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("fineTune", *first["loc"]))
        raise _invalid(field, first.get("input"), str(first["msg"])) from error
    place = asked.checkpoint
    return Order(
        recipe=_recipe(asked),
        dataset=asked.dataset.uri,
        output=asked.output.uri,
        checkpoint=place.uri if place is not None else "",
        checkpoint_every=max(_LEAST_EVERY, parse_milliseconds(place.every) / 1000) if place else 0.0,
    )


def _recipe(asked: FineTune) -> Recipe:
    training: Training = asked.training
    lora: LoraSettings = asked.lora
    full = asked.method is FineTuneMethod.FULL
    rate = _FULL_RATE if full else _ADAPTER_RATE
    if training.learning_rate:
        rate = _decimal("training.learningRate", training.learning_rate)
        if not 0 < rate <= 1:
            raise _invalid(
                "fineTune.training.learningRate", training.learning_rate, "must be above 0, at most 1"
            )
    validation = _share("training.validation", training.validation)
    if validation > 0.5:  # noqa: PLR2004 - more to measure with than to learn from
        raise _invalid("fineTune.training.validation", training.validation, "must be at most 50%")
    return Recipe(
        method=asked.method,
        lora=Lora(
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=_share("lora.dropout", lora.dropout),
            targets=tuple(sorted(set(lora.targets))),
        ),
        epochs=training.epochs,
        steps=training.steps or 0,
        batch_size=training.batch_size,
        max_length=training.max_length,
        learning_rate=rate,
        schedule=training.schedule,
        warmup=_share("training.warmup", training.warmup),
        weight_decay=_decimal("training.weightDecay", training.weight_decay),
        max_gradient_norm=_decimal("training.maxGradientNorm", training.max_gradient_norm),
        seed=training.seed,
        validation=validation,
    )


def _decimal(field: str, text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise _invalid(f"fineTune.{field}", text, 'must be a decimal number as text, like "0.0002" or "2e-4"')
    return float(text)


def _share(field: str, text: str) -> float:
    try:
        return parse_percent_milli(text) / _WHOLE
    except QuantityError as error:
        raise _invalid(f"fineTune.{field}", text, str(error)) from error


def _invalid(field: str, value: object, fix: str) -> Permanent:
    return Permanent(f"{field} = {str(value)[:80]!r}: {fix}", reason=Reason.INVALID_SPEC)

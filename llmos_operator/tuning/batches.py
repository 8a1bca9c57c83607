"""Which samples an update learns from, and in which parts they are computed. Pure.

The order of an epoch is a permutation drawn from (seed, epoch) alone, so a run that goes on after a checkpoint needs
to know nothing but its step. Within an update samples are put together by length, so that little is padded; the loss
is a sum over tokens, so neither that nor the size of the parts changes what is learned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.tuning.dataset import Sample


@dataclass(frozen=True, slots=True)
class Split:
    """Samples to learn from and samples to measure with, as places in the dataset."""

    training: tuple[int, ...]
    validation: tuple[int, ...] = ()


def split(count: int, share: float, seed: int) -> Split:
    """Return ``count`` samples split by ``share``: at least one to measure with if any are wanted, at least one to learn."""
    kept = min(count - 1, max(1, round(count * share))) if share > 0 else 0
    order = list(range(count))
    random.Random(f"{seed}/validation").shuffle(order)  # noqa: S311 - not for secrets
    return Split(tuple(sorted(order[kept:])), tuple(sorted(order[:kept])))


def update(places: Sequence[int], batch: int, step: int, seed: int) -> list[int]:
    """Return the samples of update ``step`` (from 0): ``batch`` of them, the last of an epoch what is left."""
    updates = -(-len(places) // batch)
    epoch, turn = divmod(step, updates)
    order = list(places)
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - as above
    return order[turn * batch : (turn + 1) * batch]


def parts(samples: Sequence[Sample], most_tokens: int) -> list[list[Sample]]:
    """Return samples in parts, by length: a part's rows times its longest are at most ``most_tokens``.

    A sample that is longer than that is a part of its own.
    """
    found: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda one: len(one.tokens), reverse=True):
        if found and len(found[-1][0].tokens) * (len(found[-1]) + 1) <= most_tokens:
            found[-1].append(sample)
        else:
            found.append([sample])
    return found

"""What a format costs: perplexity and KL divergence against the source precision on a built-in text.

Both models see the same tokens. Logits are compared slice by slice of the vocabulary (a running log-sum-exp), so the
source's head is never in memory as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Slice = Callable[
        [int, int], Tensor
    ]  # (begin, end) of the vocabulary -> float32 logits [tokens, end - begin]

SLICE = 8192
KL_LIMIT_MICRO = 50_000  # 0.05 nat: beyond it a format is another model


@dataclass(frozen=True, slots=True)
class Quality:
    """Loss of a format. ``loss_milli``: change of perplexity (encoders: 1 - cosine), thousandths of a percent."""

    loss_milli: int
    kl_micro: int | None = None  # millionths of a nat; None for encoders
    perplexity: float | None = None
    source_perplexity: float | None = None

    def describe(self) -> str:
        """Return the numbers for people."""
        parts = [f"quality loss {self.loss_milli / 1000:.2f} %"]
        if self.perplexity is not None and self.source_perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.2f} against {self.source_perplexity:.2f}")
        if self.kl_micro is not None:
            parts.append(f"KL divergence {self.kl_micro / 1e6:.4f} nat (limit {KL_LIMIT_MICRO / 1e6})")
        return ", ".join(parts)

    def refused(self, limit_milli: int) -> bool:
        """Return whether the loss passes ``limit_milli`` or the divergence its own limit; -1 allows everything."""
        if limit_milli < 0:
            return False
        return self.loss_milli > limit_milli or (self.kl_micro or 0) > KL_LIMIT_MICRO


def compare_generative(source: Slice, served: Slice, vocabulary: int, targets: Tensor) -> Quality:
    """Return the quality of ``served`` against ``source``; row i of both predicts ``targets[i]``."""
    rows = targets.shape[0]
    high = torch.full((2, rows), -math.inf)
    total = torch.zeros(2, rows)  # sum of exp(logit - high)
    cross = torch.zeros(rows)  # sum of exp(source - high) * (source - served)
    chosen = torch.zeros(2, rows)
    for begin in range(0, vocabulary, SLICE):
        end = min(begin + SLICE, vocabulary)
        pair = torch.stack((source(begin, end), served(begin, end)))
        peak = torch.maximum(high, pair.amax(-1))
        shrink = torch.exp(high - peak)
        weights = torch.exp(pair - peak[..., None])
        total = total * shrink + weights.sum(-1)
        cross = cross * shrink[0] + (weights[0] * (pair[0] - pair[1])).sum(-1)
        high = peak
        inside = (targets >= begin) & (targets < end)
        chosen[:, inside] = pair[:, inside].gather(-1, (targets[inside] - begin).expand(2, -1)[..., None])[
            ..., 0
        ]
    partition = high + total.log()
    divergence = cross / total[0] - partition[0] + partition[1]
    losses = (partition - chosen).mean(-1)
    change = math.exp(float(losses[1] - losses[0])) - 1
    return Quality(
        loss_milli=round(change * 100_000),
        kl_micro=max(0, round(float(divergence.mean()) * 1e6)),
        perplexity=math.exp(float(losses[1])),
        source_perplexity=math.exp(float(losses[0])),
    )


def compare_vectors(source: Tensor, served: Tensor) -> Quality:
    """Return the quality of an encoder by the mean cosine of its vectors to the source's."""
    cosine = functional.cosine_similarity(source, served).mean()
    return Quality(loss_milli=round((1 - float(cosine)) * 100_000))

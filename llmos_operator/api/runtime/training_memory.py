"""The memory model of a fine-tuning run, shared by the scheduler's sizing and the trainer's own plan.

    total = R0 + W + L + A + S        (bytes, on one device)

R0, W and S are those of `memory`. L is what learns: each parameter at four bytes, its gradient, and AdamW's two moments.
A is what one part of an update (so many tokens at a time) keeps for the way back, and what is in use at its peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import SLACK_BYTES, weights_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.api.runtime.memory import ModelShape

PART_TOKENS = 2048  # computed at a time: more is hardly quicker, and takes memory that others can use
LEARNED_BYTES = 16  # a parameter, its gradient and two moments, all float32
HEAD_ROWS = 128  # tokens that meet the head together
_LOGIT_BYTES = 16  # of such a logit: as computed, as float32, its exponential, its gradient
_SCRATCH_BYTES = 12  # of an element of the widest activation: float32 results on their way
_UNPACKED_BYTES = {"int8": 4, "int4": 8}  # of an element of the largest layer while it is unpacked


@dataclass(frozen=True, slots=True)
class TrainingSize:
    """What a run asks for: an adapter of ``rank`` beside ``targets`` (() all), or everything (rank 0)."""

    format: str
    rank: int = 0
    targets: tuple[str, ...] = ()
    part_tokens: int = 1024
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """Bytes by part."""

    base_bytes: int
    weights_bytes: int
    learned_bytes: int
    activation_bytes: int
    slack_bytes: int = SLACK_BYTES

    @property
    def total_bytes(self) -> int:
        """R0 + W + L + A + S."""
        return (
            self.base_bytes
            + self.weights_bytes
            + self.learned_bytes
            + self.activation_bytes
            + self.slack_bytes
        )


def adapter_parameters(shape: ModelShape, rank: int, targets: Iterable[str] = ()) -> int:
    """Return how many parameters an adapter has: rank x (in + out) of every targeted layer."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    h, inner = shape.hidden, shape.intermediate
    sizes = {
        "q_proj": h + q,
        "k_proj": h + kv,
        "v_proj": h + kv,
        "o_proj": q + h,
        "gate_proj": h + inner,
        "up_proj": h + inner,
        "down_proj": inner + h,
        # Families that keep several in one:
        "qkv_proj": h + q + 2 * kv,
        "gate_up_proj": h + 2 * inner,
    }
    wanted = set(targets) or set(sizes) - {"qkv_proj", "gate_up_proj"}
    return rank * shape.layers * sum(size for name, size in sizes.items() if name in wanted)


def estimate_training(shape: ModelShape, size: TrainingSize, *, base_bytes: int) -> TrainingEstimate:
    """Return the bytes a run needs. ``base_bytes`` is R0: the process with its libraries and the data, before the model."""
    learned = (
        adapter_parameters(shape, size.rank, size.targets)
        if size.rank
        else shape.linear_parameters + shape.embedding_parameters + shape.other_parameters
    )
    # Of a parameter that is a weight itself, its own four bytes are in W.
    bytes_each = LEARNED_BYTES if size.rank else LEARNED_BYTES - 4
    return TrainingEstimate(
        base_bytes=base_bytes,
        weights_bytes=weights_bytes(shape, size.format),
        learned_bytes=learned * bytes_each,
        activation_bytes=activation_bytes(shape, size),
    )


def activation_bytes(shape: ModelShape, size: TrainingSize) -> int:
    """Return A: what is kept for the way back, and what is in use at the peak beside it."""
    q, h, inner = shape.heads * shape.head_dim, shape.hidden, shape.intermediate
    rows = min(size.part_tokens, HEAD_ROWS)
    scratch = size.part_tokens * _SCRATCH_BYTES * max(inner, q, h)
    unpacked = _UNPACKED_BYTES.get(size.format, 0) * h * inner
    return kept_bytes(shape, size) + scratch + rows * shape.vocab * _LOGIT_BYTES + unpacked


def kept_bytes(shape: ModelShape, size: TrainingSize) -> int:
    """Return what is kept for the way back: of each layer all, or with recompute its input alone and all of one."""
    element = 4 if size.format == "fp32" else 2
    q, h, inner = shape.heads * shape.head_dim, shape.hidden, shape.intermediate
    # Norms keep their input as float32 and give their output to the projections; attention keeps query, key, value
    # and its output; the gated MLP keeps four of its width. Adapters keep their low-rank rows, and nothing wide.
    kv = shape.kv_heads * shape.head_dim
    layer = 2 * (4 + element) * h + 2 * element * (q + kv) + 4 * element * inner + 28 * size.rank
    kept = shape.layers * element * h + layer if size.recompute else shape.layers * layer
    return size.part_tokens * kept

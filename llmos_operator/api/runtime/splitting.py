"""Which models can be split over several devices (tensor parallelism), and at which formats.

The scheduler asks before it places a replica, the runtime before it loads one: one answer for both. Every device gets the
same number of query heads, of key-value heads and of the MLP's columns, so all three must be divisible.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.api.runtime.memory import ModelShape

# Those whose attention and MLP blocks the runtime knows (runtime.backends.fused).
SPLIT_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
)
_GGUF_NAMES = ("llama", "qwen2", "qwen3")  # general.architecture of files that become such models
_INT4_LANES = (
    64  # rows that the packing of int4 weights interleaves: a part begins and ends between two such blocks
)
_LARGEST = 64  # spec.parallelism.tensor
_FIELDS = "spec.resources.accelerators and spec.parallelism.tensor"


def known_blocks(shape: ModelShape) -> bool:
    """Return whether the runtime knows the blocks of a model well enough to serve parts of it."""
    known = not shape.architecture or shape.architecture in SPLIT_ARCHITECTURES + _GGUF_NAMES
    return shape.generative and known


def not_splittable(shape: ModelShape, fmt: str, ways: int) -> str:
    """Return why ``ways`` devices cannot share the layers of a model at a format, with the fix; "" if they can."""
    if ways == 1:
        return ""
    if not known_blocks(shape):
        able = ", ".join(SPLIT_ARCHITECTURES)
        return f"{shape.architecture} cannot be split over {ways} devices ({able} can); set {_FIELDS} to 1"
    for count, what in (
        (shape.kv_heads, "key-value heads"),
        (shape.heads, "attention heads"),
        (shape.intermediate, "MLP columns"),
    ):
        if count % ways:
            return (
                f"the model has {count} {what}, which {ways} devices cannot share evenly; "
                f"set {_FIELDS} to {_possible(shape, fmt)}"
            )
    narrow = _narrowest(shape, ways) if fmt == "int4" else _INT4_LANES
    if narrow % _INT4_LANES:
        return (
            f"int4 packs {_INT4_LANES} rows together, and {ways} devices would get {narrow} of a layer's; "
            f"use bf16 or int8, or set {_FIELDS} to {_possible(shape, fmt)}"
        )
    return ""


def _narrowest(shape: ModelShape, ways: int) -> int:
    """Return the rows of a part that is no multiple of the packing, else any of them."""
    rows = (shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim, shape.intermediate)
    return next((count // ways for count in rows if count // ways % _INT4_LANES), _INT4_LANES)


def _possible(shape: ModelShape, fmt: str) -> str:
    """Return the numbers of devices that can share a model, as text."""
    common = math.gcd(shape.kv_heads, shape.heads, shape.intermediate)
    ways = [n for n in range(1, min(common, _LARGEST) + 1) if common % n == 0]
    fitting = [n for n in ways if n == 1 or fmt != "int4" or not _narrowest(shape, n) % _INT4_LANES]
    return " or ".join(str(n) for n in fitting)

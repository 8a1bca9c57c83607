"""The memory model, shared by the scheduler's sizing and the runtime's own prediction.

    total = R0 + W + KV + A + S + L    (bytes, per device)

R0 process base, W weights at a format, KV cache, A activations of one step, S slack, L room for LoRA adapters. Design: docs/runtime.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos_operator.api.runtime import pictures

MIB = 1 << 20
SLACK_BYTES = 45 * MIB
KV_BLOCK_TOKENS = 16
PREFILL_CHUNK_TOKENS = 256

# Bits stored per linear weight, with the scales of its group: int8 one fp32 scale a row (negligible, counted exactly
# below is not worth a shape table), int4 and nf4 bf16 scale and zero per group of 32.
BITS_PER_WEIGHT_MILLI = {
    "fp32": 32_000,
    "bf16": 16_000,
    "fp8": 8_000,
    "int8": 8_000,
    "int4": 5_000,
    "nf4": 4_500,
    "gptq": 4_500,
    "awq": 4_500,
    "gguf": 5_000,
}

# Bytes of a token table's element, and of an untied head's: int8 rows where linear layers are int8 or int4 (measured:
# no loss beside theirs), two bytes elsewhere.
EMBEDDING_BYTES = {"fp32": 4, "int8": 1, "int4": 1}

# Effective bits of a format as `quantization.minBits` counts them.
FORMAT_BITS = {
    "fp32": 32,
    "bf16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
    "nf4": 4,
    "gptq": 4,
    "awq": 4,
    "gguf": 4,
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the memory model needs to know of a model; read from config.json and the weight files' headers."""

    architecture: str  # first of config.architectures
    linear_parameters: int  # weights of linear layers, without embedding and head
    embedding_parameters: int  # input embedding, and the head again if it is untied
    other_parameters: int  # norms, biases, convolutions: kept at 16 bits
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    source_bits: int = 16  # precision of the published weights
    generative: bool = True  # False: encoders, no KV cache
    cross_tokens: int = (
        0  # positions of an encoder that a sequence keeps keys and values of, beside its own tokens
    )
    picture_floats: int = 0  # activations of one picture where they are widest; image classifiers have them
    quantized: str = ""  # the format its files already are: int4 or int8; "": plain

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear_parameters + self.embedding_parameters + self.other_parameters


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes per device, by part."""

    base_bytes: int
    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    slack_bytes: int
    adapter_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """R0 + W + KV + A + S + L."""
        fixed = self.base_bytes + self.weights_bytes + self.activation_bytes + self.slack_bytes
        return fixed + self.kv_bytes + self.adapter_bytes


def weights_bytes(shape: ModelShape, fmt: str) -> int:
    """Return W: linear weights at the format's bits, embeddings at EMBEDDING_BYTES, the rest at two (fp32: four)."""
    plain = 4 if fmt == "fp32" else 2
    linear = shape.linear_parameters * BITS_PER_WEIGHT_MILLI[fmt] // 8_000
    return (
        linear + shape.embedding_parameters * EMBEDDING_BYTES.get(fmt, plain) + shape.other_parameters * plain
    )


def adapter_bytes(shape: ModelShape, *, adapters: int, rank: int) -> int:
    """Return L: so many LoRA adapters of ``rank`` on all seven projections of each layer, as float32.

    A layer of [out, in] takes rank x (in + out): query, key, value and output projection, gate, up and down.
    """
    heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * (shape.hidden + heads) + 2 * (shape.hidden + keys)
    sides = attention + 3 * (shape.hidden + shape.intermediate)
    return adapters * rank * shape.layers * sides * 4


def kv_bytes_per_token(shape: ModelShape, kv_bytes_per_element: int = 2) -> int:
    """Return KV cache bytes of one token: 2 x layers x kv_heads x head_dim x element size."""
    if not shape.generative:
        return 0
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * kv_bytes_per_element


def sequence_tokens(shape: ModelShape, tokens: int) -> int:
    """Return the tokens of KV cache that a sequence of ``tokens`` keeps: those of what it has heard count as well."""
    return tokens + shape.cross_tokens if shape.generative else 0


def estimate(
    shape: ModelShape,
    fmt: str,
    *,
    max_model_len: int,
    max_num_seqs: int,
    kv_tokens: int | None = None,
    base_bytes: int,
    shards: int = 1,
    kv_bytes_per_element: int = 2,
    adapters: int = 0,
    adapter_rank: int = 0,
) -> MemoryEstimate:
    """Return the bytes one device needs for a replica split over ``shards`` devices.

    ``kv_tokens`` is the KV budget in tokens; by default one full context plus a quarter of it for each further
    sequence, which is what serving traffic with mixed lengths uses. ``base_bytes`` is R0, measured per image.
    """
    longest = max_model_len + shape.cross_tokens
    tokens = kv_tokens if kv_tokens is not None else longest + (max_num_seqs - 1) * longest // 4
    blocks = -(-tokens // KV_BLOCK_TOKENS)
    # An encoder reads one window a step, with two frames for each position that is kept.
    rows = PREFILL_CHUNK_TOKENS + max_num_seqs + 2 * shape.cross_tokens
    # Hidden states are whole on each device, and so are the logits on the one that samples.
    inner = -(-3 * shape.intermediate // shards)
    activation = rows * 2 * (inner + 4 * shape.hidden) + max_num_seqs * shape.vocab * 4
    activation += pictures.AT_ONCE * shape.picture_floats * 4
    return MemoryEstimate(
        base_bytes=base_bytes,
        weights_bytes=-(-weights_bytes(shape, fmt) // shards),
        kv_bytes=-(-blocks * KV_BLOCK_TOKENS * kv_bytes_per_token(shape, kv_bytes_per_element) // shards),
        activation_bytes=activation,
        slack_bytes=SLACK_BYTES,
        # Whole on each device: adapters are small, and how an engine would split them is its own affair.
        adapter_bytes=adapter_bytes(shape, adapters=adapters, rank=adapter_rank),
    )

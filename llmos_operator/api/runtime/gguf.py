"""GGUF headers from the first bytes of a file: sizes of the model, names and shapes of its tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The vocabulary stands in the header too, so a few
megabytes may be needed; :class:`NeedMore` asks for them. Pure functions over bytes, as in `modelfiles`.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.errors import LlmosError, Permanent

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 64 << 20
_VERSIONS = (2, 3)
_MAX_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 2
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_PLAIN_BITS = {0: 32, 1: 16, 30: 16}  # GGML types F32, F16, BF16; every other type is a quantised one


class NeedMore(LlmosError):  # noqa: N818 - reads as what the caller should do
    """The header goes on beyond the bytes that were given."""


class _Cursor:
    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            if len(self.data) >= MAX_HEADER_BYTES:
                raise _corrupted(self.name, f"its header is longer than {MAX_HEADER_BYTES} bytes")
            raise NeedMore(f"{self.name}: {self.at + count} bytes of header needed")
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def scalar(self, form: struct.Struct) -> Any:
        (value,) = form.unpack(self.take(form.size))
        return value

    def count(self) -> int:
        value = int(self.scalar(_U64))
        if value > _MAX_ITEMS:
            raise _corrupted(self.name, f"it claims {value} items")
        return value

    def text(self) -> str:
        return self.take(self.count()).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth >= _MAX_DEPTH:
            raise _corrupted(self.name, f"unknown value type {kind}")
        inner, length = int(self.scalar(_U32)), self.count()
        if inner in _SCALARS:
            self.take(length * _SCALARS[inner].size)  # scores and token types: only their number matters
            return length
        for _ in range(length):
            self.value(inner, depth + 1)
        return length


def parse_header(data: bytes, name: str) -> ModelShape:
    """Return the model's sizes. Raises :class:`NeedMore`, Permanent (Corrupted, Unsupported)."""
    cursor = _Cursor(data, name)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise _corrupted(name, "it does not begin with GGUF")
    version = int(cursor.scalar(_U32))
    if version not in _VERSIONS:
        raise Permanent(f"{name} is GGUF version {version}; 2 and 3 are read", reason=Reason.UNSUPPORTED)
    tensor_count, key_count = cursor.count(), cursor.count()
    keys: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        keys[key] = cursor.value(int(cursor.scalar(_U32)))
    counts = {"linear": 0, "embedding": 0, "other": 0}
    bits = 0
    for _ in range(tensor_count):
        tensor, dimensions, kind = _tensor(cursor)
        counts[_kind(tensor, dimensions)] += math.prod(dimensions)
        bits = max(bits, _PLAIN_BITS.get(kind, 0)) if len(dimensions) > 1 else bits
    return _shape(keys, counts, bits or 16, name)


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int]:
    tensor = cursor.text()
    number = int(cursor.scalar(_U32))
    if not 1 <= number <= _MAX_DIMENSIONS:
        raise _corrupted(cursor.name, f"tensor {tensor[:80]!r} has {number} dimensions")
    dimensions = tuple(int(cursor.scalar(_U64)) for _ in range(number))
    if math.prod(dimensions) > 1 << 48:
        raise _corrupted(cursor.name, f"tensor {tensor[:80]!r} has an impossible shape")
    kind = int(cursor.scalar(_U32))
    cursor.scalar(_U64)  # its offset
    return tensor, dimensions, kind


def _kind(tensor: str, dimensions: tuple[int, ...]) -> str:
    if len(dimensions) == 1:
        return "other"
    return "embedding" if tensor.startswith(("token_embd.", "output.")) else "linear"


def _shape(keys: dict[str, Any], counts: dict[str, int], bits: int, name: str) -> ModelShape:
    architecture = str(keys.get("general.architecture", ""))

    def number(key: str, default: int = 0) -> int:
        value = keys.get(f"{architecture}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 24:
            raise _corrupted(name, f"{key} is {str(value)[:40]!r}")
        return value

    hidden, heads, layers = number("embedding_length"), number("attention.head_count"), number("block_count")
    if not (hidden and heads and layers):
        raise _corrupted(name, "it lacks embedding_length, head_count or block_count")
    return ModelShape(
        architecture=architecture,
        linear_parameters=counts["linear"],
        embedding_parameters=counts["embedding"],
        other_parameters=counts["other"],
        layers=layers,
        hidden=hidden,
        intermediate=number("feed_forward_length") or 4 * hidden,
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        head_dim=number("attention.key_length") or max(1, hidden // heads),
        vocab=int(keys.get("tokenizer.ggml.tokens") or number("vocab_size") or 0),
        max_positions=number("context_length") or 2048,
        source_bits=bits,
        generative="bert" not in architecture,
    )


def _corrupted(name: str, what: str) -> Permanent:
    return Permanent(
        f"{name} is not a valid GGUF file: {what}; publish or download it again", reason=Reason.CORRUPTED
    )

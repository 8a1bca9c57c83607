"""What a model's files say about its size: config.json, safetensors headers and indexes, GGUF headers.

Pure functions over bytes, so that the operator can judge a model from a few kilobytes of a remote repository and the
runtime the same way from disk. Everything is believed only within bounds; keys that ask for code to be run, and
formats that can carry it, are refused. Errors are Permanent with a reason of `api.conditions`.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime import prequantized
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.api.runtime.pictures import picture_sizes
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 32 << 20  # the largest published header is under 1 MiB a file
MAX_INDEX_BYTES = 32 << 20
MAX_FILES = 1000
LENGTH_BYTES = 8

CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code", "_attn_implementation_internal")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_BOUNDS = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
    "cross_tokens": 1 << 16,
}
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8}
_DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "BOOL": 1}
_CONFIG_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}
_MAX_ELEMENTS = 1 << 48
# What Whisper calls the sizes of its decoder; `hidden_size` and the like are its encoder's there.
_SPEECH_TYPE = "whisper"
_DECODER_KEYS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "decoder_layers",
    "num_attention_heads": "decoder_attention_heads",
    "intermediate_size": "decoder_ffn_dim",
    "max_position_embeddings": "max_target_positions",
    "cross_tokens": "max_source_positions",
}
# Tables that are looked up rather than multiplied with, and the output head: kept at 16 bits by every format.
_TABLE = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|lm_head|shared)\.")
_GENERATIVE = re.compile(r"(CausalLM|LMHeadModel|ConditionalGeneration)$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a weight file's header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def parse_config(raw: bytes) -> dict[str, Any]:
    """Return config.json as a dict. Raises Permanent (UnsafeConfig, Corrupted)."""
    config = _json_object(raw, "config.json", MAX_CONFIG_BYTES)
    unsafe = [key for key in CODE_KEYS if key in config]
    if unsafe:
        raise Permanent(
            f"config.json has {', '.join(unsafe)}, which asks for code from the repository to be run; the runtime runs "
            "none: use a model without it",
            reason=Reason.UNSAFE_CONFIG,
        )
    inner = config.get("text_config")
    merged = {**inner, **config} if isinstance(inner, dict) else config
    merged = merged | decoder_sizes(merged) | picture_sizes(merged)
    for key, limit in _BOUNDS.items():
        value = merged.get(key)
        if value is not None and not (type(value) is int and 0 < value <= limit):
            raise _corrupted(f"config.json: {key} is {str(value)[:40]!r}, not a number from 1 to {limit}")
    for key in _REQUIRED:
        if key not in merged:
            raise _corrupted(f"config.json lacks {key}")
    return merged


def decoder_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a speech model's sizes by the names that other models give theirs, {} for those."""
    if config.get("model_type") != _SPEECH_TYPE:
        return {}
    return {name: config[key] for name, key in _DECODER_KEYS.items() if key in config} | {
        "num_key_value_heads": config.get("decoder_attention_heads"),
        "head_dim": None,
    }


def header_length(prefix: bytes, file_size: int | None, name: str) -> int:
    """Return the length of a safetensors header from the file's first eight bytes. Raises Permanent(Corrupted)."""
    if len(prefix) < LENGTH_BYTES:
        raise _corrupted(f"{name} has {len(prefix)} bytes, too few for a safetensors header")
    if prefix.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise Permanent(
            f"{name} is a pickle or an archive, whatever its name says; opening it could run code",
            reason=Reason.UNSAFE_FORMAT,
        )
    (length,) = struct.unpack("<Q", prefix[:LENGTH_BYTES])
    if length > MAX_HEADER_BYTES or (file_size is not None and LENGTH_BYTES + length > file_size):
        raise _corrupted(f"{name} is truncated or no safetensors file: its header claims {length} bytes")
    return int(length)


def parse_header(raw: bytes, data_size: int | None, name: str) -> tuple[Tensor, ...]:
    """Return the tensors of a safetensors header. ``data_size`` is the file's size without header, None if unknown."""
    tensors, end = [], 0
    for key, value in _json_object(raw, f"the header of {name}", MAX_HEADER_BYTES).items():
        if key == "__metadata__":
            continue
        tensor, last = _tensor(key, value, name)
        tensors.append(tensor)
        end = max(end, last)
    if data_size is not None and end != data_size:
        raise _corrupted(
            f"{name} is truncated: its header describes {end} bytes of data, there are {data_size}"
        )
    return tuple(tensors)


def _tensor(key: str, value: object, name: str) -> tuple[Tensor, int]:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[index]
        tensor = Tensor(key, str(dtype), tuple(int(size) for size in shape))
        length = int(end) - int(begin)
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupted(f"{name}: tensor {key[:80]!r} lacks dtype, shape or data_offsets") from error
    bits = _DTYPE_BITS.get(tensor.dtype) or _DTYPE_BYTES.get(tensor.dtype, 0) * 8
    if not bits or min(tensor.shape, default=1) < 0 or tensor.elements > _MAX_ELEMENTS:
        raise _corrupted(f"{name}: tensor {key[:80]!r} has an unknown dtype or an impossible shape")
    if length != tensor.elements * bits // 8 or begin < 0:
        raise _corrupted(f"{name}: tensor {key[:80]!r} has {length} bytes, which do not fit its shape")
    return tensor, int(end)


def parse_index(raw: bytes) -> tuple[str, ...]:
    """Return the weight files that a model.safetensors.index.json names. Raises Permanent(Corrupted)."""
    weights = _json_object(raw, "model.safetensors.index.json", MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise _corrupted("model.safetensors.index.json has no weight_map")
    files = sorted({str(name) for name in weights.values()})
    for name in files:
        if "/" in name or "\\" in name or name.startswith(".") or not name.endswith(".safetensors"):
            raise _corrupted(
                f"model.safetensors.index.json names {name[:80]!r}, which is no plain safetensors file"
            )
    if len(files) > MAX_FILES:
        raise _corrupted(f"model.safetensors.index.json names {len(files)} files, more than {MAX_FILES}")
    return tuple(files)


def shape_of(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> ModelShape:
    """Return the sizes the memory model needs, from a checked config and the headers of all weight files."""
    counts = {"linear": 0, "embedding": 0, "other": 0}
    bits: dict[int, int] = {}
    scheme = prequantized.scheme_of(config)
    for tensor, width in plain_tensors(scheme, tensors):
        counts[_kind(tensor)] += tensor.elements
        bits[width] = bits.get(width, 0) + tensor.elements
    if not counts["linear"]:
        raise Permanent("the weight files hold no linear layers; is this a model?", reason=Reason.UNSUPPORTED)
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    architectures = config.get("architectures")
    first = str(architectures[0])[:100] if isinstance(architectures, list) and architectures else ""
    return ModelShape(
        architecture=first,
        linear_parameters=counts["linear"],
        embedding_parameters=counts["embedding"],
        other_parameters=counts["other"],
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(config.get("intermediate_size") or 4 * hidden),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or max(1, hidden // heads)),
        vocab=int(config["vocab_size"]),
        max_positions=int(config.get("max_position_embeddings") or 2048),
        source_bits=max(bits, key=lambda width: bits[width]),
        generative=bool(_GENERATIVE.search(first)),
        cross_tokens=int(config.get("cross_tokens") or 0) if config.get("model_type") == _SPEECH_TYPE else 0,
        picture_floats=int(picture_sizes(config).get("picture_floats", 0)),
        quantized=scheme.format if scheme is not None else "",
    )


def plain_tensors(
    scheme: prequantized.Scheme | None, tensors: Iterable[Tensor]
) -> Iterator[tuple[Tensor, int]]:
    """Yield the model's own tensors and the bits of an element, whatever they are stored as; no tables of integers."""
    for tensor in tensors:
        width = _DTYPE_BITS.get(tensor.dtype)
        if scheme is not None:
            name = prequantized.weight_name(scheme, tensor.name, tensor.dtype)
            if name is not None:
                yield Tensor(name, tensor.dtype, prequantized.plain_shape(scheme, tensor.shape)), scheme.bits
                continue
            if prequantized.is_beside(scheme, tensor.name):
                continue
        if width is not None:
            yield tensor, width


def _kind(tensor: Tensor) -> str:
    if len(tensor.shape) < 2:  # noqa: PLR2004 - vectors: norms and biases
        return "other"
    return "embedding" if _TABLE.search(tensor.name) else "linear"


def source_format(shape: ModelShape) -> str:
    """Return the name of the precision the weights were published in, as `quantization` names it."""
    if shape.quantized:
        return shape.quantized
    return "fp8" if shape.source_bits == 8 else "bf16"  # noqa: PLR2004 - 32 bit weights are served at bf16


def _json_object(raw: bytes, name: str, limit: int) -> dict[str, Any]:
    if len(raw) > limit:
        raise _corrupted(f"{name} has {len(raw)} bytes, more than {limit}")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _corrupted(f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise _corrupted(f"{name} is not a JSON object")
    return value


def _corrupted(message: str) -> Permanent:
    return Permanent(
        message + ("" if message.endswith(".") else "; publish or download the model again"),
        reason=Reason.CORRUPTED,
    )

"""GGUF headers, read in one pass over a memory map and checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only the header is parsed here (the reader of the
`gguf` package makes one array view per string and takes seconds); blocks are dequantised by that package's numpy code.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

MAGIC = b"GGUF"
MAX_ITEMS = 1 << 24  # keys, tensors or array elements: far above any real file
MAX_DIMENSIONS = 4
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
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: ``shape`` is row-major (last dimension contiguous), ``begin`` an offset from the file's start."""

    name: str
    ggml_type: int
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Header of one file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    def array(self, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the tensor's values as float32, dequantised. Memory: four bytes an element."""
        import numpy as np  # noqa: PLC0415 - headers are read where numpy is not wanted
        from gguf.constants import GGMLQuantizationType  # noqa: PLC0415
        from gguf.quants import dequantize  # noqa: PLC0415

        raw = np.memmap(self.path, np.uint8, "r", tensor.begin, (tensor.nbytes,))
        rows = math.prod(tensor.shape[:-1])
        values = dequantize(raw.reshape(rows, -1), GGMLQuantizationType(tensor.ggml_type))
        return np.asarray(values, np.float32).reshape(tensor.shape)


class _Cursor:
    """Reads little-endian values from a memory map and refuses to pass its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def scalar(self, form: struct.Struct) -> Any:
        self.need(form.size)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def count(self, what: str) -> int:
        value = int(self.scalar(_U64))
        if value > min(MAX_ITEMS, self.size):
            raise corrupt(self.path, f"it claims {value} {what}")
        return value

    def text(self) -> str:
        length = self.count("bytes in one string")
        self.need(length)
        value = self.data[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return value

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise corrupt(self.path, f"unknown value type {kind}")
        inner, length = int(self.scalar(_U32)), self.count("array elements")
        if inner == _ARRAY:
            raise corrupt(self.path, "nested arrays are not allowed")
        if inner == _STRING:
            return [self.text() for _ in range(length)]
        if inner not in _SCALARS:
            raise corrupt(self.path, f"unknown array type {inner}")
        form = struct.Struct(f"<{length}{_SCALARS[inner].format[1:]}")
        self.need(form.size)
        values = list(form.unpack_from(self.data, self.at))
        self.at += form.size
        return values

    def need(self, count: int) -> None:
        if self.at + count > self.size:
            raise corrupt(self.path, f"it ends at byte {self.size}, inside its header")


def read_gguf(path: Path) -> GgufFile:
    """Return the checked header of ``path``. Raises Permanent(reason=Corrupted | Unsupported)."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise corrupt(path, "it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, _Cursor(path, data))


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    cursor.at = len(MAGIC)
    version = int(cursor.scalar(_U32))
    if version not in (2, 3):
        raise Permanent(
            f"{path.name} is GGUF version {version}; versions 2 and 3 are read", reason="Unsupported"
        )
    tensor_count, key_count = cursor.count("tensors"), cursor.count("keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(int(cursor.scalar(_U32)))
    heads = [_tensor_head(path, cursor) for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", 32))
    if alignment <= 0 or alignment % 8:
        raise corrupt(path, f"alignment {alignment}")
    start = cursor.at + (-cursor.at) % alignment
    tensors = tuple(GgufTensor(name, kind, shape, start + at, size) for name, kind, shape, at, size in heads)
    for tensor in tensors:
        if tensor.begin + tensor.nbytes > cursor.size:
            end = tensor.begin + tensor.nbytes
            raise corrupt(
                path, f"tensor {tensor.name!r} ends at byte {end}, the file at {cursor.size}: truncated"
            )
    return GgufFile(path, metadata, tensors)


def _tensor_head(path: Path, cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int, int]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415 - slow import, rarely needed

    name = cursor.text()
    dimensions = int(cursor.scalar(_U32))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise corrupt(path, f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(int(cursor.scalar(_U64)) for _ in range(dimensions))[::-1]
    kind, at = int(cursor.scalar(_U32)), int(cursor.scalar(_U64))
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise Permanent(
            f"{path.name}: tensor {name!r} has the unknown type {kind}", reason="Unsupported"
        ) from error
    elements = math.prod(shape)
    if elements > 1 << 48 or shape[-1] % block:
        raise corrupt(path, f"tensor {name!r} has the impossible shape {shape}")
    return name, kind, shape, at, elements // block * block_bytes


def corrupt(path: Path, what: str) -> Permanent:
    """Return the error of a file that is not what it says."""
    return Permanent(f"{path.name} is not a valid GGUF file: {what}; download it again", reason="Corrupted")

"""Safetensors headers, checked before any library maps the file, and a writer that streams tensor by tensor.

Layout: https://github.com/huggingface/safetensors#format - eight bytes of little-endian header length, a JSON header
``{name: {dtype, shape, data_offsets}}``, then the data. The checks make sure that a lying header costs a clear error
and no memory: every offset lies inside the file, sizes match shapes, tensors do not overlap.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

MAX_HEADER_BYTES = 100 << 20
ALIGNMENT = 64
PADDING = "_pad."
_LENGTH = struct.Struct("<Q")
DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: ``begin`` and ``end`` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """Header of one file: its tensors in file order and its free-form metadata."""

    path: Path
    tensors: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


def read_header(path: Path, *, most: int = MAX_HEADER_BYTES) -> SafetensorsFile:
    """Return the checked header of ``path``, of at most ``most`` bytes. Raises Permanent(reason=Corrupted) saying what is wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH.size)
            if len(prefix) < _LENGTH.size:
                raise _corrupt(path, f"{size} bytes are too few for a header")
            (length,) = _LENGTH.unpack(prefix)
            if length > most or _LENGTH.size + length > size:
                raise _corrupt(path, f"its header claims {length} bytes, the file has {size}")
            raw = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise _corrupt(path, "its header is not a JSON object")
    metadata = raw.pop("__metadata__", None) or {}
    start = _LENGTH.size + length
    tensors = sorted((_entry(path, name, value, start) for name, value in raw.items()), key=lambda t: t.begin)
    _check_extents(path, tensors, start, size)
    plain = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    return SafetensorsFile(path, tuple(tensors), plain)


def _entry(path: Path, name: str, value: object, start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"tensor {name!r} lacks dtype, shape or data_offsets") from error
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise _corrupt(path, f"tensor {name!r} has a shape or offset that is not a natural number")
    if dtype not in DTYPE_BYTES:
        raise _corrupt(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise _corrupt(path, f"tensor {name!r}: {end - begin} bytes do not fit shape {shape} of {dtype}")
    return TensorEntry(name, dtype, tuple(shape), start + begin, start + end)


def _check_extents(path: Path, tensors: list[TensorEntry], start: int, size: int) -> None:
    at = start
    for tensor in tensors:
        if tensor.begin != at:
            raise _corrupt(path, f"tensor {tensor.name!r} overlaps another or leaves a hole")
        at = tensor.end
    if at != size:
        raise _corrupt(path, f"the header describes {at} bytes, the file has {size}: truncated or padded")


def _corrupt(path: Path, what: str) -> Permanent:
    return Permanent(
        f"{path.name} is not a valid safetensors file: {what}; download it again", reason="Corrupted"
    )


class StreamWriter:
    """Writes a safetensors file whose tensors arrive one by one, in the order announced.

    Every tensor begins at a multiple of ALIGNMENT in the file, so that kernels with aligned loads may run on the mapped
    pages; tensors called ``_pad.N`` fill the gaps, as the format allows none. Memory: what is passed in. The file appears under its name only on a clean exit of the context; until
    then it is ``<name>.partial``. ``sha256`` is of the whole file, known after the context.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
        *,
        alignment: int = ALIGNMENT,
    ) -> None:
        """`tensors` are (name, dtype, shape); metadata goes into the header.

        With ``alignment`` 1 nothing is filled in: for files that others read by the names of their tensors.
        """
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._expected: list[tuple[str, int]] = []
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        for name, dtype, shape in tensors:
            gap = -at % alignment
            if gap:
                header[f"{PADDING}{at}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap]}
                self._expected.append((PADDING, gap))
                at += gap
            size = math.prod(shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            self._expected.append((name, size))
            at += size
        self._expected.reverse()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(_LENGTH.size + len(text)) % ALIGNMENT)
        self._head = _LENGTH.pack(len(text)) + text
        self.total_bytes = len(self._head) + at
        self._hash = hashlib.sha256()
        self.sha256 = ""

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._put(self._head)
        return self

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Append the next tensor, whole or a part of it. Raises ValueError when it is not its turn or too long."""
        expected, left = self._expected.pop()
        if expected == PADDING:
            self._put(bytes(left))
            expected, left = self._expected.pop()
        if name != expected or len(data) > left:
            raise ValueError(f"expected {expected!r} with {left} bytes left, got {name!r} of {len(data)}")
        if len(data) < left:
            self._expected.append((expected, left - len(data)))
        self._put(data)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None and not self._expected:
            self._partial.replace(self._path)
            self.sha256 = self._hash.hexdigest()
        else:
            self._partial.unlink(missing_ok=True)
            if kind is None:
                raise ValueError(f"{len(self._expected)} announced tensors were never written")

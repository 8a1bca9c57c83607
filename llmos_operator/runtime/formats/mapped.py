"""Tensors of a checked safetensors file: views of the mapped file, or rows read without leaving pages behind."""

from __future__ import annotations

import errno
import math
import mmap
import os
from typing import TYPE_CHECKING, Self

import torch

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor

    from llmos_operator.runtime.formats.safetensors_file import TensorEntry

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_PIECE = 8 << 20  # bytes read at a time: enough to keep a disk busy, few enough to tell how far it is
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which has no name in Python's mmap


class MappedTensors:
    """Views of mapped files. A view stays valid after close: the mapping lives as long as a tensor uses it."""

    def __init__(self, entries: Mapping[str, tuple[Path, TensorEntry]]) -> None:
        self._entries = entries
        self._maps: dict[Path, mmap.mmap] = {}

    def view(self, names: Sequence[str]) -> Tensor:
        """Return one tensor over adjacent entries (usually one): their rows, one after the other.

        The pages are private copy-on-write, so a writer in this process could not reach the file.
        """
        path, first = self._entries[names[0]]
        rows = sum(self._entries[name][1].shape[0] if self._entries[name][1].shape else 1 for name in names)
        shape = (rows, *first.shape[1:]) if first.shape else ()
        dtype = dtype_of(first)
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if first.begin % dtype.itemsize:  # a writer that did not align its data: copy
            with RowReader(self._entries) as reader:
                return torch.cat([reader.rows(name, 0, self._entries[name][1].shape[0]) for name in names])
        flat = torch.frombuffer(self._map(path), dtype=dtype, count=count, offset=first.begin)
        return flat.view(shape)

    def read(self, names: Sequence[str], progress: Callable[[int], None]) -> None:
        """Read adjacent entries into memory, front to back; ``progress`` gets the bytes of each piece.

        Without this a cold load reads what single page faults ask for. Raises Permanent(reason=Corrupted) for a file
        that cannot be read to their end.
        """
        path, first = self._entries[names[0]]
        told, end = first.begin, first.begin + self._length(names)
        for done in read_pages(self._map(path), first.begin, end, path.name):
            progress(done - told)
            told = done

    def drop(self, names: Sequence[str]) -> None:
        """Give back the pages of adjacent entries: what was read of them no longer counts as used. Views read the file again."""
        path, first = self._entries[names[0]]
        length = self._length(names)
        if path in self._maps and length:
            start = first.begin // mmap.PAGESIZE * mmap.PAGESIZE
            # Nobody writes to weights, so no private copy is lost.
            self._maps[path].madvise(mmap.MADV_DONTNEED, start, first.begin + length - start)

    @property
    def maps(self) -> tuple[mmap.mmap, ...]:
        """The mappings that views were taken of."""
        return tuple(self._maps.values())

    def _length(self, names: Sequence[str]) -> int:
        return sum(self._entries[name][1].nbytes for name in names)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]


def read_pages(mapping: mmap.mmap, begin: int, end: int, name: str) -> Iterator[int]:
    """Read the bytes ``begin`` to ``end`` of a mapping into memory; yield how far it is, piece by piece.

    A kernel older than 5.14 reads nothing here, and its faults later. Raises Permanent(reason=Corrupted) if ``name``
    cannot be read to there.
    """
    for at in range(begin, end, _PIECE):
        start, stop = at // mmap.PAGESIZE * mmap.PAGESIZE, min(end, at + _PIECE)
        try:
            mapping.madvise(_POPULATE_READ, start, stop - start)
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise Permanent(f"{name} cannot be read beyond byte {start}", reason="Corrupted") from error
            if error.errno != errno.EINVAL:
                raise
        yield stop


class RowReader:
    """Reads rows by pread into memory of their own: a conversion that maps its source would count all of it as used."""

    def __init__(self, entries: Mapping[str, tuple[Path, TensorEntry]]) -> None:
        self._entries = entries
        self._files: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Return rows ``begin`` to ``end`` of a tensor in its own dtype (a scalar counts as one row)."""
        path, entry = self._entries[name]
        dtype = dtype_of(entry)
        width = math.prod(entry.shape[1:]) * dtype.itemsize
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        size = (end - begin) * width
        data = bytearray(size)
        at = 0
        while at < size:
            got = os.preadv(self._files[path], [memoryview(data)[at:]], entry.begin + begin * width + at)
            if not got:
                raise Permanent(f"{path.name} became shorter while it was read", reason="Corrupted")
            at += got
        shape = (end - begin, *entry.shape[1:]) if entry.shape else ()
        return torch.frombuffer(data, dtype=dtype).view(shape) if size else torch.empty(shape, dtype=dtype)

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor."""
        shape = self._entries[name][1].shape
        return self.rows(name, 0, shape[0] if shape else 1)


def dtype_of(entry: TensorEntry) -> torch.dtype:
    """Return the torch dtype of an entry. Raises Permanent(reason=Unsupported) for one torch lacks."""
    if entry.dtype not in _DTYPES:
        raise Permanent(
            f"tensor {entry.name!r} has the dtype {entry.dtype}, which is not served", reason="Unsupported"
        )
    return _DTYPES[entry.dtype]

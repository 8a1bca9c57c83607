"""Conversion of a checkpoint to int8 or int4, rows by rows: memory is one chunk, whatever the model's size.

The result is a safetensors file whose tensors have the names of the served model's own modules, fused projections as
one tensor, so that serving maps it and is done. It is made once for each (model digest, format) and packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llmos_operator.runtime.formats.grids import GROUP, LANES, pack_int4, quantize_int4, quantize_int8
from llmos_operator.runtime.formats.mapped import RowReader
from llmos_operator.runtime.formats.packed import PackedReader
from llmos_operator.runtime.formats.safetensors_file import StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from llmos_operator.runtime.formats.safetensors_file import TensorEntry

    Progress = Callable[[int], None]  # source bytes converted since the last call
    Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]
    Levels = Callable[[PackedReader, str, int, int], tuple[Tensor, Tensor] | None]

CHUNK_BYTES = 16 << 20  # of float32 rows at a time


@dataclass(frozen=True, slots=True)
class Unit:
    """One tensor of the served model: ``kind`` int8, int4 or plain (bf16), made of the rows of ``sources`` in order."""

    name: str  # of the module for int8 and int4, of the tensor for plain
    kind: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]

    def outputs(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield (tensor name, dtype, shape) of what is stored."""
        if self.kind == "plain":
            yield self.name, "BF16", self.shape
        elif self.kind == "int8":
            yield f"{self.name}.weight", "I8", self.shape
            yield f"{self.name}.scale", "BF16", self.shape[:1]
        else:
            rows, width = self.shape
            yield f"{self.name}.weight", "U8", (rows, width // 2)
            yield f"{self.name}.grid", "BF16", (width // GROUP, rows, 2)


def convert(
    units: Sequence[Unit],
    entries: Mapping[str, tuple[Path, TensorEntry]],
    out: Path,
    metadata: Mapping[str, str],
    progress: Progress,
    reader: RowReader | None = None,
) -> str:
    """Write ``units`` made from ``entries`` to ``out``; return its sha256. Raises Permanent(reason=Corrupted), OSError.

    ``reader`` is asked for the rows, where it is not the entries' own.
    """
    outputs = [output for unit in units for output in unit.outputs()]
    with reader or RowReader(entries) as source, StreamWriter(out, outputs, metadata) as writer:
        for unit in units:
            _CONVERTERS[unit.kind](unit, _Rows(source, entries, unit.sources), writer)
            progress(sum(entries[name][1].nbytes for name in unit.sources))
    return writer.sha256


class _Rows:
    """The rows of several tensors, one after the other, in chunks of a multiple of LANES rows."""

    def __init__(
        self, reader: RowReader, entries: Mapping[str, tuple[Path, TensorEntry]], sources: Sequence[str]
    ) -> None:
        self._reader = reader
        self._parts = [(source, entries[source][1].shape) for source in sources]

    def int4(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield values and grids as `quantize_int4` returns them: the source's own, if it has them."""
        return self._chunks(quantize_int4, PackedReader.levels4)

    def int8(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield values and scales as `quantize_int8` returns them: the source's own, if it has them."""
        return self._chunks(quantize_int8, PackedReader.levels8)

    def _chunks(self, quantize: Quantize, levels: Levels) -> Iterator[tuple[Tensor, ...]]:
        width = self._parts[0][1][-1]
        step = max(LANES, CHUNK_BYTES // (4 * width) // LANES * LANES)
        held: list[tuple[Tensor, ...]] = []
        for source, shape in self._parts:
            for begin in range(0, shape[0], step):
                held.append(self._read(source, begin, min(begin + step, shape[0]), quantize, levels))
                ready = sum(part[0].shape[0] for part in held)
                if ready >= LANES:
                    joined = _joined(held)
                    whole = ready // LANES * LANES
                    held = [tuple(one[whole:] for one in joined)] if whole < ready else []
                    yield tuple(one[:whole] for one in joined)
        if held:
            yield _joined(held)

    def _read(
        self, source: str, begin: int, end: int, quantize: Quantize, levels: Levels
    ) -> tuple[Tensor, ...]:
        kept = levels(self._reader, source, begin, end) if isinstance(self._reader, PackedReader) else None
        return kept or quantize(self._reader.rows(source, begin, end).float())

    def plain(self) -> Tensor:
        tensors = [self._reader.whole(source) for source, _ in self._parts]
        joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        return joined.to(torch.bfloat16)


def _convert_plain(unit: Unit, rows: _Rows, writer: StreamWriter) -> None:
    writer.write(unit.name, _bytes(rows.plain()))


def _convert_int8(unit: Unit, rows: _Rows, writer: StreamWriter) -> None:
    scales = []
    for values, scale in rows.int8():
        writer.write(f"{unit.name}.weight", _bytes(values))
        scales.append(scale)
    writer.write(f"{unit.name}.scale", _bytes(torch.cat(scales)))


def _convert_int4(unit: Unit, rows: _Rows, writer: StreamWriter) -> None:
    grids = []
    for values, grid in rows.int4():
        writer.write(f"{unit.name}.weight", _bytes(pack_int4(values)))
        grids.append(grid)
    writer.write(f"{unit.name}.grid", _bytes(torch.cat(grids).transpose(0, 1)))


_CONVERTERS = {"plain": _convert_plain, "int8": _convert_int8, "int4": _convert_int4}


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(map(torch.cat, zip(*parts, strict=True))) if len(parts) > 1 else parts[0]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data

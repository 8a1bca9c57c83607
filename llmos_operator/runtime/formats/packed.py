"""Checkpoints that are stored quantised, read as what they mean: rows as numbers, or as levels and the grid they lie on.

Names are those of plain checkpoints: `plain_entries` hides how a layer is stored, `PackedReader` knows. Weights that
come as levels keep them: int4 layers get the publisher's own, so serving them costs nothing but the grid's bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from llmos_operator.api.runtime.prequantized import (
    WORD_BITS,
    beside_names,
    holding_name,
    is_beside,
    plain_shape,
    weight_name,
)
from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.grids import GROUP
from llmos_operator.runtime.formats.mapped import RowReader
from llmos_operator.runtime.formats.safetensors_file import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from llmos_operator.api.runtime.prequantized import Scheme

    Entries = Mapping[str, tuple[Path, TensorEntry]]

PACKED: Final = "PACKED"  # the dtype of an entry that only a PackedReader reads
_AWQ_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)  # of a word's nibbles, in the order of the columns they hold


def plain_entries(scheme: Scheme, stored: Entries) -> dict[str, tuple[Path, TensorEntry]]:
    """Return a checkpoint's entries by the names and shapes that they have where nothing is quantised."""
    found = {}
    for name, (path, entry) in stored.items():
        plain = weight_name(scheme, name, entry.dtype)
        if plain is not None:
            shape = plain_shape(scheme, entry.shape)
            found[plain] = (path, TensorEntry(plain, PACKED, shape, entry.begin, entry.end))
        elif not is_beside(scheme, name):
            found[name] = (path, entry)
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer: levels [out, in] as they are stored, scales and zero points [out, groups]; w = (level - zero) * scale."""

    levels: Tensor
    scales: Tensor
    zeros: Tensor
    groups: Tensor | None  # of each input, None: runs of equal length

    def rows(self, begin: int, end: int) -> Tensor:
        levels = self.levels[begin:end].float()
        scales, zeros = self._wide(self.scales[begin:end]), self._wide(self.zeros[begin:end])
        return (levels - zeros) * scales

    def _wide(self, values: Tensor) -> Tensor:
        if self.groups is not None:
            return values[:, self.groups]
        return values.repeat_interleave(self.levels.shape[1] // values.shape[1], 1)


class PackedReader(RowReader):
    """A RowReader of plain entries. It keeps the layer it read last, as packed as it is stored or one byte a weight."""

    def __init__(self, entries: Entries, stored: Entries, scheme: Scheme) -> None:
        super().__init__(stored)
        self._plain = entries
        self._stored = stored
        self._scheme = scheme
        self._last: tuple[str, _Layer] | None = None

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Return rows of a plain tensor; of a packed one as float32. Raises Permanent(reason=Corrupted)."""
        if not self.holds(name):
            return super().rows(name, begin, end)
        return self._layer(name).rows(begin, end)

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor."""
        if not self.holds(name):
            return super().whole(name)
        return self.rows(name, 0, self._plain[name][1].shape[0])

    def holds(self, name: str) -> bool:
        """Return whether a plain tensor is stored packed."""
        return name in self._plain and self._plain[name][1].dtype == PACKED

    def levels4(self, name: str, begin: int, end: int) -> tuple[Tensor, Tensor] | None:
        """Return rows as `grids.quantize_int4` would, without another loss; None where they are not stored so."""
        if not self.holds(name) or self._scheme.format != "int4":
            return None
        layer = self._layer(name)
        width = layer.levels.shape[1]
        scale = layer.scales[begin:end].float()
        zero = (8 - layer.zeros[begin:end].float()) * scale
        grid = torch.stack((scale, zero), -1).to(torch.bfloat16)
        return layer.levels[begin:end].to(torch.int32), grid.repeat_interleave(
            width // GROUP // grid.shape[1], 1
        )

    def levels8(self, name: str, begin: int, end: int) -> tuple[Tensor, Tensor] | None:
        """Return rows as `grids.quantize_int8` would, without another loss; None where they are not stored so."""
        if not self.holds(name) or self._scheme.layout != "integers":
            return None
        layer = self._layer(name)
        return layer.levels[begin:end], layer.scales[begin:end, 0].to(torch.bfloat16)

    def _layer(self, name: str) -> _Layer:
        if self._last is None or self._last[0] != name:
            self._last = None  # two layers at once would be the most memory a conversion takes
            try:
                self._last = (name, _READ[self._scheme.layout](self, name))
            except (KeyError, RuntimeError, IndexError) as error:
                raise Permanent(
                    f"the quantised weights of {name} do not fit together ({str(error)[:200]}); download the model again",
                    reason="Corrupted",
                ) from error
            self._check(name, self._last[1])
        return self._last[1]

    def _check(self, name: str, layer: _Layer) -> None:
        rows, width = self._plain[name][1].shape
        runs = layer.scales.shape[-1]
        # Of indexes of groups the most is asked for: one beyond the scales would read past them.
        if layer.groups is not None:
            fits = (
                layer.groups.shape == (width,)
                and int(layer.groups.min()) >= 0
                and int(layer.groups.max()) < runs
            )
        else:
            fits = (
                runs > 0
                and width % runs == 0
                and (self._scheme.format != "int4" or (width // runs) % GROUP == 0)
            )
        if (
            not fits
            or layer.levels.shape != (rows, width)
            or layer.scales.shape[0] != rows
            or layer.zeros.shape != layer.scales.shape
        ):
            raise Permanent(
                f"the scales of {name} have the shape {list(layer.scales.shape)}, which does not fit {[rows, width]} and "
                f"{self._scheme}; download the model again",
                reason="Corrupted",
            )

    def gptq(self, name: str) -> _Layer:
        """Read a layer of layout gptq."""
        bits, part = self._scheme.bits, self._beside(name)
        levels = _unpack(self._held(name).T, bits)
        zeros = _unpack(part["qzeros"], bits).T.float() + self._scheme.zero_offset
        groups = None if self._scheme.in_order else part["g_idx"].long()
        return _Layer(levels, part["scales"].T.float(), zeros, groups)

    def awq(self, name: str) -> _Layer:
        """Read a layer of layout awq."""
        part = self._beside(name)
        levels = _unpack(self._held(name), 4, _AWQ_PLACES).T
        zeros = _unpack(part["qzeros"], 4, _AWQ_PLACES).T.float()
        return _Layer(levels, part["scales"].T.float(), zeros, None)

    def packed(self, name: str) -> _Layer:
        """Read a layer of layout packed."""
        bits, part = self._scheme.bits, self._beside(name)
        scales = part["weight_scale"].float()
        zeros = torch.full_like(scales, float(1 << (bits - 1)))
        if "weight_zero_point" in part:
            zeros = _unpack(part["weight_zero_point"].T, bits).T[: scales.shape[0]].float()
        groups = None if self._scheme.in_order else part["weight_g_idx"].long()
        return _Layer(_unpack(self._held(name), bits), scales, zeros, groups)

    def integers(self, name: str) -> _Layer:
        """Read a layer of layout integers."""
        levels = self._held(name)
        scales = _by_rows(self._beside(name)["weight_scale"].float(), levels.shape[0])
        return _Layer(levels, scales, torch.zeros_like(scales), None)

    def floats(self, name: str) -> _Layer:
        """Read a layer of layout floats: its levels are fp8 numbers."""
        levels, part, block = self._held(name), self._beside(name), self._scheme.block
        found = part.get("weight_scale_inv", part.get("weight_scale"))
        if found is None:
            raise KeyError("weight_scale")
        if block == (0, 0):
            scales = _by_rows(found.float(), levels.shape[0])
            return _Layer(levels, scales, torch.zeros_like(scales), None)
        rows, width = levels.shape
        scales = found.float().repeat_interleave(block[0], 0)[:rows]
        groups = torch.arange(width) // block[1]
        return _Layer(levels, scales, torch.zeros_like(scales), groups)

    def _held(self, name: str) -> Tensor:
        return self._as_stored(holding_name(self._scheme, name))

    def _beside(self, name: str) -> dict[str, Tensor]:
        names = [one for one in beside_names(self._scheme, name) if one in self._stored]
        return {one.rpartition(".")[2]: self._as_stored(one) for one in names}

    def _as_stored(self, name: str) -> Tensor:
        shape = self._stored[name][1].shape
        return super().rows(name, 0, shape[0] if shape else 1)


_READ: Final = {
    "gptq": PackedReader.gptq,
    "awq": PackedReader.awq,
    "packed": PackedReader.packed,
    "integers": PackedReader.integers,
    "floats": PackedReader.floats,
}


def _unpack(words: Tensor, bits: int, places: tuple[int, ...] = ()) -> Tensor:
    """Return the unsigned numbers in int32 words of [rows, n] as uint8 of [rows, n * 32 / bits], lowest bits first."""
    count = WORD_BITS // bits
    out = torch.empty((*words.shape, count), dtype=torch.uint8)
    for place, at in enumerate(places or range(count)):
        out[..., place] = ((words >> (bits * at)) & ((1 << bits) - 1)).to(torch.uint8)
    return out.view(words.shape[0], -1)


def _by_rows(scales: Tensor, rows: int) -> Tensor:
    """Return one scale for each row of one for each row, or of one for all."""
    flat = scales.reshape(-1, 1)
    return flat.expand(rows, 1) if flat.shape[0] == 1 else flat

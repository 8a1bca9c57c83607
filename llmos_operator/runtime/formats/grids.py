"""Number grids of the weight-only formats: float rows to stored integers and scales.

int8: one bf16 scale a row, w = q * scale with q in -127..127.
int4: bf16 scale and zero for each group of 32 along a row, w = (q - 8) * scale + zero with q in 0..15.

Values are rounded against the scale as it is stored, so the scale's own rounding costs nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
LANES = 64  # rows that packing interleaves; conversions work on multiples of it
_pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu  # noqa: SLF001 - private: torch is pinned


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values [rows, in] and bf16 scales [rows] of float32 rows."""
    scale = (weight.abs().amax(-1) / 127).clamp_(min=1e-12).to(torch.bfloat16)
    values = (weight / scale.float()[:, None]).round_().clamp_(-127, 127)
    return values.to(torch.int8), scale


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return values 0..15 as int32 [rows, in] and the grid [rows, in / 32, (scale, zero)] in bf16 of float32 rows.

    The grid spans each group's minimum and maximum, so weights that came from a 4-bit block of the same 32 (GGUF Q4_1)
    fall on their own levels again.
    """
    rows, width = weight.shape
    groups = weight.view(rows, width // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp_(min=1e-12).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    values = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round_().add_(8).clamp_(0, 15)
    return values.to(torch.int32).view(rows, width), torch.stack((scale, zero), -1)


def pack_int4(values: Tensor) -> Tensor:
    """Return int32 values 0..15 in this CPU's packing, [rows, in / 2] bytes; blocks of LANES rows are independent."""
    packed: Tensor = _pack(values.contiguous(), 1)
    return packed


@functools.cache
def interleaved_rows() -> int:
    """Return how many rows this CPU's packing interleaves, 0 if it is packed some other way; a divisor of LANES.

    In memory packed weights are [out / rows, in, rows / 2] then, so that columns can be cut out of them.
    """
    source = torch.Generator().manual_seed(0)  # no pattern that another order of rows would repeat
    values = torch.randint(0, 16, (LANES, 2 * GROUP), dtype=torch.int32, generator=source)
    packed, half = pack_int4(values), pack_int4(values[:, GROUP:].contiguous())
    for rows in (64, 32, 16):
        columns = packed.view(LANES // rows, 2 * GROUP, rows // 2)[:, GROUP:]
        if torch.equal(columns.reshape(half.shape), half):
            return rows
    return 0


def fits_int4(out_features: int, in_features: int) -> bool:
    """Return whether the kernel takes a layer of this size; others stay at int8."""
    return out_features % 16 == 0 and in_features % GROUP == 0


def packing_name() -> str:
    """Return what packed files of this machine are marked with: another packing is made again."""
    return f"aten-{torch.__version__.partition('+')[0]}-{torch.backends.cpu.get_cpu_capability().lower()}"

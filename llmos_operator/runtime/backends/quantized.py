"""Weight-only quantised layers over ATen's packed CPU kernels.

Few rows (decode) run on kernels that read the packed weights as they are and are bound by memory; many rows (prompts)
unpack the weights once a call and use the matrix product of `products`. Where one begins to win is measured when a model
warms up (`crossover_rows`). On other devices the second path serves all sizes.

int8: one bf16 scale a row, w = q * scale.                     torch._weight_int8pack_mm
int4: bf16 scale and zero for each group of 32 along a row, w = (q - 8) * scale + zero.
                                                               torch._weight_int4pack_mm_for_cpu
These are private operators: torch is pinned and tests/unit/runtime_engine/test_quantized.py is their contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from llmos_operator.runtime.backends.products import product, widens
from llmos_operator.runtime.formats.grids import GROUP, LANES, pack_int4, packing_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_DEFAULT_CROSSOVER = 12
_MOST_UNPACKED = 8 << 20  # elements of int8 weights that are bf16 at the same time
_int8_mm: Callable[..., Tensor] = torch._weight_int8pack_mm  # noqa: SLF001 - see above; this binding costs a call half of torch.ops'
_int4_mm: Callable[..., Tensor] = torch._weight_int4pack_mm_for_cpu  # noqa: SLF001


class QuantizedLinear(nn.Module):
    """What the two formats share."""

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.crossover_rows = _DEFAULT_CROSSOVER
        self.register_buffer("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ w.T + bias for x of [..., in_features] in bf16."""
        rows = x.reshape(-1, self.in_features)
        packed = rows.shape[0] <= self.crossover_rows and rows.is_cpu
        out = self.packed(rows) if packed else self.unpacked(rows)
        bias = self._buffers["bias"]  # by name: a module's own look-up costs a decode step 3 % of its time
        if bias is not None:
            out = out + bias
        return out.view(*x.shape[:-1], self.out_features)

    def packed(self, rows: Tensor) -> Tensor:
        """Return the product by the packed kernel."""
        raise NotImplementedError

    def unpacked(self, rows: Tensor) -> Tensor:
        """Return the product by way of bf16 weights."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """int8 weights [out, in], scale [out]."""

    weight: Tensor
    scale: Tensor
    _table: tuple[Int8Embedding, ...] = ()  # a tied head's

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer(
            "weight", torch.empty(out_features, in_features, dtype=torch.int8, device="meta")
        )
        self.register_buffer("scale", torch.empty(out_features, dtype=torch.bfloat16, device="meta"))

    def share(self, table: Int8Embedding) -> None:
        """Use the rows of a token table: a tied head. Resolved at each call, as loading replaces the table's tensors."""
        del self._buffers["weight"], self._buffers["scale"]
        self._table = (table,)  # in a tuple: not a submodule, whose tensors would be listed twice

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "scale") and self._table:
            return getattr(self._table[0], name)
        return super().__getattr__(name)

    def packed(self, rows: Tensor) -> Tensor:
        """Return the product by the packed kernel."""
        held = self._table[0]._buffers if self._table else self._buffers  # noqa: SLF001 - as in QuantizedLinear
        return _int8_mm(rows.contiguous(), held["weight"], held["scale"])

    def unpacked(self, rows: Tensor) -> Tensor:
        """Return the product by way of bf16 weights; int8 values are exact in bf16, so scales come last.

        A large matrix (a head over a large vocabulary) is unpacked in slices, which bounds the memory of a step.
        """
        step = max(LANES, _MOST_UNPACKED // self.in_features)
        if self.out_features <= step:
            return product(rows, self.weight) * self.scale
        parts = [product(rows, part) for part in torch.split(self.weight, step)]
        return torch.cat(parts, -1) * self.scale


class Int4Linear(QuantizedLinear):
    """Packed int4 weights [out, in / 2] and the grid [in / 32, out, (scale, zero)]."""

    weight: Tensor
    grid: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        packed = torch.empty(out_features, in_features // 2, dtype=torch.uint8, device="meta")
        grid = torch.empty(in_features // GROUP, out_features, 2, dtype=torch.bfloat16, device="meta")
        self.register_buffer("weight", packed)
        self.register_buffer("grid", grid)
        self.unpackable = out_features % LANES == 0 and lanes_as_expected()

    def packed(self, rows: Tensor) -> Tensor:
        """Return the product by the packed kernel."""
        return _int4_mm(rows.contiguous(), self._buffers["weight"], GROUP, self._buffers["grid"])

    def unpacked(self, rows: Tensor) -> Tensor:
        """Return the product by way of bf16 weights, where this CPU's packing is known; else by the packed kernel."""
        if not self.unpackable:
            return self.packed(rows)
        weights = self.dequantized()
        return product(rows, weights.t()) if widens(rows) else rows @ weights

    def dequantized(self) -> Tensor:
        """Return the weights as bf16 [in, out]."""
        blocks = self.out_features // LANES
        lanes = self.weight.view(blocks, self.in_features, LANES // 2)
        values = torch.cat((lanes & 15, lanes >> 4), -1).transpose(0, 1).contiguous()
        scale = self.grid[..., 0].contiguous()
        zero = torch.sub(self.grid[..., 1], scale, alpha=8)  # of q = 0: the 8 of (q - 8) goes in here
        groups = values.to(torch.bfloat16).view(self.in_features // GROUP, GROUP, self.out_features)
        return torch.addcmul(zero[:, None], groups, scale[:, None]).view(self.in_features, self.out_features)


class Int8Embedding(nn.Module):
    """A token table of int8 rows with one bf16 scale each; a tied head is an Int8Linear over the same tensors."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rows: int, width: int, multiplier: float = 1.0) -> None:
        """`multiplier` is applied to what is looked up (Gemma multiplies by the root of the width)."""
        super().__init__()
        self.multiplier = multiplier
        self.register_buffer("weight", torch.empty(rows, width, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(rows, dtype=torch.bfloat16, device="meta"))

    def forward(self, ids: Tensor) -> Tensor:
        """Return bf16 rows."""
        found = functional.embedding(ids, self.weight).to(torch.bfloat16) * self.scale[ids][..., None]
        return found if self.multiplier == 1 else found * self.multiplier


_lanes_checked: dict[str, bool] = {}


def lanes_as_expected() -> bool:
    """Return whether `dequantized` inverts this CPU's packing; tried once on a known matrix."""
    name = packing_name()
    if name not in _lanes_checked:
        values = torch.arange(LANES * GROUP, dtype=torch.int32).view(LANES, GROUP) * 7 % 16
        packed = pack_int4(values).view(GROUP, LANES // 2)
        lanes = torch.cat((packed & 15, packed >> 4), -1).t()
        _lanes_checked[name] = bool(torch.equal(lanes.to(torch.int32), values))
    return _lanes_checked[name]

"""Matrix products of bf16 weights, also on CPUs that have no instructions for them.

Such a CPU multiplies bf16 several times slower than float32 as soon as there are a few rows (measured with torch 2.13 on
AVX2 alone: 5 to 30 times from 16 rows on). There the weights are widened slice by slice, and rows block by block, which
bounds the memory it takes, and multiplied as float32. Both ways sum in float32, but not in the same order, so about one
value in 5,000 rounds the other way. Few rows, as of steps that decode, stay bf16: they gain least, and sequences that are
decoded together in this or that company then get the same tokens.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WIDE_ROWS = 16  # from 4 rows on widening paid on every size tried
_SLICE = 1 << 20  # weights that are float32 at the same time
_BLOCK = 256  # rows whose inputs and results are
_PROBE = (64, 512, 512)  # rows, in, out of the product that is tried
_TRIES = 3
_WORTH = 1.5  # times faster it must be


class Linear(nn.Linear):
    """A linear layer that multiplies the way that is fast here."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """Return a layer with the parameters of ``layer``: the same objects, which may be tied to others."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias."""
        if not widens(x):
            return functional.linear(x, self.weight, self.bias)
        out = product(x, self.weight)
        return out if self.bias is None else out + self.bias


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T in the type of x for x of [..., in] and ``weight`` of [out, in], of x's type or int8."""
    if not widens(x):
        return functional.linear(x, weight.to(x.dtype))
    return _widened(x, weight, x.dtype)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T as float32.

    Widened, however few the rows: what is float32 already is not rounded to bf16, where the best tokens often tie, and
    a row's logits do not depend on how many are computed with it.
    """
    if widens(x, least=1):
        return _widened(x, weight, torch.float32)
    return functional.linear(x, weight.to(x.dtype)).float()


def _widened(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    size, width = weight.shape
    step = max(1, min(size, _SLICE // width))
    # Made once and filled again: blocks of this size that come and go leave holes in the heap, the head's size in all.
    scratch = torch.empty(step, width)
    out = torch.empty(rows.shape[0], size, dtype=dtype)
    for begin in range(0, size, step):
        part = weight[begin : begin + step]
        filled = scratch[: part.shape[0]].copy_(part)
        for first in range(0, rows.shape[0], _BLOCK):
            block = slice(first, first + _BLOCK)
            out[block, begin : begin + step] = functional.linear(rows[block].float(), filled)
    return out.view(*x.shape[:-1], size)


def widens(x: Tensor, least: int = WIDE_ROWS) -> bool:
    """Return whether a product with ``x`` [..., in] of at least so many rows is better computed in float32."""
    return (
        x.dtype is torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() >= least * x.shape[-1]
        and bf16_is_slow()
    )


@functools.cache
def bf16_is_slow() -> bool:
    """Return whether this CPU multiplies float32 faster than bf16, the widening included; tried once a process."""
    rows, width, out = _PROBE
    x = torch.ones(rows, width, dtype=torch.bfloat16)
    weight = torch.ones(out, width, dtype=torch.bfloat16)
    with torch.inference_mode():
        narrow = seconds(lambda: functional.linear(x, weight))
        wide = seconds(lambda: functional.linear(x.float(), weight.float()).to(torch.bfloat16))
    return narrow > wide * _WORTH


def seconds(run: Callable[[], object]) -> float:
    """Return the best of a few tries: other work on the machine can lengthen one but not shorten it."""
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)

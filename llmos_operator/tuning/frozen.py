"""Gradients through layers that do not learn, whatever their weights are stored as.

The layers of `runtime.backends` compute in ways that autograd cannot follow (packed kernels, weights widened slice by
slice). Here the gradient of their input is computed as directly: grad @ weight, widened or unpacked once more. Nothing
is kept for the way back, so a quantised layer costs its quantised bytes and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmos_operator.runtime.backends.products import product, widens
from llmos_operator.runtime.backends.quantized import Int4Linear, Int8Linear, QuantizedLinear

if TYPE_CHECKING:
    from torch import Tensor

_SLICE = 1 << 20  # weights that are float32 at the same time


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        found: Tensor = layer(x)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return input_gradient(ctx.layer, grad), None


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``layer(x)`` with a gradient for x alone."""
    if not x.requires_grad or not torch.is_grad_enabled() or _followed(layer, x):
        found: Tensor = layer(x)
        return found
    out: Tensor = _Through.apply(x, layer)  # type: ignore[no-untyped-call]
    return out


def input_gradient(layer: nn.Module, grad: Tensor) -> Tensor:
    """Return the gradient of the input of a linear ``layer``, [..., in], from that of its output, [..., out]."""
    if isinstance(layer, Int8Linear):
        return backwards(grad * layer.scale, layer.weight)
    if isinstance(layer, Int4Linear):
        return product(grad, _weights(layer))
    if isinstance(layer, nn.Linear):
        return backwards(grad, layer.weight)
    raise TypeError(f"{type(layer).__name__} is no linear layer")


def backwards(grad: Tensor, weight: Tensor) -> Tensor:
    """Return grad @ weight in the type of grad, for grad of [..., out] and ``weight`` of [out, in], of grad's type or int8.

    Where bf16 is slow the weights are widened slice by slice, rows as they lie, and the slices' products added up.
    """
    if not widens(grad):
        return grad @ weight.to(grad.dtype)
    rows = grad.reshape(-1, grad.shape[-1]).float()
    size, width = weight.shape
    step = max(1, min(size, _SLICE // width))
    scratch = torch.empty(step, width)
    total = torch.zeros(rows.shape[0], width)
    for begin in range(0, size, step):
        part = weight[begin : begin + step]
        total.addmm_(rows[:, begin : begin + step], scratch[: part.shape[0]].copy_(part))
    return total.to(grad.dtype).view(*grad.shape[:-1], width)


def _weights(layer: Int4Linear) -> Tensor:
    """Return bf16 [in, out]."""
    if layer.unpackable:
        return layer.dequantized()
    # This CPU's packing is not known: the kernel itself tells the weights, column by column of the unit matrix.
    return layer.packed(torch.eye(layer.in_features, dtype=torch.bfloat16))


def _followed(layer: nn.Module, x: Tensor) -> bool:
    """Whether autograd can follow the layer and needs no copy of its weights for it."""
    if isinstance(layer, QuantizedLinear):
        return False
    return x.dtype is torch.float32 or x.device.type != "cpu"

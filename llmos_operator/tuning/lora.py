"""Low-rank adapters beside frozen layers (LoRA, arXiv:2106.09685): y = W x + alpha / rank * B A x.

A is drawn, B begins as zero, so an adapter that has learned nothing changes nothing. Both are float32 whatever the
layer computes in: the optimiser's small steps would be lost in bf16.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.families import replace_module
from llmos_operator.runtime.backends.quantized import QuantizedLinear
from llmos_operator.tuning import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from llmos_operator.tuning.recipe import Lora


class _Low(torch.autograd.Function):
    """A x in float32, which keeps x as it is: the layer beside keeps the same x, and a float32 copy would be twice that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(x, a)
        return functional.linear(x.float(), a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, a = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        learned = rows.t() @ x.reshape(-1, x.shape[-1]).float()
        return ((grad @ a).to(x.dtype) if ctx.needs_input_grad[0] else None), learned


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter; ``lora_a`` is [rank, in], ``lora_b`` [out, rank]."""

    def __init__(self, base: nn.Module, lora: Lora, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.base = base
        self.scale = lora.scale
        self.dropout = lora.dropout
        width, size = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        bound = (
            math.sqrt(3) * math.sqrt(2 / (1 + 5)) / math.sqrt(width)
        )  # Kaiming's with a = sqrt(5), as PEFT draws
        drawn = torch.empty(lora.rank, width).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(drawn.to(device))
        self.lora_b = nn.Parameter(torch.zeros(size, lora.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with the adapter's, in x's type."""
        out = frozen.apply(self.base, x)
        inner = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        low: Tensor = _Low.apply(inner, self.lora_a)  # type: ignore[no-untyped-call]
        return out + (functional.linear(low, self.lora_b) * self.scale).to(out.dtype)

    def merged(self) -> Tensor:
        """Return W + alpha / rank * B A as float32 [out, in]; only for plain layers."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight.float() + self.scale * (self.lora_b @ self.lora_a)


class FrozenLinear(nn.Module):
    """A linear layer that lets gradients through and learns nothing."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return frozen.apply(self.base, x)


def adapt(model: nn.Module, backbone: str, lora: Lora, seed: int, device: torch.device) -> list[str]:
    """Put an adapter beside every targeted linear layer of the decoder; return the layers' names.

    Raises Permanent(reason=InvalidSpec) for targets the model has not.
    """
    names = [name for name, module in model.named_modules() if _is_linear(module)]
    inside = [name for name in names if name.startswith(f"{backbone}.")]
    known = sorted({name.rpartition(".")[2] for name in inside})
    unknown = [target for target in lora.targets if target not in known]
    if unknown:
        raise Permanent(
            f"fineTune.lora.targets names {unknown[0]!r}, which this model has not; it has {', '.join(known)}",
            reason=Reason.INVALID_SPEC,
        )
    generator = torch.Generator().manual_seed(seed)
    adapted = []
    for name in names:
        base = model.get_submodule(name)
        wanted = name in inside and (not lora.targets or name.rpartition(".")[2] in lora.targets)
        made = LoraLinear(base, lora, generator, device) if wanted else FrozenLinear(base)
        replace_module(model, name, made)
        if wanted:
            adapted.append(name)
    return adapted


def adapter_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the adapter's parameters by the name of their layer and `lora_a` or `lora_b`, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}.lora_a", module.lora_a
            yield f"{name}.lora_b", module.lora_b


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | QuantizedLinear)

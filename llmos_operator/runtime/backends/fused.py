"""Leaner attention and MLP blocks for the Llama family, with the weights and the arithmetic of transformers' own.

Query, key and value projections are one matrix product, as are gate and up; keys and values go to the store in one
copy. A block is replaced only where its structure is exactly the known one; everything else stays as transformers
wrote it. Fusing needs the parts' weights to lie one after the other, which quantised files are written for and bf16
files may happen to be: a copy would cost the private memory that mapping saves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmos_operator.runtime.backends.families import replace_module
from llmos_operator.runtime.backends.products import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from llmos_operator.runtime.backends.attention import PackedContext

_ATTENTION = {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Gemma3Attention"}
_MLP = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Gemma3MLP"}


class FusedLinear(Linear):
    """Several projections of the same input as one; ``parts`` are their names beside each other in the parent."""

    def __init__(self, parts: dict[str, nn.Linear]) -> None:
        linears = list(parts.values())
        sizes = [linear.out_features for linear in linears]
        bias = linears[0].bias is not None
        super().__init__(linears[0].in_features, sum(sizes), bias=bias, device="meta")
        self.parts = tuple(parts)
        self.sizes = tuple(sizes)


class FusedAttention(nn.Module):
    """Self-attention of the Llama family over packed rows."""

    llmos_context: PackedContext

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.layer_idx = original.layer_idx
        self.head_dim: int = original.head_dim  # type: ignore[assignment]
        self.scaling: float = original.scaling  # type: ignore[assignment]
        self.window: int = getattr(original, "sliding_window", None) or _config_window(original)
        fused = FusedLinear({name: getattr(original, name) for name in ("q_proj", "k_proj", "v_proj")})
        self.qkv_proj: nn.Module = fused
        self.o_proj: nn.Module = original.o_proj  # type: ignore[assignment]
        self.q_norm: nn.Module | None = getattr(original, "q_norm", None)
        self.k_norm: nn.Module | None = getattr(original, "k_norm", None)
        self.heads = fused.sizes[0] // self.head_dim
        self.kv_heads = fused.sizes[1] // self.head_dim
        self.join: Callable[[Tensor], Tensor] | None = None  # makes the whole of a rank's partial results

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        """Return the block's output [1, tokens, hidden]; other arguments of transformers' signature have no use here."""
        tokens = hidden_states.shape[1]
        turned = self.heads + self.kv_heads
        both = self.qkv_proj(hidden_states).view(tokens, turned + self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            both[:, : self.heads] = self.q_norm(both[:, : self.heads])
            both[:, self.heads : turned] = self.k_norm(both[:, self.heads : turned])
        cos, sin = self.llmos_context.rotary(*position_embeddings)
        heads = both[:, :turned]
        half = self.head_dim // 2
        heads = torch.addcmul(heads * cos, heads.roll(half, -1), sin)
        out = self.llmos_context.attend(
            int(self.layer_idx),  # type: ignore[arg-type]
            heads[:, : self.heads],
            heads[:, self.heads :],
            both[:, turned:],
            self.scaling,
            self.window,
        )
        projected: Tensor = self.o_proj(out.reshape(1, tokens, self.heads * self.head_dim))
        return projected if self.join is None else self.join(projected), None


class FusedMlp(nn.Module):
    """Gated MLP with one product for gate and up."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj: nn.Module = FusedLinear(
            {name: getattr(original, name) for name in ("gate_proj", "up_proj")}
        )
        self.down_proj: nn.Module = original.down_proj  # type: ignore[assignment]
        self.act_fn: Callable[[Tensor], Tensor] = original.act_fn  # type: ignore[assignment]
        self.width = int(self.down_proj.in_features)  # type: ignore[arg-type]
        self.join: Callable[[Tensor], Tensor] | None = None  # as in FusedAttention

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output."""
        both = self.gate_up_proj(hidden_states)
        out: Tensor = self.down_proj(self.act_fn(both[..., : self.width]) * both[..., self.width :])
        return out if self.join is None else self.join(out)


def fuse(model: nn.Module, may_fuse: Callable[[list[str]], bool]) -> None:
    """Replace known blocks whose parts ``may_fuse`` (given the full names of the parts' weights) allows to fuse."""
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind in _ATTENTION and may_fuse(
            [f"{name}.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
        ):
            replace_module(model, name, FusedAttention(module))
        elif kind in _MLP and may_fuse([f"{name}.{part}.weight" for part in ("gate_proj", "up_proj")]):
            replace_module(model, name, FusedMlp(module))


def _config_window(original: nn.Module) -> int:
    """Return the window of families that keep it in the config alone (Mistral)."""
    if type(original).__name__ != "MistralAttention":
        return 0
    return int(getattr(original.config, "sliding_window", None) or 0)

"""Attention of speech models: an encoder's over one window, a decoder's over packed rows, and the look from one at the other.

The decoder runs as every generative model here does, all sequences in one packed row. What a sequence has heard is not in
that row: its keys and values, made once of its window, lie in the context under the sequence's slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional

from llmos_operator.runtime.backends.attention import PackedContext, packed_attention

if TYPE_CHECKING:
    from torch import Tensor, nn

HEARING = "llmos_hearing"


@dataclass(frozen=True, slots=True)
class Heard:
    """Keys and values of one window by decoder layer, each [heads, positions, head_dim]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class HearingContext(PackedContext):
    """The layout of a step, with what each slot's sequence has heard."""

    heard: dict[int, Heard]  # by slot

    def look(self, layer: int, query: Tensor) -> Tensor:
        """Return [tokens, heads, head_dim] for query of that shape: each row looks at its own sequence's window."""
        out = torch.empty_like(query)
        for segment in self.segments:
            heard = self.heard[segment.slot]
            part = slice(segment.offset, segment.offset + segment.count)
            rows = query[part].transpose(0, 1)[None]
            keys, values = heard.keys[layer][None], heard.values[layer][None]
            found = functional.scaled_dot_product_attention(rows, keys, values, scale=1.0)
            out[part] = found[0].transpose(0, 1)
        return out


def hearing_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every attention layer; tensors are [batch, heads, tokens, head_dim].

    The layers scale their queries themselves.
    """
    if not module.is_decoder:
        out = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return out.transpose(1, 2).contiguous(), None
    if module.is_causal:
        return packed_attention(module, query, key, value, attention_mask, **options)
    context = cast("HearingContext", module.llmos_context)
    rows = query[0].transpose(0, 1)
    return context.look(int(module.layer_idx), rows)[None], None  # type: ignore[arg-type]

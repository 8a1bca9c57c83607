"""Attention over packed rows: transformers' models see one long row of tokens, this module knows whose they are.

A model runs on [1, tokens] with explicit positions and `attn_implementation` NAME. Its attention layers call
`packed_attention`, which finds the step's layout in the PackedContext hung on each layer, writes the new keys and
values into the store and lets each sequence attend to its own past alone. Nothing is padded; a decode row attends to
exactly its length. Query heads that share a key head are laid side by side as rows of one attention (they see the same
keys), so grouped-query attention needs no repeated keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from llmos_operator.runtime.backends.kvstore import KvStore

NAME = "llmos_packed"


@dataclass(slots=True)
class Segment:
    """One sequence's tokens in the packed row: ``count`` from ``offset`` on, at positions from ``start`` on."""

    offset: int
    count: int
    start: int
    slot: int
    keys: tuple[Tensor, ...] = ()  # by layer, [kv_heads, start + count, head_dim], views of the store
    values: tuple[Tensor, ...] = ()
    masks: dict[int, Tensor] = field(default_factory=dict)  # by window

    @property
    def length(self) -> int:
        """Tokens of the sequence after this step."""
        return self.start + self.count


class PackedContext:
    """The layout of the step that runs now; shared by all attention layers of a model."""

    def __init__(self, store: KvStore | None) -> None:
        self.store = store
        self.segments: list[Segment] = []
        self._rows: Tensor | None = None  # row of the store for each packed token
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, segments: Sequence[Segment]) -> None:
        """Set the layout of the next forward pass."""
        self.segments = list(segments)
        if self.store is None:
            return
        for segment in self.segments:
            segment.keys, segment.values = self.store.spans(segment.slot, segment.length)
        if len(self.segments) > 1:
            width = self.store.slot_tokens
            rows = [s.slot * width + s.start + i for s in self.segments for i in range(s.count)]
            self._rows = torch.tensor(rows, device=self.store.geometry.device)

    def end(self) -> None:
        """Drop the layout and its views."""
        self.segments, self._rows = [], None
        self._rotary.clear()

    def rotary(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotary tables [tokens, 1, head_dim] for x * cos + roll(x) * sin; made once a step for all layers.

        transformers writes rotate_half(x) * sin, with the first half of rotate_half negated; here the sign is in sin.
        """
        known = self._rotary.get(id(cos))
        if known is None:
            signed = sin[0].clone()
            signed[:, : sin.shape[-1] // 2].neg_()
            known = self._rotary[id(cos)] = (cos[0][:, None], signed[:, None])
        return known

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int
    ) -> Tensor:
        """Return [tokens, heads, head_dim] for query of that shape and key, value of [tokens, kv_heads, head_dim]."""
        if self.store is not None:
            self._write(layer, key, value)
        if len(self.segments) == 1:
            return self._one(self.segments[0], layer, query, key, value, scale, window)
        out = torch.empty_like(query)
        for segment in self.segments:
            part = slice(segment.offset, segment.offset + segment.count)
            own = (query[part], key[part], value[part])
            out[part] = self._one(segment, layer, *own, scale, window)
        return out

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        store = self.store
        if store is None:
            return
        rows = store.layer(layer)
        if self._rows is None:
            segment = self.segments[0]
            begin = segment.slot * store.slot_tokens + segment.start
            rows[begin : begin + segment.count, 0] = key
            rows[begin : begin + segment.count, 1] = value
        else:
            rows[:, 0].index_copy_(0, self._rows, key.to(rows.dtype))
            rows[:, 1].index_copy_(0, self._rows, value.to(rows.dtype))

    def _one(
        self,
        segment: Segment,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int,
    ) -> Tensor:
        """Return [count, heads, head_dim] of one sequence."""
        if self.store is None:  # an encoder: everything sees everything of its own sequence
            q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
            return functional.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1)
        keys, values = segment.keys[layer], segment.values[layer]
        if keys.dtype != query.dtype:
            keys, values = keys.to(query.dtype), values.to(query.dtype)
        count, heads, dim = query.shape
        kv_heads = keys.shape[0]
        group = heads // kv_heads
        if count == 1:
            if window:
                keys, values = keys[:, -window:], values[:, -window:]
            rows = query.view(1, kv_heads, group, dim)
            out = functional.scaled_dot_product_attention(rows, keys[None], values[None], scale=scale)
            return out.reshape(1, heads, dim)
        shape = (kv_heads, group, segment.length, dim)
        mask = (
            _mask(segment, window, query) if segment.start or (window and segment.length > window) else None
        )
        out = functional.scaled_dot_product_attention(
            query.view(count, kv_heads, group, dim).permute(1, 2, 0, 3),
            keys[:, None].expand(shape),
            values[:, None].expand(shape),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        return out.permute(2, 0, 1, 3).reshape(count, heads, dim)


def _mask(segment: Segment, window: int, like: Tensor) -> Tensor:
    """Return the additive mask [count, length]: a token sees itself, its past, and of that the last ``window``."""
    if window not in segment.masks:
        seen = torch.ones(segment.count, segment.length, dtype=torch.bool, device=like.device).tril(
            segment.start
        )
        if window:
            seen &= torch.ones_like(seen).triu(segment.start - window + 1)
        mask = torch.zeros(segment.count, segment.length, dtype=like.dtype, device=like.device)
        segment.masks[window] = mask.masked_fill_(~seen, float("-inf"))
    return segment.masks[window]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the signature of transformers' attention functions
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every attention layer; tensors are [1, heads, tokens, head_dim]."""
    if options.get("softcap") is not None:
        raise NotImplementedError("attention with soft-capped logits is not served")
    context = cast("PackedContext", module.llmos_context)
    layer: int = getattr(module, "layer_idx", None) or 0
    window = options.get("sliding_window") or 0
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = context.attend(layer, q, k, v, scaling, int(window))
    return out[None], None

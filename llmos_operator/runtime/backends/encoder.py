"""Sentence encoders: token lists in, one vector each out, packed without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from llmos_operator.runtime.backends.attention import PackedContext, Segment
from llmos_operator.runtime.formats.config import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

PACK_TOKENS = 2048  # one forward pass holds about so many; a longer single input still goes alone


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token vectors become one: the mean of all, or the first token's."""

    mean: bool = True


def read_pooling(folder: Path) -> Pooling:
    """Return the pooling of a sentence-transformers model (1_Pooling/config.json); the mean where it says nothing."""
    path = folder / "1_Pooling" / "config.json"
    values = read_json(path) if path.is_file() else {}
    return Pooling(mean=not values.get("pooling_mode_cls_token", False))


class Encoder:
    """A transformers encoder model."""

    def __init__(
        self,
        model: nn.Module,
        context: PackedContext,
        pooling: Pooling,
        first_position: int,
        device: torch.device,
    ) -> None:
        """`first_position` is 0, or pad_token_id + 1 for the RoBERTa family."""
        self._model = model
        self._context = context
        self._pooling = pooling
        self._first = first_position
        self._device = device

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Sequence[int]], *, normalize: bool, dimensions: int) -> Tensor:
        """Return float32 vectors [inputs, dimensions] on the CPU. Inputs must be non-empty and within the context."""
        parts = [self._pass(pack) for pack in _packs(inputs)]
        vectors = torch.cat(parts).float()
        if dimensions:
            vectors = vectors[:, :dimensions]
        return (functional.normalize(vectors) if normalize else vectors).cpu()

    def _pass(self, inputs: Sequence[Sequence[int]]) -> Tensor:
        segments, offset = [], 0
        for tokens in inputs:
            segments.append(Segment(offset, len(tokens), 0, 0))
            offset += len(tokens)
        ids = torch.tensor([[token for tokens in inputs for token in tokens]], device=self._device)
        places = (
            torch.cat([torch.arange(len(tokens)) for tokens in inputs])[None].to(self._device) + self._first
        )
        self._context.begin(segments)
        try:
            hidden = self._model(input_ids=ids, position_ids=places, token_type_ids=torch.zeros_like(ids))[0][
                0
            ]
        finally:
            self._context.end()
        if self._pooling.mean:
            return torch.stack([hidden[s.offset : s.offset + s.count].float().mean(0) for s in segments])
        return torch.stack([hidden[s.offset].float() for s in segments])


def _packs(inputs: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Cut the inputs, in order, into groups of about PACK_TOKENS tokens."""
    packs: list[list[Sequence[int]]] = [[]]
    size = 0
    for tokens in inputs:
        if packs[-1] and size + len(tokens) > PACK_TOKENS:
            packs.append([])
            size = 0
        packs[-1].append(tokens)
        size += len(tokens)
    return packs

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

PACK_TOKENS = 1024  # one forward pass holds about so many; a longer single input still goes alone


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
        # The token type of a second text; RoBERTa's family has one type for both.
        self._second = int(getattr(model.config, "type_vocab_size", 1) > 1)

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Sequence[int]], *, normalize: bool, dimensions: int) -> Tensor:
        """Return float32 vectors [inputs, dimensions] on the CPU. Inputs must be non-empty and within the context."""
        parts = [self._pass(inputs[pack]) for pack in packs(inputs)]
        vectors = torch.cat(parts).float()
        if dimensions:
            vectors = vectors[:, :dimensions]
        return (functional.normalize(vectors) if normalize else vectors).cpu()

    def classify(self, inputs: Sequence[Sequence[int]], second_from: Sequence[int] = ()) -> Tensor:
        """Return probabilities of labels, of a classifier."""
        raise AssertionError(
            f"{len(inputs)} inputs{' of two texts' * bool(second_from)} are to be classified by an encoder without classes"
        )

    @property
    def _body(self) -> nn.Module:
        """What makes hidden states."""
        return self._model

    def _pass(self, inputs: Sequence[Sequence[int]]) -> Tensor:
        """Return one vector for each input of a pack."""
        hidden, segments = self._hidden(inputs)
        if self._pooling.mean:
            return torch.stack([hidden[s.offset : s.offset + s.count].float().mean(0) for s in segments])
        return torch.stack([hidden[s.offset].float() for s in segments])

    def _hidden(
        self, inputs: Sequence[Sequence[int]], second_from: Sequence[int] = ()
    ) -> tuple[Tensor, list[Segment]]:
        """Return the hidden states of a pack, and where each input's are."""
        segments, offset = [], 0
        for tokens in inputs:
            segments.append(Segment(offset, len(tokens), 0, 0))
            offset += len(tokens)
        ids = torch.tensor([[token for tokens in inputs for token in tokens]], device=self._device)
        places = (
            torch.cat([torch.arange(len(tokens)) for tokens in inputs])[None].to(self._device) + self._first
        )
        types = torch.zeros_like(ids)
        for segment, place in zip(segments, second_from, strict=False):
            types[0, segment.offset + place : segment.offset + segment.count] = self._second
        self._context.begin(segments)
        try:
            hidden: Tensor = self._body(input_ids=ids, position_ids=places, token_type_ids=types)[0][0]
        finally:
            self._context.end()
        return hidden, segments


class Classifier(Encoder):
    """A transformers encoder with a head for classes."""

    def __init__(
        self,
        model: nn.Module,
        context: PackedContext,
        body: str,
        problem_type: str,
        first_position: int,
        device: torch.device,
    ) -> None:
        """``body`` is the model type, of which the submodule has its name; ``problem_type`` is config.json's."""
        super().__init__(model, context, Pooling(), first_position, device)
        self._inner: nn.Module = model.get_submodule(body.replace("xlm-", ""))
        self._pooler: nn.Module | None = getattr(self._inner, "pooler", None)
        self._head: nn.Module = model.get_submodule("classifier")
        self._problem = problem_type

    @property
    def _body(self) -> nn.Module:
        return self._inner

    @torch.inference_mode()
    def classify(self, inputs: Sequence[Sequence[int]], second_from: Sequence[int] = ()) -> Tensor:
        """Return float32 probabilities [inputs, labels] on the CPU. Inputs must be non-empty and within the context.

        Inputs that are two texts have the token type of the second one from ``second_from`` on.
        """
        parts = [self._logits(inputs[pack], second_from[pack]) for pack in packs(inputs)]
        logits = torch.cat(parts).float()
        return probabilities(logits, self._problem).cpu()

    def _logits(self, inputs: Sequence[Sequence[int]], second_from: Sequence[int]) -> Tensor:
        hidden, segments = self._hidden(inputs, second_from)
        # Both kinds of head look at the first token of a batch's rows.
        first = hidden[torch.tensor([s.offset for s in segments], device=self._device)][:, None]
        found: Tensor = self._head(first if self._pooler is None else self._pooler(first))
        return found


def probabilities(logits: Tensor, problem: str) -> Tensor:
    """Return what logits [rows, labels] say, by config.json's problem_type; a regression's are its answers already."""
    if problem == "regression":
        return logits
    if problem == "multi_label_classification" or logits.shape[1] == 1:
        return torch.sigmoid(logits)
    return torch.softmax(logits, -1)


def packs(inputs: Sequence[Sequence[int]]) -> list[slice]:
    """Cut the inputs, in order, into groups of about PACK_TOKENS tokens."""
    found, begin, size = [], 0, 0
    for at, tokens in enumerate(inputs):
        if at > begin and size + len(tokens) > PACK_TOKENS:
            found.append(slice(begin, at))
            begin, size = at, 0
        size += len(tokens)
    return [*found, slice(begin, len(inputs))]

"""A model whose layers lie one after the other on several ranks: each computes its own and sends hidden states on.

Rank 0, which schedules and samples, is the last stage: what the head gives is where it is wanted. Rank 1 is the first
stage, with the token table, and so on. Orders reach all ranks when a step begins, and every rank runs them in that
order; so while rank 0 waits for the first step, the first stage computes the next (GPipe's micro-batches,
arXiv:1811.06965, with an engine's steps for batches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmos_operator.runtime.backends.causal import CausalModel, order_of
from llmos_operator.runtime.backends.families import replace_module
from llmos_operator.runtime.batching.plan import Copy
from llmos_operator.runtime.ipc.orders import Look, Release, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from llmos_operator.runtime.backends.adapters import AdapterSet
    from llmos_operator.runtime.backends.attention import PackedContext, Segment
    from llmos_operator.runtime.backends.collective import Group
    from llmos_operator.runtime.backends.kvstore import KvStore
    from llmos_operator.runtime.batching import StepPlan
    from llmos_operator.runtime.ipc.orders import Columns, Order


@dataclass(slots=True)
class Stage:
    """One rank's layers, ``begin`` to ``end``, of all. ``tell`` sends orders to the other ranks; there it does nothing."""

    group: Group
    index: int
    begin: int
    end: int
    hidden: int
    dtype: torch.dtype
    tell: Callable[[Order], None] = lambda _: None

    @classmethod
    def of(cls, group: Group, counts: Sequence[int], hidden: int, dtype: torch.dtype) -> Stage:
        """Return the stage of this rank, where stages have ``counts`` layers."""
        index = (group.rank - 1) % group.count
        begin = sum(counts[:index])
        return cls(group, index, begin, begin + counts[index], hidden, dtype)

    @property
    def layers(self) -> int:
        """Layers of this stage."""
        return self.end - self.begin

    @property
    def first(self) -> bool:
        """Whether it begins with tokens."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether it ends with logits."""
        return self.index == self.group.count - 1

    def take(self, tokens: int) -> Tensor:
        """Return the hidden states [1, tokens, hidden] of the stage before."""
        empty = torch.empty(1, tokens, self.hidden, dtype=self.dtype, device=self.group.device)
        return self.group.receive(empty, self.index)  # stage i is rank i + 1

    def give(self, hidden: Tensor) -> None:
        """Send the next stage its hidden states."""
        self.group.send(hidden.to(self.dtype), (self.index + 2) % self.group.count)


class Elsewhere(nn.Module):
    """A layer that another stage computes."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Return what came in."""
        return hidden_states


def keep_stage(model: nn.Module, backbone: str, stage: Stage) -> None:
    """Leave a model without weights the layers of ``stage``, its token table, its norm and its head where it has them.

    Names stay those of the whole model, so that its files are read by them.
    """
    trunk: Any = model.get_submodule(backbone)
    for index, layer in enumerate(trunk.layers):
        if stage.begin <= index < stage.end:
            layer.self_attn.layer_idx = (
                index - stage.begin
            )  # the place of its keys and values in the stage's store
        else:
            trunk.layers[index] = Elsewhere()
    tied = bool(getattr(model, "all_tied_weights_keys", None))
    table: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    name = next(name for name, module in model.named_modules() if module is table)
    if not (stage.first or (stage.last and tied)):
        replace_module(model, name, nn.Identity())
    if not (stage.last or (stage.first and tied)):
        replace_module(model, "lm_head", nn.Identity())
    if not stage.last:
        trunk.norm = nn.Identity()


class StagedModel(CausalModel):
    """One rank's stage of a causal model."""

    def __init__(
        self,
        model: nn.Module,
        backbone: str,
        store: KvStore,
        context: PackedContext,
        adapters: AdapterSet,
        stage: Stage,
    ) -> None:
        super().__init__(model, backbone, store, context, adapters)
        self._stage = stage

    @property
    def alone(self) -> bool:
        """Whether a step that fails here leaves nobody behind in the middle of it."""
        return False

    @property
    def depth(self) -> int:
        """Steps that may be under way at once: one a stage."""
        return self._stage.group.count

    def begin(self, plan: StepPlan) -> None:
        """Let the other stages begin a step."""
        self._stage.tell(order_of(plan))

    def _run(self, ids: list[int], positions: list[int], segments: list[Segment]) -> Tensor:
        stage = self._stage
        given = {} if stage.first else {"inputs_embeds": stage.take(len(ids))}
        hidden = self._through(ids, positions, segments, given)
        if not stage.last:
            stage.give(hidden[None])
        return hidden

    def hidden(self, tokens: Sequence[int]) -> Tensor:
        """Return the last hidden states [tokens, hidden] of one text, through slot 0 of the store."""
        self._stage.tell(Look(tuple(tokens)))
        return super().hidden(tokens)

    def release(self, released: Iterable[tuple[int, int]]) -> None:
        """Give back the memory of slots beyond so many tokens, on every rank."""
        gone = tuple(released)
        self._stage.tell(Release(gone))
        self.store.release(gone)

    @torch.inference_mode()
    def follow(self, order: Step | Look | Columns | Release) -> None:
        """Compute this stage's part of what rank 0 has ordered."""
        match order:
            case Step(pieces, copies, released):
                self.store.copy(Copy(*one) for one in copies)
                self.store.release(released)
                if pieces:
                    self._forward(pieces)
            case Look(tokens):
                super().hidden(tokens)
            case Release(released):
                self.store.release(released)
            case _:
                raise AssertionError("rank 0 has the whole head of a model in stages")

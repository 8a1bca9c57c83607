"""Generative models: one StepPlan in, sampled tokens out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from llmos_operator.runtime.backends.attention import PackedContext, Segment
from llmos_operator.runtime.backends.products import Linear, logits
from llmos_operator.runtime.backends.quantized import Int8Linear
from llmos_operator.runtime.backends.sampling import Row, logprob_of, penalised, sample
from llmos_operator.runtime.batching.plan import Copy
from llmos_operator.runtime.ipc.orders import Columns, Look, Piece, Release, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from llmos_operator.runtime.backends.adapters import AdapterSet
    from llmos_operator.runtime.backends.kvstore import KvStore
    from llmos_operator.runtime.backends.split import Split
    from llmos_operator.runtime.batching import StepPlan, Work
    from llmos_operator.runtime.ipc.messages import TokenLogprob


@dataclass(slots=True)
class StepResult:
    """For each work of a plan: the tokens sampled at its places, their logprobs, and those of prompt tokens."""

    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[TokenLogprob | None]] = field(default_factory=list)
    prompt_logprobs: list[list[TokenLogprob]] = field(default_factory=list)


class CausalModel:
    """A transformers causal model over a KvStore."""

    def __init__(
        self,
        model: nn.Module,
        backbone: str,
        store: KvStore,
        context: PackedContext,
        adapters: AdapterSet,
        split: Split | None = None,
        head: str = "lm_head",
    ) -> None:
        """``split``: this process computes a part of the model, together with others."""
        self._backbone: nn.Module = model.get_submodule(backbone)
        self._head: nn.Module = model.get_submodule(head)
        self._options: dict[str, Any] = {}  # further arguments of the backbone
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self._device = store.geometry.device
        self._context = context
        self._split = split
        self.store = store
        self.adapters = adapters

    @property
    def alone(self) -> bool:
        """Whether a step that fails here leaves nobody behind in the middle of it."""
        return self._split is None

    @property
    def depth(self) -> int:
        """Steps that may be under way at once, begun and not finished."""
        return 1

    def execute(self, plan: StepPlan, eos_token_ids: tuple[int, ...]) -> StepResult:
        """Run one step."""
        self.begin(plan)
        return self.finish(plan, eos_token_ids)

    def begin(self, plan: StepPlan) -> None:
        """Let other ranks begin a step. Steps are finished in the order they are begun."""
        if self._split is not None:
            self._split.tell(order_of(plan))

    @torch.inference_mode()
    def finish(self, plan: StepPlan, eos_token_ids: tuple[int, ...]) -> StepResult:
        """Compute this rank's part of a step that has begun, and return what it gave."""
        self.store.copy(plan.copies)
        self.store.release(plan.released)
        if not plan.works:
            return StepResult()
        self.adapters.begin(plan.works)
        try:
            chosen = self._forward(plan.works)
        finally:
            self.adapters.end()
        if chosen is None:
            return StepResult([[] for _ in plan.works], [[] for _ in plan.works], [[] for _ in plan.works])
        return self._sample(plan.works, self.logits(chosen), eos_token_ids)

    def _forward(self, works: Sequence[Work] | Sequence[Piece]) -> Tensor | None:
        """Return the last hidden states [places, hidden] at the places whose logits are asked for, None without any."""
        places: list[int] = []
        segments: list[Segment] = []
        offset = 0
        for work in works:
            segments.append(Segment(offset, len(work.tokens), work.start, work.slot))
            offset += len(work.tokens)
            places += range(offset - work.logits, offset)
        ids = [token for work in works for token in work.tokens]
        positions = [work.start + i for work in works for i in range(len(work.tokens))]
        hidden = self._run(ids, positions, segments)
        if not places:
            return None
        if len(places) == hidden.shape[0]:
            return hidden
        return hidden[torch.tensor(places, device=self._device)]

    def _run(self, ids: list[int], positions: list[int], segments: list[Segment]) -> Tensor:
        return self._through(ids, positions, segments, {})

    def _through(
        self, ids: list[int], positions: list[int], segments: list[Segment], given: dict[str, Tensor]
    ) -> Tensor:
        """Return what the layers make of tokens, or of what is ``given`` in their place."""
        inputs = given or {"input_ids": torch.tensor([ids], device=self._device)}
        self._context.begin(segments)
        try:
            out = self._backbone(
                **inputs,
                position_ids=torch.tensor([positions], device=self._device),
                use_cache=False,
                **self._options,
            )
        finally:
            self._context.end()
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits of hidden states [rows, hidden]; of a split model on rank 0 alone."""
        head = self._head
        found = logits(hidden, head.weight) if isinstance(head, Linear) else head(hidden)
        return self.bounded(found if self._split is None else self._split.whole(found))

    def bounded(self, logits: Tensor) -> Tensor:
        """Return logits as float32, soft-capped where the model asks for it."""
        wide = logits.float()
        return wide if self._softcap is None else torch.tanh(wide / self._softcap) * self._softcap

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int]) -> Tensor:
        """Return the last hidden states [tokens, hidden] of one text, through slot 0 of the store."""
        if self._split is not None:
            self._split.tell(Look(tuple(tokens)))
        return self._run(list(tokens), list(range(len(tokens))), [Segment(0, len(tokens), 0, 0)])

    @torch.inference_mode()
    def logits_slice(self, hidden: Tensor, begin: int, end: int) -> Tensor:
        """Return float32 logits of the tokens ``begin`` to ``end`` of the vocabulary, on the CPU.

        Of a split model ``hidden`` must be what `hidden` returned last.
        """
        if self._split is None:
            return self.bounded(self._columns(hidden, begin, end)).cpu()
        self._split.tell(Columns(begin, end))
        return self.bounded(self._own_columns(self._split, hidden, begin, end)).cpu()

    def _columns(self, hidden: Tensor, begin: int, end: int) -> Tensor:
        head = self._head
        out = logits(hidden, head.weight[begin:end])  # type: ignore[index]
        return out * head.scale[begin:end] if isinstance(head, Int8Linear) else out

    def _own_columns(self, split: Split, hidden: Tensor, begin: int, end: int) -> Tensor:
        """Return what all ranks together have of a range of the vocabulary."""
        whole = torch.zeros(hidden.shape[0], end - begin, device=self._device)
        low, high = split.vocabulary.overlap(begin, end)
        if low < high:
            at = low + split.vocabulary.begin - begin
            whole[:, at : at + high - low] = self._columns(hidden, low, high)
        return split.group.add(whole)

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a request beside its slot: nothing, of a request in text."""

    def release(self, released: Iterable[tuple[int, int]]) -> None:
        """Give back the memory of slots beyond so many tokens, on every rank."""
        gone = tuple(released)
        if self._split is not None:
            self._split.tell(Release(gone))
        self.store.release(gone)

    def release_all(self) -> None:
        """Give back the memory of every slot, on every rank."""
        self.release((slot, 0) for slot in range(self.store.geometry.slots))

    @torch.inference_mode()
    def follow(self, order: Step | Look | Columns | Release) -> None:
        """Compute this rank's part of what rank 0 has ordered."""
        split = self._split
        if split is None:
            raise AssertionError("a model that is whole follows nobody")
        match order:
            case Step(pieces, copies, released):
                self.store.copy(Copy(*one) for one in copies)
                self.store.release(released)
                chosen = self._forward(pieces) if pieces else None
                if chosen is not None:
                    self.logits(chosen)
            case Look(tokens):
                split.held = self.hidden(tokens)
            case Columns(begin, end) if split.held is not None:
                self._own_columns(split, split.held, begin, end)
            case Release(released):
                self.store.release(released)

    def _sample(self, works: Sequence[Work], logits: Tensor, eos: tuple[int, ...]) -> StepResult:
        result = StepResult()
        rows: list[Row] = []
        owners: list[int] = []
        kept: list[int] = []
        place = 0
        for index, work in enumerate(works):
            result.tokens.append([])
            result.logprobs.append([])
            result.prompt_logprobs.append(_prompt_logprobs(work, logits[place : place + work.logits]))
            if work.at_end:
                first = work.logits - work.drafts - 1
                kept += range(place + first, place + work.logits)
                owners += [index] * (work.drafts + 1)
                masks = _masks(work)
                rows += [_row(work, before, eos, masks[before]) for before in range(work.drafts + 1)]
            place += work.logits
        if rows:
            own = logits if len(kept) == logits.shape[0] else logits[torch.tensor(kept, device=logits.device)]
            for owner, token, logprob in zip(owners, *sample(own, rows), strict=True):
                result.tokens[owner].append(token)
                result.logprobs[owner].append(logprob)
        return result


def order_of(plan: StepPlan) -> Step:
    """Return what of a plan concerns every rank."""
    return Step(
        tuple(Piece(work.slot, work.start, work.tokens, work.logits) for work in plan.works),
        tuple((one.source, one.target, one.tokens) for one in plan.copies),
        plan.released,
    )


def _masks(work: Work) -> list[bytes | None]:
    """Return which tokens may come at each place of a work that is sampled at."""
    form = work.sequence.form
    if form is None:
        return [None] * (work.drafts + 1)
    return form.masks(work.tokens[len(work.tokens) - work.drafts :])


def _row(work: Work, drafts_before: int, eos: tuple[int, ...], allowed: bytes | None) -> Row:
    """Return the rules for the token that follows ``drafts_before`` of the work's drafts."""
    sequence = work.sequence
    params = sequence.submit.sampling
    position = len(sequence.tokens) + drafts_before
    guessed = work.tokens[len(work.tokens) - work.drafts :][:drafts_before]
    early = sequence.output_length + drafts_before < params.min_tokens
    return Row(
        params=params,
        position=position,
        seed=params.seed or 0,
        tokens=[*sequence.tokens, *guessed] if penalised(params) else (),
        prompt_length=len(sequence.submit.prompt),
        blocked=(*params.stop_token_ids, *(() if params.ignore_eos else eos)) if early else (),
        allowed=allowed,
    )


def _prompt_logprobs(work: Work, logits: Tensor) -> list[TokenLogprob]:
    """Return the logprobs of the prompt tokens that follow the work's own, where the request asks for them."""
    params = work.sequence.submit.sampling
    if not params.prompt_logprobs or work.sequence.output_length:
        return []
    following = work.sequence.submit.prompt[work.start + 1 : work.start + len(work.tokens) + 1]
    return [
        logprob_of(row, token, params.logprobs or 0) for row, token in zip(logits, following, strict=False)
    ]

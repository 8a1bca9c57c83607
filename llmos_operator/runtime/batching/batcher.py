"""Iteration-level scheduling: which tokens of which sequences the next step computes. Pure; the engine is its only user.

One step holds every running sequence's next token first, then prompt chunks up to a token limit, all packed into one
row of tokens: nothing is padded. Beside sequences that decode the limit is what the machine computes in time (`pace`). A sequence moves through

    waiting -> running (prefill, then decode) -> finished
       ^__________________| preempted: its blocks go, its tokens stay and are computed again ("recompute")

Order among the waiting: priority first, then the tenant that has been served least, then arrival. Whoever arrives
with a higher priority than a running sequence takes its place when there is no room (Orca, OSDI'22, for the iteration
level; vLLM for preemption by recompute; VTC, OSDI'24, for counting service by tenant).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import KV_BLOCK_TOKENS
from llmos_operator.runtime.batching.drafting import propose
from llmos_operator.runtime.batching.pace import Pace
from llmos_operator.runtime.batching.plan import BatchLimits, Copy, Emitted, Running, StepPlan, Work
from llmos_operator.runtime.ipc.messages import FinishReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.runtime.batching.plan import Form
    from llmos_operator.runtime.ipc.messages import Submit
    from llmos_operator.runtime.kvcache import KvCache


class Batcher:
    """The queue and the running set. ``plan`` then ``commit``, in turn; with `flights`, up to so many plans ahead."""

    def __init__(self, limits: BatchLimits, cache: KvCache, eos_token_ids: Iterable[int] = ()) -> None:
        self.limits = limits
        self.cache = cache
        self._eos = frozenset(eos_token_ids)
        self._waiting: list[Running] = []
        self._running: list[Running] = []
        self._by_id: dict[str, Running] = {}
        self._served: dict[str, int] = {}  # tokens by tenant, of tenants with work
        self._order = 0
        self._copies: list[Copy] = []
        self.pace = Pace(limits.prefill_tokens)
        self.preemptions = 0

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences without one."""
        return len(self._waiting)

    def adapter_use(self) -> dict[str, tuple[int, int]]:
        """Return (running, waiting) sequences of each adapter in use."""
        found: dict[str, tuple[int, int]] = {}
        for sequence in self._by_id.values():
            name = sequence.submit.adapter
            if name:
                running, waiting = found.get(name, (0, 0))
                runs = sequence.slot is not None
                found[name] = (running + runs, waiting + (not runs))
        return found

    def add(self, submit: Submit, now: float, form: Form | None = None, salt: bytes = b"") -> str:
        """Queue a request that keeps to ``form``; return "" or why it can never run.

        ``salt`` sets its prefixes apart from those of other adapters.
        """
        if submit.request_id in self._by_id:
            return f"request id {submit.request_id!r} is in use"
        if not submit.prompt:
            return "the prompt has no tokens"
        limit = self.limits.max_tokens
        if len(submit.prompt) >= limit or not self.cache.fits_ever(len(submit.prompt) + 1):
            return f"the prompt has {len(submit.prompt)} tokens; prompt and answer together may have {self._longest()}"
        sequence = Running(submit, now, self._order, list(submit.prompt), form=form, salt=salt)
        self._order += 1
        self._by_id[submit.request_id] = sequence
        self._waiting.append(sequence)
        floor = min(
            (self._served[s.submit.tenant] for s in self._everyone() if s.submit.tenant in self._served),
            default=0,
        )
        self._served[submit.tenant] = max(self._served.get(submit.tenant, 0), floor)
        return ""

    def cancel(self, request_id: str) -> bool:
        """Forget a request at once; False if it is not here."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        self._remove(sequence)
        return True

    def cancel_all(self) -> list[Running]:
        """Forget everything and return it."""
        everyone = self._everyone()
        for sequence in everyone:
            self._remove(sequence)
        return everyone

    def expire(self, now: float) -> list[Emitted]:
        """Drop waiting requests that are too late to start, or too long for a cache that has shrunk since."""
        gone: list[Emitted] = []
        for sequence in list(self._waiting):
            deadline = sequence.submit.deadline_at
            if deadline is not None and deadline <= now and not sequence.scheduled_at:
                text = "the deadline passed before the request could start"
                gone.append(Emitted(sequence, (), FinishReason.ERROR, None, text))
            elif not self.cache.fits_ever(len(sequence.tokens)):
                reason = FinishReason.LENGTH if sequence.output_length else FinishReason.ERROR
                text = f"the KV cache has shrunk to {self._longest()} tokens"
                gone.append(Emitted(sequence, (), reason, None, text))
        for emitted in gone:
            self._remove(emitted.sequence)
        return gone

    # ------------------------------------------------------------ plan

    def plan(self, now: float) -> StepPlan:
        """Return the next step; empty when nothing can run."""
        self._copies = []
        share = self._share()
        idle = [s for s in self._running if not s.flying]
        decode = [
            work
            for s in [s for s in idle if _decodes(s)][:share]
            if (work := self._decode_work(s)) is not None
        ]
        room = self.pace.room(sum(_decodes(s) for s in self._running))
        prefill: list[Work] = []
        for sequence in [s for s in idle if not _decodes(s)][: share - len(decode)]:
            room -= self._add_chunk(sequence, room, prefill)
        new = self.limits.new_rows or self.limits.max_rows
        if self.limits.flights > 1:  # one more than its share at the most: it may take the place of another
            new = max(1, min(new, share - len(decode) - len(prefill)))
        while room > 0 and new > 0 and (admitted := self._admit(now)) is not None:
            room -= self._add_chunk(admitted, room, prefill)
            new -= 1
        # A later admission may have preempted a sequence that had its place already: by slot, the last work counts.
        works = {work.slot: work for work in (*decode, *prefill) if work.sequence.slot == work.slot}
        for work in works.values():
            work.sequence.flying = True
        # Rows of one adapter lie side by side: the backend applies each adapter once.
        ordered = sorted(works.values(), key=lambda work: work.sequence.submit.adapter)
        return StepPlan(tuple(ordered), tuple(self._copies), self.cache.take_released())

    def _share(self) -> int:
        """Return how many rows a step may have, so that as many steps as may be under way get some."""
        rows, flights = self.limits.max_rows, self.limits.flights
        return rows if flights == 1 else -(-min(rows, self.running + self.waiting) // flights)

    def _decode_work(self, sequence: Running) -> Work | None:
        """Return the next token of a decoding sequence, preempting others (or itself) when the cache is full."""
        while sequence.slot is not None and not self.cache.grow(sequence.slot, len(sequence.tokens)):
            self._preempt(self._victim())
        if sequence.slot is None:
            return None
        drafts = self._drafts(sequence)
        tokens = (sequence.tokens[-1], *drafts)
        return Work(sequence, sequence.slot, sequence.computed, tokens, len(tokens), len(drafts))

    def _drafts(self, sequence: Running) -> tuple[int, ...]:
        """Guess tokens that repeat earlier text, where that has paid so far and the step has nobody else to serve."""
        if not self.limits.draft_tokens or len(self._running) > 1 or self._waiting or sequence.slot is None:
            return ()
        left = sequence.submit.sampling.max_tokens - sequence.output_length - 1
        most = min(self.limits.draft_tokens, left, self.limits.max_tokens - len(sequence.tokens) - 1)
        drafts = propose(sequence.tokens, most, accepted=sequence.accepted, drafted=sequence.drafted)
        if drafts and not self.cache.grow(sequence.slot, len(sequence.tokens) + len(drafts)):
            return ()
        return drafts

    def _add_chunk(self, sequence: Running, room: int, works: list[Work]) -> int:
        """Append the next chunk of a prompt (or of a recomputed sequence) and return its length."""
        if sequence.slot is None or room <= 0:
            return 0
        end = min(len(sequence.tokens), sequence.computed + room)
        chunk = tuple(sequence.tokens[sequence.computed : end])
        last = end == len(sequence.tokens)
        whole = sequence.submit.sampling.prompt_logprobs and not sequence.output_length
        logits = len(chunk) if whole else int(last)
        works.append(Work(sequence, sequence.slot, sequence.computed, chunk, logits))
        return len(chunk)

    def _admit(self, now: float) -> Running | None:
        """Give the best waiting sequence a slot, if need be that of a running one of lower priority."""
        if not self._waiting:
            return None
        best = min(self._waiting, key=self._rank)
        while True:
            if len(self._running) < self.limits.max_rows:
                reuse = not best.submit.sampling.prompt_logprobs
                admission = self.cache.admit(best.tokens, reuse=reuse, salt=best.salt)
                if admission is not None:
                    break
            victim = self._victim()
            if victim is None or victim.submit.priority >= best.submit.priority:
                return None
            self._preempt(victim)
        self._waiting.remove(best)
        self._running.append(best)
        best.slot, best.computed = admission.slot, admission.reused
        if admission.copy_from is not None:
            self._copies.append(Copy(admission.copy_from, admission.slot, admission.reused))
        if not best.scheduled_at:
            best.scheduled_at, best.cached_tokens = now, admission.reused
        return best

    def _rank(self, sequence: Running) -> tuple[int, int, int]:
        return (-sequence.submit.priority, self._served.get(sequence.submit.tenant, 0), sequence.order)

    def _victim(self) -> Running | None:
        """Return the running sequence that hurts least to stop: lowest priority, then the youngest; none in flight."""
        idle = (s for s in self._running if not s.flying)
        return min(idle, key=lambda s: (s.submit.priority, -s.order), default=None)

    def _preempt(self, sequence: Running | None) -> None:
        if sequence is None or sequence.slot is None:
            raise AssertionError("nothing to preempt")
        self.cache.release(sequence.slot, keep=False)
        sequence.slot, sequence.computed = None, 0
        self._running.remove(sequence)
        self._waiting.append(sequence)
        self.preemptions += 1

    # ------------------------------------------------------------ commit

    def commit(self, plan: StepPlan, sampled: Sequence[Sequence[int]], now: float) -> list[Emitted]:
        """Take a step's result: for each work the tokens sampled at its last ``logits`` positions.

        Drafts are accepted as far as they equal what was sampled in their place. Sequences cancelled since the plan
        are skipped.
        """
        emitted: list[Emitted] = []
        for work, new in zip(plan.works, sampled, strict=True):
            sequence = work.sequence
            sequence.flying = False
            if sequence.slot != work.slot:
                continue
            self._served[sequence.submit.tenant] += len(work.tokens)
            took = self._take(work, new, now)
            self.cache.computed(work.slot, sequence.tokens, sequence.computed)
            if took is not None:
                emitted.append(took)
                if took.finish_reason:
                    self._remove(sequence)
        return emitted

    def _take(self, work: Work, new: Sequence[int], now: float) -> Emitted | None:
        sequence = work.sequence
        if not work.at_end:
            sequence.computed = work.start + len(work.tokens)
            return None  # the prompt goes on in the next step
        right = _agreeing(work.tokens[len(work.tokens) - work.drafts :], new) if work.drafts else 0
        sequence.drafted += work.drafts
        sequence.accepted += right
        if not sequence.first_token_at:
            sequence.first_token_at = now
        emitted = self._append(sequence, new[: right + 1] if work.drafts else new[-1:])
        sequence.computed = min(work.start + len(work.tokens) - work.drafts + right, len(sequence.tokens))
        return emitted

    def _append(self, sequence: Running, new: Sequence[int]) -> Emitted:
        """Append sampled tokens up to the first one that ends the sequence."""
        before = len(sequence.tokens)
        reason, stop = "", None
        for token in new:
            if self._stops(sequence, token):
                reason, stop = FinishReason.STOP, token
                break
            sequence.tokens.append(token)
            if sequence.form is not None and sequence.form.take(token):
                reason = FinishReason.STOP
                break
            full = len(sequence.tokens) >= self._longest()
            if full or sequence.output_length >= sequence.submit.sampling.max_tokens:
                reason = FinishReason.LENGTH
                break
        return Emitted(sequence, tuple(sequence.tokens[before:]), reason, stop)

    def _longest(self) -> int:
        held = self.cache.total_blocks * KV_BLOCK_TOKENS - self.cache.beside
        return min(self.limits.max_tokens, self.cache.slot_tokens, held)

    def _stops(self, sequence: Running, token: int) -> bool:
        params = sequence.submit.sampling
        if sequence.output_length < params.min_tokens:
            return False
        return token in params.stop_token_ids or (token in self._eos and not params.ignore_eos)

    def _remove(self, sequence: Running) -> None:
        """Forget a sequence, keeping its computed prefix in the cache."""
        del self._by_id[sequence.submit.request_id]
        if sequence.slot is not None:
            self._running.remove(sequence)
            self.cache.release(sequence.slot)
            sequence.slot = None
        else:
            self._waiting.remove(sequence)
        tenant = sequence.submit.tenant
        if all(other.submit.tenant != tenant for other in self._by_id.values()):
            self._served.pop(tenant, None)

    def shrink(self, blocks: int) -> None:
        """Set the cache's budget, preempting until what runs fits. No step may be under way."""
        while not self.cache.resize(blocks):
            self._preempt(self._victim())

    def _everyone(self) -> list[Running]:
        return list(self._by_id.values())


def _decodes(sequence: Running) -> bool:
    return sequence.computed == len(sequence.tokens) - 1


def _agreeing(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """Return how many drafts equal the token sampled in their place."""
    count = 0
    for draft, token in zip(drafts, sampled, strict=False):
        if draft != token:
            break
        count += 1
    return count

"""Values of the scheduler: a sequence, the work of a step, what a step gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.ipc.messages import Submit


class Form(Protocol):
    """What an answer has to keep to; it moves along with the sequence's tokens."""

    def masks(self, drafts: Sequence[int] = ()) -> list[bytes | None]:
        """Return the tokens allowed next and after each draft, one bit a token; None: anything."""

    def take(self, token: int) -> bool:
        """Move past a token that was kept; return whether the answer is complete."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much one step may hold."""

    max_rows: int = 64  # running sequences
    prefill_tokens: int = 256  # prompt tokens a step at the most, beside the decode rows
    max_tokens: int = 4096  # length of a sequence: the model's context
    draft_tokens: int = 0  # guessed tokens a step, only while a single sequence decodes; 0 = never
    flights: int = 1  # steps under way at once: rows are dealt out evenly among them
    new_rows: int = 0  # sequences a step may begin: each brings more work than its tokens; 0 = as many as fit


@dataclass(slots=True, eq=False)
class Running:
    """One request from its arrival to its last token; the scheduler alone changes it."""

    submit: Submit
    arrived_at: float
    order: int
    tokens: list[int] = field(default_factory=list)  # prompt, then output
    computed: int = 0  # tokens whose keys and values are in the cache
    slot: int | None = None
    scheduled_at: float = 0.0
    first_token_at: float = 0.0
    cached_tokens: int = 0
    flying: bool = False  # in a step that is planned and not committed
    accepted: int = 0  # drafts that were right, and the tries
    drafted: int = 0
    form: Form | None = None
    salt: bytes = b""  # of its prefixes in the cache: the adapter's digest

    @property
    def output_length(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.submit.prompt)


@dataclass(frozen=True, slots=True)
class Work:
    """Compute ``tokens`` of one sequence from position ``start``; sample after the last ``logits`` of them."""

    sequence: Running
    slot: int
    start: int
    tokens: tuple[int, ...]
    logits: int
    drafts: int = 0  # the last so many of `tokens` are guesses

    @property
    def at_end(self) -> bool:
        """Whether a token is sampled after it: it reaches the end of what is known of its sequence."""
        return self.start + len(self.tokens) - self.drafts == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the first ``tokens`` of keys and values from one slot to another, before anything is computed."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step.

    In this order: the copies, one after the other; then the memory of ``released`` slots beyond so many tokens can
    go; then the works, all at once.
    """

    works: tuple[Work, ...]
    copies: tuple[Copy, ...] = ()
    released: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the works compute."""
        return sum(len(work.tokens) for work in self.works)


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a step gave one sequence: its new tokens, and the reason if it is over."""

    sequence: Running
    tokens: tuple[int, ...]
    finish_reason: str = ""
    stop_token: int | None = None
    message: str = ""

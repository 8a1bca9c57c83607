"""One answer while it is made: tokens become text, stop texts end it, and what it cost is counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.runtime.decoding import StopFinder, TextStream
from llmos_operator.runtime.ipc import FinishReason

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc import RequestOutput, Timing, TokenLogprob
    from llmos_operator.runtime.planning import Plan
    from llmos_operator.runtime.tools.reading import CallPiece, CallReader
    from llmos_operator.runtime.vocabulary import Vocabulary

TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in an answer. `finish_reason` is "" while it goes on."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str = ""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallPiece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.logprobs or self.finish_reason)


@dataclass(slots=True)
class Choice:
    """One answer to one prompt."""

    index: int
    request_id: str
    prompt_tokens: int
    stream: TextStream
    stops: StopFinder
    min_tokens: int = 0
    drop_text: bool = False  # only the prompt is scored
    made: int = 0  # tokens, the one that ended it included
    cached_tokens: int = 0
    finish_reason: str = ""
    message: str = ""  # of an error or an abort
    timing: Timing | None = None
    last_token_at: float = 0.0  # when the newest token arrived, monotonic seconds
    first_token_at: float = field(default=0.0)
    reader: CallReader | None = None  # where tools may be called

    @classmethod
    def start(cls, plan: Plan, index: int, request_id: str, vocabulary: Vocabulary) -> Choice:
        """Return answer number ``index`` of a plan, before its first token."""
        prompt = index // plan.n
        bytes_of = vocabulary.token_bytes if plan.keep_special else vocabulary.plain_bytes
        return cls(
            index=index,
            request_id=request_id,
            prompt_tokens=len(plan.prompts[prompt]),
            stream=TextStream(bytes_of),
            stops=StopFinder(plan.stops, include=plan.include_stop),
            min_tokens=plan.samplings[prompt].min_tokens,
            drop_text=plan.score_only,
            reader=plan.tools.reader() if plan.tools is not None else None,
        )

    def take(self, output: RequestOutput) -> Piece:
        """Return what ``output`` adds. After a stop text was found the answer is over, whatever the engine still sends."""
        if self.finish_reason:
            return Piece()
        self.made += len(output.tokens) + (output.stop_token is not None)
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.timing = output.timing or self.timing
        self.message = output.message
        if self.drop_text:
            self.made = 0
            self.finish_reason = FinishReason.LENGTH if output.tokens or output.finish_reason else ""
            return Piece(finish_reason=self.finish_reason, prompt_logprobs=output.prompt_logprobs)
        text = self.stream.push(output.tokens)
        if output.finish_reason:
            text += self.stream.end()
        text, stopped = self._find_stop(text)
        if stopped:
            self.finish_reason = FinishReason.STOP
        elif output.finish_reason:
            text += self.stops.end()
            self.finish_reason = output.finish_reason
        text, calls = self._read(text)
        return Piece(text, output.logprobs, self.told_reason, output.prompt_logprobs, calls)

    def abort(self) -> Piece:
        """End the answer where it is."""
        text = self.stream.end() + self.stops.end()
        self.finish_reason = FinishReason.ABORT
        text, calls = self._read(text)
        return Piece(text, finish_reason=FinishReason.ABORT, calls=calls)

    @property
    def told_reason(self) -> str:
        """The reason as clients are told it: an answer that called tools says so."""
        called = self.reader is not None and self.reader.calls > 0
        return TOOL_CALLS if called and self.finish_reason == FinishReason.STOP else self.finish_reason

    def _read(self, text: str) -> tuple[str, tuple[CallPiece, ...]]:
        """Take tool calls out of the text; when as many are complete as may be, the answer is over."""
        if self.reader is None:
            return text, ()
        shown, calls = self.reader.push(text)
        if self.reader.over:
            self.finish_reason = FinishReason.STOP
        if self.finish_reason:
            rest, more = self.reader.end(cut=self.finish_reason != FinishReason.STOP)
            shown, calls = shown + rest, calls + more
        return shown, tuple(calls)

    def _find_stop(self, text: str) -> tuple[str, bool]:
        if self.made < self.min_tokens:
            return text, False
        return self.stops.push(text)


@dataclass(slots=True)
class Tally:
    """Tokens of a whole request."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def document(self) -> dict[str, object]:
        """Return OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def tally(plan: Plan, choices: list[Choice]) -> Tally:
    """Return what a request has cost so far: each prompt counts once, however often it is answered."""
    return Tally(
        prompt=sum(map(len, plan.prompts)),
        completion=sum(choice.made for choice in choices),
        cached=sum(choice.cached_tokens for choice in choices[:: plan.n]),
    )

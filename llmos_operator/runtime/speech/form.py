"""The form of a transcript: which tokens of a speech model may come next. A `batching.plan.Form`, pure.

First comes a script where there is one: places at which only some tokens may stand (any language, then the task). Then
text, without the model's suppressed tokens; with times, in pairs around each segment and never running backwards, by the
rules of Whisper's authors (openai/whisper, decoding.py, and WhisperTimeStampLogitsProcessor of transformers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.runtime.speech.rules import SpeechRules

_PAIR = 2


class Transcript:
    """The form of one answer; it moves along with its tokens."""

    def __init__(self, rules: SpeechRules, script: Sequence[Sequence[int]], *, times: bool) -> None:
        self._rules = rules
        self._script = list(script)
        self._times = times
        self._made: list[int] = []  # after the script
        self._latest: int | None = None  # the last time token
        self._width = -(-rules.vocabulary // 8)
        self._all = (1 << rules.vocabulary) - 1
        self._suppressed = _bits(rules.suppressed)
        self._first = _bits(rules.suppressed_first)

    @property
    def timed(self) -> bool:
        """Whether the next token is one of a text with times."""
        return self._times and not self._script

    @property
    def times_from(self) -> int:
        """The token of 0.00 s."""
        return self._rules.times_from

    def judged(self) -> bytes:
        """Return the tokens among which text is weighed against times: all that the pairing of times allows."""
        return self._bytes(self._paired())

    def masks(self, drafts: Sequence[int] = ()) -> list[bytes | None]:
        """Return the tokens allowed next. A transcript is never guessed ahead."""
        if drafts:
            raise AssertionError("a transcript has no drafts")
        if self._script:
            return [self._bytes(_bits(self._script[0]))]
        allowed = (self._paired() if self._times else self._all) & ~self._suppressed
        if not self._made:
            allowed &= ~self._first
        return [self._bytes(allowed)]

    def take(self, token: int) -> bool:
        """Move past a token; a transcript ends by its end token alone."""
        if self._script:
            self._script.pop(0)
            return False
        self._made.append(token)
        if token >= self._rules.times_from:
            self._latest = token
        return False

    def _paired(self) -> int:
        rules, made = self._rules, self._made
        begin = rules.times_from
        text, times = (1 << begin) - 1, self._all >> begin << begin
        if not made:
            if rules.latest_first_time is not None:
                times &= (1 << (begin + rules.latest_first_time + 1)) - 1
            return times
        text &= ~(1 << (begin - 1))  # <|notimestamps|>
        after_time = made[-1] >= begin
        opening = after_time and (len(made) < _PAIR or made[-_PAIR] >= begin)
        if opening:
            times = 0
        elif after_time:
            text = (
                text >> rules.end << rules.end
            )  # no text between the end of a segment and the next one's begin
        if self._latest is not None:
            least = self._latest if after_time and not opening else self._latest + 1
            times = times >> least << least
        return text | times

    def _bytes(self, bits: int) -> bytes:
        return bits.to_bytes(self._width, "little")


def _bits(tokens: Iterable[int]) -> int:
    found = 0
    for token in tokens:
        found |= 1 << token
    return found

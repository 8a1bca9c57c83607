"""Guessing the next tokens from the text itself ("prompt lookup"): free drafts where an answer repeats its prompt. Pure.

If the last few tokens occurred before, what followed then is likely to follow now. A wrong guess costs the rows it took
in the step, so a sequence whose guesses keep failing stops making them.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_PATTERN, _SHORTEST_PATTERN = 4, 2
_TRIAL_TOKENS = 24  # drafts before acceptance is judged
_LEAST_ACCEPTED = 3  # one of so many drafts has to be right


def propose(tokens: Sequence[int], most: int, *, accepted: int = 0, drafted: int = 0) -> tuple[int, ...]:
    """Return up to ``most`` guesses for what follows ``tokens``; () when nothing repeats or guessing has not paid."""
    if most <= 0 or (drafted >= _TRIAL_TOKENS and accepted * _LEAST_ACCEPTED < drafted):
        return ()
    text = array("q", tokens)
    raw, width = text.tobytes(), text.itemsize
    for length in range(_LONGEST_PATTERN, _SHORTEST_PATTERN - 1, -1):
        at = _last_occurrence(raw, text[-length:].tobytes(), width) if len(text) > length else -1
        if at >= 0:
            return tuple(text[at + length : at + length + most])
    return ()


def _last_occurrence(raw: bytes, pattern: bytes, width: int) -> int:
    """Return the index, in tokens, of the last occurrence of ``pattern`` before the end itself; -1 if there is none."""
    at = raw.rfind(pattern, 0, len(raw) - width)
    while at >= 0 and at % width:
        at = raw.rfind(pattern, 0, at + len(pattern) - 1)
    return at // width if at >= 0 else -1

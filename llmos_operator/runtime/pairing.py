"""Tokens of two texts as one input, as models that compare them read it, and texts cut to so many tokens.

Texts are encoded apart and put together by the tokenizer's own post-processor; what is too long is cut as the `tokenizers`
library's `longest_first` cuts it, which is what transformers' `truncation=True` does. The tokenizer itself is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """Tokens of two texts; from ``second_from`` on they have the token type of the second."""

    tokens: tuple[int, ...]
    second_from: int


def added(tokenizer: Tokenizer, *, pair: bool) -> int:
    """Return how many tokens of its own the tokenizer adds to a text, or to two."""
    return int(tokenizer.num_special_tokens_to_add(pair))


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], most: int | None, most_second: int | None
) -> list[Pair]:
    """Return the tokens of each pair, at most ``most`` of them, at most ``most_second`` of the second text."""
    room = None if most is None else most - added(tokenizer, pair=True)
    firsts = tokenizer.encode_batch([first for first, _ in pairs], add_special_tokens=False)
    seconds = tokenizer.encode_batch([second for _, second in pairs], add_special_tokens=False)
    found = []
    for first, second in zip(firsts, seconds, strict=True):
        _cut(second, most_second)
        if room is not None and len(first) + len(second) > room:
            left, right = longest_first(len(first), len(second), room)
            _cut(first, left)
            _cut(second, right)
        whole = tokenizer.post_process(first, second)
        place = next((at for at, kind in enumerate(whole.type_ids) if kind), len(whole))
        found.append(Pair(tuple(whole.ids), place))
    return found


def encode_cut(
    tokenizer: Tokenizer, texts: Sequence[str], most: int | None, own: int | None
) -> list[tuple[int, ...]]:
    """Return the tokens of each text, at most ``most`` of them, at most ``own`` without those that are added."""
    limits = [own, None if most is None else most - added(tokenizer, pair=False)]
    room = min((limit for limit in limits if limit is not None), default=None)
    found = []
    for one in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        _cut(one, room)
        found.append(tuple(tokenizer.post_process(one).ids))
    return found


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return what of two lengths is kept so that they fit ``room``: the longer one is cut, both where that is not enough."""
    short, long = sorted((first, second))
    long = max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    return (long, short) if first > second else (short, long)


def _cut(encoding: Any, most: int | None) -> None:
    if most is not None and len(encoding) > most:
        encoding.truncate(most)

"""Tokens to text piece by piece, and stop texts across the pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.runtime.decoding import StopFinder, TextStream
from llmos_operator.runtime.vocabulary import Vocabulary
from tests.support.engine import write_model

if TYPE_CHECKING:
    from pathlib import Path


def _byte(token: int) -> bytes:
    return bytes([token])


def _pieces(raw: bytes, cuts: list[int]) -> list[str]:
    stream = TextStream(_byte)
    found, start = [], 0
    for cut in [*sorted(cuts), len(raw)]:
        found.append(stream.push(raw[start : max(start, cut)]))
        start = max(start, cut)
    return [*found, stream.end()]


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 200), max_size=30))
def test_the_pieces_of_a_text_join_to_it_and_none_is_cut_inside_a_character(
    text: str, cuts: list[int]
) -> None:
    pieces = _pieces(text.encode(), cuts)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(raw=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40), max_size=20))
def test_bytes_that_are_no_text_come_out_as_a_plain_decoder_shows_them(raw: bytes, cuts: list[int]) -> None:
    assert "".join(_pieces(raw, cuts)) == raw.decode("utf-8", "replace")


def _find(text: str, cuts: list[int], stops: tuple[str, ...], *, include: bool = False) -> tuple[str, bool]:
    finder = StopFinder(stops, include=include)
    shown, start = "", 0
    for cut in [*sorted(cuts), len(text)]:
        piece, start = text[start : max(start, cut)], max(start, cut)
        out, found = finder.push(piece)
        shown += out
        if found:
            return shown, True
    return shown + finder.end(), False


_ALPHABET = st.text(alphabet="ab", max_size=30)


@given(
    text=_ALPHABET,
    cuts=st.lists(st.integers(0, 30), max_size=15),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3).map(tuple),
)
def test_an_answer_ends_at_its_first_stop_text_wherever_it_is_cut(
    text: str, cuts: list[int], stops: tuple[str, ...]
) -> None:
    shown, found = _find(text, cuts, stops)
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    assert found is (first is not None)
    if first is None:
        assert shown == text
    else:
        # Cut text may be found to hold a later-ending stop only after an earlier-ending one: never before `first`.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_nothing_is_held_back_longer_than_it_may_become_a_stop_text() -> None:
    finder = StopFinder(("Paris",))
    assert [finder.push(piece) for piece in ("The P", "ar", "k. Pa", "ri", "s!")] == [
        ("The ", False),
        ("", False),
        ("Park. ", False),
        ("", False),
        ("", True),
    ]


def test_a_stop_text_may_be_part_of_the_answer() -> None:
    assert _find("one two three", [5], ("two",), include=True) == ("one two", True)


@pytest.mark.parametrize("text", ["Grüße 😀 日本", "tab\tnew\nline", "<|im_start|>user"])
def test_a_byte_level_vocabulary_gives_back_the_bytes_of_a_text(tmp_path: Path, text: str) -> None:
    vocabulary = Vocabulary(str(write_model(tmp_path)))
    tokens = vocabulary.encode_now(text, special=False)
    assert b"".join(map(vocabulary.token_bytes, tokens)).decode() == text
    assert vocabulary.decode(tokens, skip_special=False) == text
    shown = b"".join(map(vocabulary.plain_bytes, tokens)).decode()
    assert shown == text.replace("<|im_start|>", "")
    vocabulary.close()


def test_far_too_long_texts_are_known_without_encoding_them_all(tmp_path: Path) -> None:
    vocabulary = Vocabulary(str(write_model(tmp_path)))
    assert vocabulary._exceeds("x" * 1000, 900)
    assert not vocabulary._exceeds("x" * 1000, 1000)
    parts: list[str] = []

    class Counting:
        def encode(self, text: str, **_: object) -> object:
            parts.append(text)
            return inner.encode(text, add_special_tokens=False)

    inner, vocabulary._tokenizer = vocabulary._tokenizer, Counting()
    assert vocabulary._exceeds("x" * 10_000_000, 1000)
    assert len(parts) == 1
    vocabulary.close()

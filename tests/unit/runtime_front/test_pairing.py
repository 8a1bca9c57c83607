"""Two texts become the tokens that transformers makes of them, whole and cut."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from llmos_operator.runtime.pairing import Pair, added, encode_cut, encode_pairs, longest_first
from tests.support.pairs import WORDS, tokenizer

RANDOM = random.Random(11)
TEXTS = [" ".join(RANDOM.choices(WORDS, k=length)) for length in (1, 3, 9, 14, 2, 30)]
PAIRS = [(first, second) for first in TEXTS for second in (*TEXTS, "")]


@pytest.mark.parametrize("style", ["bert", "roberta"])
@pytest.mark.parametrize("most", [None, 5, 6, 9, 16, 17, 40, 100])
def test_pairs_are_cut_as_transformers_cuts_them(style: str, most: int | None) -> None:
    made = tokenizer(style)
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer(style))
    cut = {} if most is None else {"truncation": "longest_first", "max_length": most}
    for (first, second), found in zip(PAIRS, encode_pairs(made, PAIRS, most, None), strict=True):
        expected = reference([first], [second], return_token_type_ids=True, **cut)
        (types,) = expected["token_type_ids"]
        assert found.tokens == tuple(expected["input_ids"][0])
        assert [0] * found.second_from + [1] * (len(types) - found.second_from) == types
        assert most is None or len(found.tokens) <= most


def test_a_second_text_may_have_a_limit_of_its_own() -> None:
    made = tokenizer("bert")
    (found,) = encode_pairs(made, [("paris is", "rome is the capital")], None, 2)
    assert found == encode_pairs(made, [("paris is", "rome is")], None, None)[0]
    assert found == Pair((2, 5, 6, 3, 14, 6, 3), 4)


def test_texts_are_cut_with_what_is_added_to_them() -> None:
    made = tokenizer("bert")
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer("bert"))
    for most in (3, 5, 12, 100):
        expected = reference(TEXTS, truncation=True, max_length=most)["input_ids"]
        assert encode_cut(made, TEXTS, most, None) == [tuple(one) for one in expected]
    assert [len(one) for one in encode_cut(made, TEXTS, 9, 4)] == [3, 5, 6, 6, 4, 6]
    assert (added(made, pair=False), added(made, pair=True)) == (2, 3)


@pytest.mark.parametrize(
    ("first", "second", "room", "kept"),
    [(3, 20, 10, (3, 7)), (20, 3, 10, (7, 3)), (20, 30, 11, (5, 6)), (30, 20, 11, (6, 5)), (2, 2, 9, (2, 7))],
)
def test_the_longer_text_is_cut_first(first: int, second: int, room: int, kept: tuple[int, int]) -> None:
    assert longest_first(first, second, room) == kept

"""Prompts that begin alike, and the replicas that had them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.gateway.affinity import HOLDERS, LENGTHS, LONG, PARTS, TOKENS, Affinity

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORTEST = LENGTHS[0]


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text} for text in texts], **fields}


def alike(one: Any, other: Any, affinity: Affinity | None = None) -> int:
    """Return how many beginnings two requests have in common."""
    affinity = affinity or Affinity()
    return len(set(affinity.beginnings(one, "t")) & set(affinity.beginnings(other, "t")))


def test_a_conversation_that_goes_on_begins_like_it_did() -> None:
    begun = chat("a" * 3000)
    assert alike(begun, chat("a" * 3000, "b" * 500)) == len(Affinity().beginnings(begun))
    assert alike(begun, chat("b" * 3000)) == 0


def test_a_shared_system_prompt_is_a_shorter_beginning_in_common() -> None:
    one, other = chat("s" * 1100, "x" * 9000), chat("s" * 1100, "y" * 9000)
    assert alike(one, other) == len([length for length in LENGTHS if length <= 1100])


def test_the_longest_beginning_comes_first() -> None:
    affinity = Affinity()
    long, short = affinity.beginnings(chat("a" * 5000)), affinity.beginnings(chat("a" * 600))
    assert long[-len(short) :] == short
    assert len(long) > len(short) == 1


def test_beyond_the_longest_beginning_nothing_tells_prompts_apart() -> None:
    assert alike(chat("a" * 70_000), chat("a" * 90_000)) == len(LENGTHS)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        chat("hello"),
        {"messages": "text" * 500},
        {"messages": [1, None, {"role": 3, "content": {"text": "x" * 900}}]},
        {"prompt": []},
        {"input": "a" * 900},
        chat(*[""] * 40),
    ],
)
def test_short_malformed_and_other_requests_have_no_beginnings(document: Any) -> None:
    assert Affinity().beginnings(document) == ()


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "a" * 600},
        {"prompt": ["a" * 600, "other"]},
        {"prompt": list(range(600))},
        {"prompt": [list(range(600))]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 600}]}]},
        chat("hello", tools=[{"type": "function", "function": {"name": "f", "description": "d" * 600}}]),
        chat("\ud800" * 600),
    ],
)
def test_all_forms_of_prompts_have_beginnings(document: Any) -> None:
    affinity = Affinity()
    assert len(affinity.beginnings(document)) >= 1
    assert affinity.beginnings(document) == affinity.beginnings(document)


def test_what_follows_a_picture_is_not_compared() -> None:
    def seen(url: str, text: str) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        return {"messages": [{"role": "system", "content": "s" * 600}, {"role": "user", "content": content}]}

    assert alike(seen("a", "x" * 3000), seen("b", "y" * 3000)) == 1
    assert len(Affinity().beginnings(seen("a", "x" * 3000))) == 1


def test_tenants_salts_and_processes_have_no_beginning_in_common() -> None:
    affinity, prompt = Affinity(), chat("a" * 600)
    assert affinity.beginnings(prompt, "a", "b") != affinity.beginnings(prompt, "ab", "")
    assert alike(prompt, {**prompt, "cache_salt": "x"}, affinity) == 0
    assert affinity.beginnings(prompt) != Affinity().beginnings(prompt)


def test_no_text_is_kept() -> None:
    affinity = Affinity()
    affinity.learn(affinity.beginnings(chat("secret" * 200)), "r1")
    assert all(len(one) == 16 and b"secret" not in one for one in affinity._holders)


def test_replicas_are_remembered_the_last_first_and_not_without_end() -> None:
    affinity = Affinity(entries=3)
    for number in range(HOLDERS + 2):
        affinity.learn([b"a"], f"r{number}")
    affinity.learn([b"a"], "r5")
    (holders,) = affinity.holders([b"x", b"a"])
    assert holders.uids[:2] == ("r5", f"r{HOLDERS + 1}")
    assert len(holders.uids) == HOLDERS
    for other in (b"b", b"c", b"a", b"d"):
        affinity.learn([other], "r1")
    assert [bool(affinity.holders([one])) for one in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_what_a_replica_did_not_take_it_does_not_hold() -> None:
    affinity = Affinity()
    affinity.learn([b"a", b"b"], "r1")
    affinity.learn([b"b"], "r2")
    affinity.unlearn([b"a", b"b", b"c"], "r1")
    assert [one.uids for one in affinity.holders([b"a", b"b"])] == [("r2",)]


def test_a_long_beginning_is_worth_a_wait_until_many_have_it() -> None:
    affinity = Affinity()
    beginnings = affinity.beginnings(chat("a" * LONG))
    affinity.learn(beginnings, "r0")
    assert [one.long for one in affinity.holders(beginnings)] == [True] + [False] * (len(beginnings) - 1)
    for number in range(1, HOLDERS):
        affinity.learn(beginnings, f"r{number}")
    assert not any(one.long for one in affinity.holders(beginnings))


class _Counting(list[Any]):
    """A list that counts how much of it is looked at."""

    looked = 0

    def __iter__(self) -> Iterator[Any]:
        for one in super().__iter__():
            self.looked += 1
            yield one


@pytest.mark.parametrize("item", [None, {"role": "", "content": ""}])
def test_of_a_prompt_without_text_only_so_much_is_looked_at(item: Any) -> None:
    messages = _Counting([item] * 20_000)
    Affinity().beginnings({"messages": messages})
    assert 0 < messages.looked <= PARTS
    parts = _Counting([{"type": "text", "text": ""}] * 20_000)
    Affinity().beginnings({"messages": [{"role": "user", "content": parts}]})
    assert 0 < parts.looked <= PARTS


def test_of_a_prompt_of_tokens_only_so_many_are_looked_at() -> None:
    assert alike({"prompt": [7] * TOKENS + [8] * 9}, {"prompt": [7] * TOKENS + [9] * 9}) == len(
        Affinity().beginnings({"prompt": [7] * TOKENS})
    )
    assert Affinity().beginnings({"prompt": [[None] * TOKENS + [7] * 9000]}) == ()

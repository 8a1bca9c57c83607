"""Tokens of an answer, however it is cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.gateway.usage import TAIL_BYTES, Meter, Usage

_JSON = json.dumps(
    {"choices": [{"text": 'a "usage" of {words}'}], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
).encode()
_EVENTS = [json.dumps({"choices": [{"text": "x"}]})] * 5
_USAGE_EVENT = json.dumps({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}})


def _stream(events: list[str]) -> bytes:
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


def _measure(raw: bytes, *, stream: bool, step: int) -> Usage:
    meter = Meter(stream=stream)
    for start in range(0, len(raw), step):
        meter.feed(raw[start : start + step])
    return meter.usage()


@given(step=st.integers(1, 400))
def test_a_json_answer_tells_its_usage_whatever_the_pieces(step: int) -> None:
    assert _measure(_JSON, stream=False, step=step) == Usage(11, 7, exact=True)


@given(step=st.integers(1, 400))
def test_a_stream_tells_its_usage_in_the_last_event(step: int) -> None:
    assert _measure(_stream([*_EVENTS, _USAGE_EVENT]), stream=True, step=step) == Usage(4, 5, exact=True)


def test_a_stream_without_usage_is_counted_by_events() -> None:
    assert _measure(_stream(_EVENTS), stream=True, step=10**6) == Usage(0, 5, exact=False)


def test_usage_behind_megabytes_of_vectors_is_found() -> None:
    body = {"data": [{"embedding": [0.125] * 100_000}], "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    meter = Meter(stream=False)
    raw = json.dumps(body).encode()
    assert len(raw) > 10 * TAIL_BYTES
    for start in range(0, len(raw), 65536):
        meter.feed(raw[start : start + 65536])
    assert meter.usage() == Usage(9, 0, exact=True)
    assert len(meter._tail) <= TAIL_BYTES


@pytest.mark.parametrize(
    "raw", [b"", b"not json", b'{"usage": null}', b'{"usage": {"prompt_tokens": "many"}}', b'{"usage"']
)
def test_an_answer_without_usage_costs_nothing(raw: bytes) -> None:
    assert _measure(raw, stream=False, step=7) == Usage()

"""What the gateway reads of a request body."""

from __future__ import annotations

import json

import pytest

from llmos_operator.gateway.answers import Refused
from llmos_operator.gateway.body import deeper_than, read_json, read_multipart, with_model


def _refusal(raw: bytes, max_depth: int = 64) -> Refused:
    with pytest.raises(Refused) as caught:
        read_json(raw, max_depth=max_depth)
    return caught.value


def test_model_and_stream_are_read() -> None:
    asked = read_json(
        b'{"model": "m", "stream": true, "stream_options": {"include_usage": true}}', max_depth=8
    )
    assert (asked.model, asked.stream, asked.include_usage) == ("m", True, True)


@pytest.mark.parametrize(
    ("raw", "code", "param", "words"),
    [
        (b"", "invalid_json", None, "not valid JSON"),
        (b"{", "invalid_json", None, "not valid JSON"),
        (b"\xff\xfe", "invalid_json", None, "not valid JSON"),
        (b'{"model": "m"', "invalid_json", None, "line 1 column"),
        (b"[]", "invalid_json", None, "must be a JSON object, not an array"),
        (b"null", "invalid_json", None, "not null"),
        (b'"m"', "invalid_json", None, "not a string"),
        (b"1" * 5000, "invalid_json", None, "not valid JSON"),
        (b"{}", "missing_required_parameter", "model", "'model'"),
        (b'{"model": null}', "invalid_type", "model", "got null"),
        (b'{"model": ""}', "invalid_type", "model", "got an empty string"),
        (b'{"model": 7}', "invalid_type", "model", "got a number"),
        (b'{"model": true}', "invalid_type", "model", "got a boolean"),
        (b'{"model": ["m"]}', "invalid_type", "model", "got an array"),
        (b'{"model": "' + b"m" * 600 + b'"}', "invalid_value", "model", "600 characters"),
    ],
)
def test_a_bad_body_is_refused_with_the_field_and_the_fault(
    raw: bytes, code: str, param: str | None, words: str
) -> None:
    refusal = _refusal(raw)
    assert (refusal.status, refusal.code, refusal.param) == (400, code, param)
    assert words in refusal.message


@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_deep_nesting_is_refused_whatever_its_depth(depth: int) -> None:
    raw = b'{"model": "m", "x": ' + b"[" * depth + b"]" * depth + b"}"
    assert "nests more than 64 levels" in _refusal(raw).message


def test_the_allowed_depth_passes_and_one_more_does_not() -> None:
    raw = b'{"model": "m", "x": [[[]]]}'
    assert read_json(raw, max_depth=4).model == "m"
    assert "more than 3" in _refusal(raw, max_depth=3).message


def test_brackets_in_text_are_not_depth() -> None:
    raw = json.dumps({"model": "m", "prompt": "[" * 5000}).encode()
    assert read_json(raw, max_depth=4).model == "m"


def test_depth_is_measured_at_the_deepest_place() -> None:
    assert not deeper_than({"a": 1, "b": [1, {"c": 2}]}, 3)
    assert deeper_than({"a": 1, "b": [1, {"c": 2}]}, 2)
    assert not deeper_than("text", 0)


def test_a_namespaced_name_is_rewritten_and_nothing_else() -> None:
    raw = json.dumps({"model": "team/chat", "prompt": "häß\u0000 😀", "n": 1.5, "big": 2**70}).encode()
    rewritten = json.loads(with_model(read_json(raw, max_depth=8), "chat"))
    assert rewritten == {**json.loads(raw), "model": "chat"}


def test_half_a_surrogate_pair_survives_the_rewriting() -> None:
    raw = b'{"model": "team/chat", "prompt": "\\ud83d"}'
    assert json.loads(with_model(read_json(raw, max_depth=8), "chat"))["prompt"] == "\ud83d"


_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="model.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b'\x00\xffname="model"\x01\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nteam/whisper\r\n--b--\r\n'
)


def test_the_model_of_a_form_is_found_and_rewritten() -> None:
    asked = read_multipart(_FORM)
    assert asked.model == "team/whisper"
    assert with_model(asked, "whisper") == _FORM.replace(b"team/whisper", b"whisper")


def test_a_form_without_a_model_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        read_multipart(_FORM.replace(b'name="model"\r\n', b'name="other"\r\n'))
    assert (caught.value.status, caught.value.param) == (400, "model")

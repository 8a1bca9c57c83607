"""Forms with files: what clients send, and what nobody should."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.speech.fields import read_request
from llmos_operator.runtime.speech.multipart import MAX_PARTS, BadForm, read_form

KIND = "multipart/form-data; boundary=XyZ"


def part(name: str, value: bytes, file_name: str | None = None) -> bytes:
    file = f'; filename="{file_name}"' if file_name is not None else ""
    return f'--XyZ\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XyZ--\r\n"


def test_fields_and_files_are_told_apart() -> None:
    data = bytes(range(256)) + b"\r\n--Xy\r\n"
    form = read_form(
        KIND, body(part("a", b"1"), part("f", data, 'na"me.wav'.replace('"', '\\"')), part("a", b"2"))
    )
    assert form.fields == {"a": ["1", "2"]}
    assert form.files["f"].data == data
    assert form.files["f"].name == 'na"me.wav'


@pytest.mark.parametrize(
    "kind", ['multipart/form-data; boundary="XyZ"', "Multipart/Form-Data; charset=x; boundary=XyZ"]
)
def test_a_boundary_may_be_quoted(kind: str) -> None:
    assert read_form(kind, body(part("a", b"1"))).fields == {"a": ["1"]}


@pytest.mark.parametrize(
    ("kind", "raw", "told"),
    [
        ("application/json", b"{}", "must be multipart"),
        ("multipart/form-data", b"", "must be multipart"),
        (KIND, b"", "cut off"),
        (KIND, part("a", b"1"), "cut off"),
        (KIND, b"--XyZ\r\n\r\n--XyZ--", "no headers"),
        (KIND, b"--XyZ\r\nX-Other: 1\r\n\r\n1\r\n--XyZ--", "has no name"),
        (KIND, body(*[part("a", b"1")] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
        (KIND, body(part("a", b"x" * 70_000)), "'a' has 70000 bytes"),
        (KIND, body(part("a", b"\xff")), "'a' is no UTF-8"),
        (KIND, body(part("f", b"1", "x"), part("f", b"2", "y")), "'f' is there twice"),
        (
            KIND,
            b'--XyZ\r\nContent-Disposition: form-data; name="a"; x="'
            + b"y" * 5000
            + b'"\r\n\r\n1\r\n--XyZ--',
            "no headers",
        ),
    ],
)
def test_what_is_no_form_says_why(kind: str, raw: bytes, told: str) -> None:
    with pytest.raises(BadForm, match=told):
        read_form(kind, raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_form_or_refused(raw: bytes) -> None:
    for given_body in (raw, b"--XyZ" + raw, body(part("a", b"1")) + raw, part("f", raw, "n") + b"--XyZ--"):
        with suppress(BadForm):  # anything else would be a 500
            read_form(KIND, given_body)


@given(st.binary(max_size=300), st.text(alphabet="abcé. ", max_size=20))
def test_what_was_sent_is_what_is_read(data: bytes, value: str) -> None:
    if b"--XyZ" in data:
        return
    form = read_form(KIND, body(part("file", data, "s.wav"), part("prompt", value.encode())))
    assert (form.files["file"].data, form.fields["prompt"]) == (data, [value])


SOUND = part("file", b"RIFF", "a.wav")
MODEL = part("model", b"m")


def test_a_request_has_openais_fields() -> None:
    lists = part("timestamp_granularities[]", b"segment")
    request, upload = read_request(
        KIND,
        body(
            SOUND,
            MODEL,
            lists,
            part("temperature", b"0.5"),
            part("response_format", b"verbose_json"),
            part("x", b"1"),
        ),
    )
    assert (request.model, request.temperature, request.times) == ("m", 0.5, True)
    assert request.timestamp_granularities == ["segment"]
    assert upload.data == b"RIFF"


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([SOUND], "model", "missing_required_parameter"),
        ([MODEL], "file", "missing_required_parameter"),
        ([MODEL, part("file", b"RIFF")], "file", "missing_required_parameter"),
        ([SOUND, MODEL, MODEL], "model", "invalid_form"),
        ([SOUND, MODEL, part("temperature", b"hot")], "temperature", "invalid_type"),
        ([SOUND, MODEL, part("temperature", b"3")], "temperature", "invalid_value"),
        ([SOUND, MODEL, part("response_format", b"xml")], "response_format", "invalid_value"),
        ([SOUND, MODEL, part("stream", b"maybe")], "stream", "invalid_type"),
        ([SOUND, MODEL, part("stream", b"true"), part("response_format", b"srt")], "stream", "invalid_value"),
        ([SOUND, MODEL, part("include[]", b"logprobs")], "include", "unsupported_parameter"),
        (
            [
                SOUND,
                MODEL,
                part("response_format", b"verbose_json"),
                part("timestamp_granularities[]", b"word"),
            ],
            "timestamp_granularities",
            "unsupported_value",
        ),
        (
            [SOUND, MODEL, part("timestamp_granularities[]", b"segment")],
            "timestamp_granularities",
            "invalid_value",
        ),
    ],
)
def test_wrong_fields_are_named(parts: list[bytes], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_request(KIND, body(*parts))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)

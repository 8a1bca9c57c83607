"""Protobuf read by hand: what is there is found, what is not asked for is skipped, nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.telemetry.kubelet import wire
from llmos_operator.telemetry.kubelet.pod_resources import Holder, holders_of


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    """Return a field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.binary(max_size=300)), max_size=8), st.data())
def test_a_field_is_found_among_any_others(fields: list[tuple[int, bytes]], data: st.DataObject) -> None:
    message = b""
    for number, content in fields:
        message += data.draw(
            st.sampled_from(
                [b"", varint(7 << 3) + varint((1 << 64) - 1), b"\x39" + bytes(8), b"\x3d" + bytes(4)]
            )
        )
        message += field(number, content)
    for wanted in {number for number, _ in fields} | {7}:
        expected = [content for number, content in fields if number == wanted]
        assert list(wire.parts(message, wanted)) == expected


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b"\x0a\x05abc", "field 1 ends 2 bytes after the message"),
        (b"\x0a", "a number does not end"),
        (b"\x80" * 11, "a number does not end"),
        (b"\x0b", "wire type 3 of field 1"),
        (b"\x09\x00", "field 1 ends 7 bytes after the message"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes, what: str) -> None:
    with pytest.raises(wire.Malformed, match=what):
        list(wire.parts(message, 1))


@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_holders_or_a_refusal(message: bytes) -> None:
    try:
        holders_of(message)
    except wire.Malformed:
        return


def test_a_pod_with_two_containers_on_one_device_holds_it_with_both() -> None:
    device = field(1, b"nvidia.com/gpu") + field(2, b"GPU-1")
    one, two = (field(1, name) + field(2, device) for name in (b"a", b"b"))
    answer = field(1, field(1, b"p") + field(2, b"ns") + field(3, two) + field(3, one))
    assert holders_of(answer) == {
        "GPU-1": (Holder("ns/p", "a", "nvidia.com/gpu"), Holder("ns/p", "b", "nvidia.com/gpu"))
    }

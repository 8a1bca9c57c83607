"""Protobuf messages, read field by field: no generated code and no protobuf runtime for four small messages.

Source: https://protobuf.dev/programming-guides/encoding/. Fields that are not asked for are skipped, as the format
intends, so a newer kubelet may send more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10  # the most a 64-bit number takes


class Malformed(Permanent):
    """The bytes are no message."""

    def __init__(self, what: str) -> None:
        super().__init__(f"not a protobuf message: {what}", reason="MalformedMessage")


def parts(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the contents of field ``number`` where it holds bytes, text or a message, in their order.

    Raises :class:`Malformed` while being read.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in {_FIXED64, _FIXED32}:
            length = 8 if kind == _FIXED64 else 4
        else:
            raise Malformed(f"wire type {kind} of field {field}")
        if at + length > end:
            raise Malformed(f"field {field} ends {at + length - end} bytes after the message")
        if kind == _BYTES and field == number:
            yield message[at : at + length]
        at += length


def text(message: bytes, number: int) -> str:
    """Return the text of field ``number``, the last where it is repeated, "" where it is not there."""
    found = b""
    for found in parts(message, number):  # noqa: B007 - the last one counts
        pass
    return found.decode(errors="replace")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if not byte & 0x80:
            return value, at + shift + 1
    raise Malformed("a number does not end")

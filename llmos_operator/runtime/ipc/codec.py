"""Frames: four bytes of big-endian length, then msgpack of ``[tag, fields…]``.

Fields are positional in the order of the dataclass; a missing tail takes the defaults and a longer one is cut off, so
that the two processes may differ by an appended field. A frame beyond MAX_FRAME_BYTES is a broken peer, not a message.
"""

from __future__ import annotations

import dataclasses
import struct
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgpack

from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc import messages, orders

if typing.TYPE_CHECKING:
    from llmos_operator.runtime.ipc.messages import Message
    from llmos_operator.runtime.ipc.orders import RankMessage

MAX_FRAME_BYTES = 256 << 20
HEADER = struct.Struct(">I")

_CLASSES: tuple[type[Any], ...] = (
    messages.Load,
    messages.Submit,
    messages.Cancel,
    messages.Embed,
    messages.SetBudget,
    messages.Sleep,
    messages.Wake,
    messages.Unload,
    messages.Shutdown,
    messages.Progress,
    messages.Ready,
    messages.StepOutput,
    messages.EmbedResult,
    messages.Stats,
    messages.Failed,
    messages.LoadAdapter,
    messages.UnloadAdapter,
    messages.AdapterResult,
    orders.Build,
    orders.Tune,
    orders.Step,
    orders.Look,
    orders.Columns,
    orders.Release,
    orders.Drop,
    orders.End,
    orders.Built,
    orders.Refused,
    orders.Beat,
    orders.Hello,
    orders.Fetch,
)
_TAGS = {cls: tag for tag, cls in enumerate(_CLASSES)}
_NAMES: dict[type[Any], tuple[str, ...]] = {
    cls: tuple(field.name for field in dataclasses.fields(cls))
    for cls in (*vars(messages).values(), *vars(orders).values())
    if isinstance(cls, type) and dataclasses.is_dataclass(cls)
}

_Decoder = Callable[[Any], Any]


def encode(message: Message | RankMessage) -> bytes:
    """Return the whole frame of ``message``, header included."""
    body: bytes = msgpack.packb([_TAGS[type(message)], *_fields(message)])
    return HEADER.pack(len(body)) + body


def decode(body: bytes | memoryview) -> Message:
    """Return the message of one frame's body. Raises Permanent(reason=Unsupported) on anything else."""
    try:
        tag, *values = msgpack.unpackb(body, use_list=False)
        return typing.cast("Message", _DECODERS[tag](values))
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise Permanent(f"not a frame of this protocol: {error}", reason="Unsupported") from error


class FrameReader:
    """Cuts a byte stream into frame bodies; feed it what arrives, in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that ``data`` completes. Raises Permanent on a frame that is too long or not ours."""
        self._buffer += data
        complete: list[Message] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise Permanent(f"frame of {length} bytes exceeds {MAX_FRAME_BYTES}", reason="Unsupported")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            complete.append(decode(bytes(self._buffer[start + HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return complete


def _fields(value: Any) -> list[Any]:
    return [_plain(getattr(value, name)) for name in _NAMES[type(value)]]


def _plain(value: Any) -> Any:
    """Return ``value`` with dataclasses turned into lists, at any depth."""
    if type(value) in (int, str, float, bool, bytes, type(None)):
        return value
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, tuple):
        if value and type(value[0]) is int:
            return value
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a {type(value).__name__} cannot cross the engine's socket")


def _class_decoder(cls: type[Any]) -> _Decoder:
    hints = typing.get_type_hints(cls)
    decoders = [_decoder(hints[name]) for name in _NAMES[cls]]
    if all(decoder is _same for decoder in decoders):
        return lambda values: cls(*values[: len(decoders)])
    return lambda values: cls(*[decode(value) for decode, value in zip(decoders, values, strict=False)])


def _decoder(hint: Any) -> _Decoder:
    """Return the function that turns a msgpack value into one of type ``hint``."""
    if dataclasses.is_dataclass(hint):
        return _class_decoder(typing.cast("Any", hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = _decoder(next(arg for arg in args if arg is not type(None)))
        return _same if inner is _same else lambda value: None if value is None else inner(value)
    if origin is tuple and args[-1] is Ellipsis:
        inner = _decoder(args[0])
        return _same if inner is _same else lambda value: tuple(inner(item) for item in value)
    return _same


def _same(value: Any) -> Any:
    return value


_DECODERS = [_class_decoder(cls) for cls in _CLASSES]

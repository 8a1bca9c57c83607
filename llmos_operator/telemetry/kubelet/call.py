"""One gRPC call with one answer, over a Unix socket: HTTP/2 by h2, the five bytes around a message by hand.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. A connection a call: a call every few seconds
needs no connection that has to be watched, and a kubelet that was restarted is simply the next one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from h2.events import Event

MAX_ANSWER: Final = 16 << 20  # bytes; a node's 110 pods are some 20 KB
CALL_SECONDS: Final = 5.0
_PREFIX = 5  # a byte that says whether it is compressed, four that say how long it is
_READ = 1 << 16


class CallFailed(Retryable):
    """A call brought no answer. ``status`` is gRPC's, -1 where none came."""

    def __init__(self, message: str, status: int = -1) -> None:
        super().__init__(message)
        self.status = status


async def unary(socket: str, method: str, request: bytes = b"", *, seconds: float = CALL_SECONDS) -> bytes:
    """Call ``method`` ("/package.Service/Method") of the server that listens on ``socket``; return the answer's message.

    Raises :class:`CallFailed`.
    """
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                return await _exchange(reader, writer, method, request)
            finally:
                writer.close()
    except TimeoutError:
        raise CallFailed(f"{method}: no answer within {seconds:g} s") from None
    except (OSError, H2Error) as error:
        raise CallFailed(f"{method}: {type(error).__name__}: {error}") from error


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, request: bytes
) -> bytes:
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, _headers(method))
    connection.send_data(stream, b"\0" + len(request).to_bytes(4, "big") + request, end_stream=True)
    answer = _Answer(method)
    while not answer.complete:
        writer.write(connection.data_to_send())
        await writer.drain()
        received = await reader.read(_READ)
        if not received:
            raise CallFailed(f"{method}: the connection was closed before an answer came")
        for event in connection.receive_data(received):
            answer.take(event)
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, stream)
    return answer.message()


def _headers(method: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "llmos-agent"),
    ]


class _Answer:
    """What came on the stream so far."""

    def __init__(self, method: str) -> None:
        self.complete = False
        self._method = method
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def take(self, event: Event) -> None:
        """Fold an event of the connection. Raises :class:`CallFailed` where the answer can no longer come."""
        if isinstance(event, ResponseReceived | TrailersReceived):
            self._headers |= {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, DataReceived):
            self._body += event.data
            if len(self._body) > MAX_ANSWER:
                raise CallFailed(f"{self._method}: the answer has more than {MAX_ANSWER} bytes")
        elif isinstance(event, StreamEnded):
            self.complete = True
        elif isinstance(event, StreamReset | ConnectionTerminated):
            raise CallFailed(f"{self._method}: ended by the server (HTTP/2 error {event.error_code})")

    def message(self) -> bytes:
        """Return the one message of the answer."""
        status = self._headers.get("grpc-status", "")
        if status != "0":
            told = (
                self._headers.get("grpc-message") or f"HTTP {self._headers.get(':status', 'without status')}"
            )
            number = int(status) if status.isdigit() else -1
            raise CallFailed(f"{self._method}: gRPC status {status or 'absent'}: {told}", number)
        length = int.from_bytes(self._body[1:_PREFIX], "big")
        if len(self._body) != _PREFIX + length or self._body[0]:
            raise CallFailed(f"{self._method}: the answer is not one plain message")
        return bytes(self._body[_PREFIX:])

"""Puts requests to the serving application of this very process: the same path as a client's, without a socket.

So a line of a batch is validated, planned, counted and answered exactly as the same request to a served model. HTTP over
the loopback would do the same with more parts that can fail.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: HTTP status, JSON body, and the seconds after which to try again, where it says so."""

    status: int
    body: Any
    retry_after: float | None = None


async def post(app: ASGIApp, path: str, body: dict[str, Any], *, key: str, request_id: str) -> Reply:
    """Return the application's answer to a POST. Cancelling it is the client going away."""
    content = json.dumps(body, separators=(",", ":")).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"authorization", f"Bearer {key}".encode()),
        (b"x-request-id", request_id.encode()),
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }
    call = _Call(content)
    await app(scope, call.receive, call.send)
    return call.reply()


class _Call:
    """The client's side of one request."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()

    async def receive(self) -> Message:
        if self._content is not None:
            content, self._content = self._content, None
            return {"type": "http.request", "body": content, "more_body": False}
        await (
            asyncio.Event().wait()
        )  # the client stays: whoever waits for its leaving is cancelled at the end
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = dict(message["headers"])
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")

    def reply(self) -> Reply:
        after = self._headers.get(b"retry-after", b"")
        return Reply(
            self._status,
            json.loads(bytes(self._body) or b"null"),
            float(after) if after.isdigit() else None,
        )

"""What holds for every request of the serving port, around the application: limits, keys, draining, counting.

Plain ASGI, because a middleware of the framework would cost more than the work of a short request.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.observability import tracing
from llmos_operator.observability.logging import logger
from llmos_operator.runtime import spans
from llmos_operator.runtime.adapters_api import GUARDED
from llmos_operator.runtime.answers import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from llmos_operator.observability.tracing import Tracer
    from llmos_operator.runtime.auth import Gate
    from llmos_operator.runtime.drain import Drain

log = logger(__name__)

# Open without a key: probes and Prometheus cannot have one.
_OPEN = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics", "/version"})
_COUNTED = re.compile(r"/(v1/)?[a-z_/]{1,40}")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID = b"x-request-id"


class Shell:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        guard: Gate,
        drain: Drain,
        max_body: Callable[[str], int],
        requests: Counter,
        known: Callable[[str], bool],
        tracer: Tracer = tracing.OFF,
    ) -> None:
        """``guard`` is before the routes that change what is served; ``max_body`` gives the bytes a path takes.

        ``known`` says whether a path exists: others share one label in the metrics.
        """
        self._app = app
        self._gate = gate
        self._guard = guard
        self._drain = drain
        self._max_body = max_body
        self._requests = requests
        self._known = known
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(_REQUEST_ID, b"")
        call = _Call(send, given if _SANE_ID.fullmatch(given) else b"", closing=lambda: self._drain.declining)
        if self._tracer.on and scope["method"] == "POST":
            await self._traced(scope, receive, call, headers)
        else:
            await self._serve(scope, receive, call, headers)

    async def _traced(self, scope: Scope, receive: Receive, call: _Call, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        span = spans.started(self._tracer, headers, path, known=self._known(path))
        try:
            with tracing.entered(span):
                await self._serve(scope, receive, call, headers)
        finally:
            spans.ended(span, call.status)

    async def _serve(self, scope: Scope, receive: Receive, call: _Call, headers: dict[bytes, bytes]) -> None:
        works = scope["method"] == "POST"
        entered = False
        try:
            self._admit(scope["path"], headers)
            if works:
                self._drain.enter()
                entered = True
            await self._app(scope, self._bounded(receive, self._max_body(scope["path"])), call.send)
        except ApiError as error:
            if call.status:
                raise
            await call.fail(error, close=error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        finally:
            if entered:
                self._drain.leave()
            endpoint = scope["path"] if self._known(scope["path"]) else "other"
            self._requests.labels(endpoint, str(call.status or 499)).inc()

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        if path not in _OPEN:
            gate = self._guard if path in GUARDED else self._gate
            gate.check(headers.get(b"authorization", b"").decode("latin-1"))
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_body(path):
            raise _too_large(self._max_body(path))

    def _bounded(self, receive: Receive, most: int) -> Receive:
        """Return ``receive`` with the body's size counted: a chunked one declares none."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > most:
                    raise _too_large(most)
            return message

        return counted


def _too_large(most: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "request_too_large",
        f"The request body is larger than the {most} bytes this model accepts.",
    )


class _Call:
    """One request's way back: remembers the status, adds headers."""

    def __init__(self, send: Send, request_id: bytes, closing: Callable[[], bool]) -> None:
        self._send = send
        self._request_id = request_id
        self._closing = closing
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(_REQUEST_ID, self._request_id)] if self._request_id else []
            if self._closing():
                extra.append((b"connection", b"close"))
            if extra:
                message = {**message, "headers": [*message["headers"], *extra]}
        await self._send(message)

    async def fail(self, error: ApiError, *, close: bool) -> None:
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
        if close and not self._closing():
            # The rest of the body is still on its way; nobody wants to read it.
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

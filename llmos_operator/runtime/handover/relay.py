"""The serving API before a vLLM: which routes there are, and a request on its way through.

Deny by default: what is not listed here is unknown, whatever vLLM serves. Keys, limits, draining and counting are the
shell's, as before our own engine; the body goes through as it came, and so does the answer.
"""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.answers import ApiError, unavailable
from llmos_operator.runtime.exchange import STALL_SECONDS, watching
from llmos_operator.runtime.handover.link import EngineLost, chunks
from llmos_operator.runtime.outputs import ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import aiohttp
    from starlette.types import Receive, Scope, Send

    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.drain import Drain
    from llmos_operator.runtime.handover.link import Link
    from llmos_operator.runtime.metrics import FrontMetrics

log = logger(__name__)

# Path -> (path at vLLM, part of spec.serving.apis; "": there where apis says nothing).
ROUTES: Final = {
    "/v1/chat/completions": ("/v1/chat/completions", "chat"),
    "/v1/responses": ("/v1/responses", "chat"),
    "/v1/messages": ("/v1/messages", "chat"),
    "/v1/completions": ("/v1/completions", "completions"),
    "/v1/embeddings": ("/v1/embeddings", "embeddings"),
    "/v1/audio/transcriptions": ("/v1/audio/transcriptions", ""),
    "/v1/audio/translations": ("/v1/audio/translations", ""),
    "/v1/rerank": ("/v1/rerank", "score"),
    "/v1/score": ("/v1/score", "score"),
    "/classify": ("/classify", ""),
    "/pooling": ("/pooling", ""),
    "/tokenize": ("/tokenize", "*"),
    "/detokenize": ("/detokenize", "*"),
    "/v1/tokenize": ("/tokenize", "*"),
    "/v1/detokenize": ("/detokenize", "*"),
}
_TO_ENGINE: Final = ("content-type", "accept", "x-request-id", "traceparent", "tracestate")
_TO_CLIENT: Final = ("content-type", "cache-control", "retry-after", "x-accel-buffering")
_EVENTS: Final = "text/event-stream"
_LARGEST_ANSWER: Final = 256 << 20


class Relayed(Response):
    """One request to vLLM and its answer, whole or as a stream."""

    def __init__(
        self,
        link: Link,
        admission: Admission,
        drain: Drain,
        metrics: FrontMetrics,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        lost: Callable[[], None],
    ) -> None:
        """``lost`` is told when vLLM could not be reached, or broke off."""
        super().__init__()
        self._lost = lost
        self._link = link
        self._admission = admission
        self._drain = drain
        self._metrics = metrics
        self._path = path
        self._request = {name: headers[name] for name in _TO_ENGINE if name in headers}
        self._content = body
        self._started = False
        self._cut: LlmosError | None = None
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Relay. A client that leaves closes the connection to vLLM, which ends its generation."""
        at_once = self._admission.waiting() == 0
        try:
            self._admission.enter(1)
        except ApiError as error:
            await self._fail(error, send)
            return
        began = time.monotonic()
        self._drain.track(self)
        work = self._work = asyncio.create_task(self._relay(send))
        try:
            async with watching(receive, self.interrupt):
                await asyncio.wait([work])
            if at_once and not work.cancelled() and work.exception() is None:
                self._admission.finished(time.monotonic() - began)  # one that waited says less of the others
            await self._conclude(work, send)
        finally:
            work.cancel()
            self._drain.forget(self)
            self._admission.leave(1)

    def interrupt(self, error: LlmosError) -> None:
        """End the request: its client has left, or the runtime ends."""
        if self._work is not None and not self._work.done():
            self._cut = error
            self._work.cancel()

    async def _relay(self, send: Send) -> None:
        answer = await self._link.open("POST", self._path, self._request, self._content)
        async with answer:
            if answer.content_type == _EVENTS:
                await self._stream(answer, send)
            else:
                await self._whole(answer, send)

    async def _stream(self, answer: aiohttp.ClientResponse, send: Send) -> None:
        async for chunk in chunks(answer):
            await self._start(answer, send)
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except TimeoutError:
                raise ClientGone("the client reads nothing") from None
        await self._start(answer, send)
        await send({"type": "http.response.body", "body": b""})

    async def _whole(self, answer: aiohttp.ClientResponse, send: Send) -> None:
        parts, size = [], 0
        async for chunk in chunks(answer):
            size += len(chunk)
            if size > _LARGEST_ANSWER:
                raise EngineLost("vLLM's answer is too large to be relayed", begun=True)
            parts.append(chunk)
        body = b"".join(parts)
        await self._start(answer, send, (b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.body", "body": body})

    async def _start(self, answer: aiohttp.ClientResponse, send: Send, *more: tuple[bytes, bytes]) -> None:
        if self._started:
            return
        self._started = True
        headers = [
            (name.encode(), answer.headers[name].encode("latin-1"))
            for name in _TO_CLIENT
            if name in answer.headers
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": [*headers, *more]})

    async def _conclude(self, work: asyncio.Task[None], send: Send) -> None:
        """Tell the client what went wrong, if anything did and it is still there."""
        error = self._cut if work.cancelled() else work.exception()
        if error is None:
            return
        if isinstance(error, ClientGone):
            self._metrics.disconnects.inc()
            return
        if isinstance(error, EngineLost):
            self._lost()
        if isinstance(error, EngineLost) and not error.begun:
            text = "The engine is not there; it is being started again."
            await self._fail(
                unavailable("engine_unavailable", text, retry_after=2.0, refused="loading"), send
            )
        elif isinstance(error, EngineLost):
            log.warning("vLLM broke off an answer", path=self._path, error=error)
            text = "The engine ended while it worked on this request."
            await self._fail(ApiError(HTTPStatus.BAD_GATEWAY, "engine_lost", text), send)
        elif isinstance(error, LlmosError):
            text = "This replica is shutting down; the answer was cut."
            await self._fail(ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "aborted", text), send)
        else:
            raise error

    async def _fail(self, error: ApiError, send: Send) -> None:
        if self._started:
            event = b"data: " + error.body() + b"\n\n"
            await send({"type": "http.response.body", "body": event})
            return
        found: dict[str, Any] = {"content-type": "application/json", **error.headers()}
        body = error.body()
        headers = [(name.lower().encode(), value.encode()) for name, value in found.items()]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

"""ASGI ends of a request: its body, bounded; its answer, whole or as a stream; and a client that leaves.

Nothing here knows what an answer says. Headers of a stream are sent with its first event, so that whatever goes wrong
before the first token still has a status of its own.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from llmos_operator.runtime.answering import Answer
from llmos_operator.runtime.answers import ApiError, from_validation
from llmos_operator.runtime.choices import Choice, Piece
from llmos_operator.runtime.outputs import ClientGone
from llmos_operator.runtime.rendering import DONE, Renderer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from llmos_operator.errors import LlmosError
    from llmos_operator.runtime.answering import Kitchen
    from llmos_operator.runtime.planning import Plan
    from llmos_operator.runtime.served import ServedModel

BODY_SECONDS = 30.0
STALL_SECONDS = 120.0  # a client that takes nothing for so long is gone
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


async def raw_body(request: Request) -> bytes:
    """Return the request's body. Raises ApiError: 408, 413."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        text = f"The request body did not arrive within {BODY_SECONDS:.0f} s."
        raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", text) from None


async def read_body(request: Request, kind: type[B]) -> B:
    """Return the request's body as ``kind``. Raises ApiError: 400 naming the field, 408, 413."""
    raw = await raw_body(request)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from None


def json_reply(value: Any, status: int = 200) -> Response:
    """Return ``value`` as a response."""
    return Response(
        json.dumps(value, separators=(",", ":")), status_code=status, media_type="application/json"
    )


def error_reply(error: ApiError) -> Response:
    """Return an error as a response."""
    return Response(
        error.body(), status_code=error.status, headers=error.headers(), media_type="application/json"
    )


class AnswerReply(Response):
    """Makes an answer and sends it, as a stream or as a whole."""

    def __init__(self, kitchen: Kitchen, plan: Plan, model: ServedModel, created: int) -> None:
        super().__init__()
        self._kitchen = kitchen
        self._plan = plan
        self._model = model
        self._created = created
        self._started = False

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. A client that leaves ends its generation within one step of the engine."""
        answer = Answer(self._kitchen, self._plan, self._model)
        try:
            async with watching(receive, answer.outputs.interrupt), answer.open():
                await (self._stream if self._plan.stream else self._whole)(answer, send)
        except ApiError as error:
            await send_error(send, error, started=self._started)
        except ClientGone:
            self._kitchen.metrics.disconnects.inc()

    async def _stream(self, answer: Answer, send: Send) -> None:
        renderer = self._renderer(answer)
        opened: set[int] = set()
        async for found in answer.pieces():
            events = [] if self._started else [renderer.opening(choice.index) for choice in answer.choices]
            usage = answer.usage() if self._plan.continuous_usage else None
            events += [
                renderer.event(choice, self._first(choice, piece, opened), usage) for choice, piece in found
            ]
            await self._send(send, "".join(events).encode())
        end = renderer.usage(answer.usage()).encode() if self._plan.include_usage else b""
        await self._send(send, end + DONE, more=False)

    async def _whole(self, answer: Answer, send: Send) -> None:
        pieces: dict[int, list[Piece]] = {choice.index: [] for choice in answer.choices}
        opened: set[int] = set()
        async for found in answer.pieces():
            for choice, piece in found:
                pieces[choice.index].append(self._first(choice, piece, opened))
        body = self._renderer(answer).whole(answer.choices, pieces, answer.usage())
        await send_all(send, HTTPStatus.OK, [*_JSON], body)

    def _first(self, choice: Choice, piece: Piece, opened: set[int]) -> Piece:
        """Put the echo of the prompt before the first piece of an answer."""
        if not self._plan.echo or choice.index in opened:
            return piece
        opened.add(choice.index)
        echo = self._plan.echo[choice.index // self._plan.n]
        return Piece(echo + piece.text, piece.logprobs, piece.finish_reason, piece.prompt_logprobs)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._started = await start_events(send, started=self._started)
        await write(send, body, more=more)

    def _renderer(self, answer: Answer) -> Renderer:
        info = self._model.info
        return Renderer(
            self._plan,
            self._model.vocabulary,
            answer_id=answer.id,
            model=self._model.name,
            created=self._created,
            fingerprint=f"llmos-{info.format}-{info.digest.removeprefix('sha256:')[:8]}",
        )


class Silence(Response):
    """No answer at all, to a client that left."""

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        """Send nothing: the request counts, and its span ends, as one without a status."""


@asynccontextmanager
async def watching(receive: Receive, tell: Callable[[LlmosError], None]) -> AsyncIterator[None]:
    """Call ``tell`` with ClientGone when the client leaves during the block. The body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tell(ClientGone("the client left"))

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` gives. Raises ClientGone when the client leaves before: the work is cancelled."""
    task = asyncio.create_task(work)
    gone: list[LlmosError] = []

    def leave(error: LlmosError) -> None:
        gone.append(error)
        task.cancel()

    try:
        async with watching(receive, leave):
            await asyncio.wait([task])
    finally:
        task.cancel()  # of no effect on one that has ended
    if task.cancelled() and gone:
        raise gone[0]
    return task.result()


async def start_events(send: Send, *, started: bool) -> bool:
    """Send the headers of a stream unless it has started; it has then."""
    if not started:
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": _EVENTS})
    return True


async def write(send: Send, body: bytes, *, more: bool = True) -> None:
    """Send the next part of a stream. Raises ClientGone if the client takes nothing."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise ClientGone("the client reads nothing") from None


async def send_error(send: Send, error: ApiError, *, started: bool) -> None:
    """Answer with an error: as the last event of a stream that has started, else with its own status."""
    if started:
        await write(send, b"data: " + error.body() + b"\n\n", more=False)
    else:
        headers = [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
        await send_all(send, error.status, [*_JSON, *headers], error.body())


async def send_all(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer."""
    sized = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})

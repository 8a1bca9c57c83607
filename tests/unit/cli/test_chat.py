"""The chat client against a small real HTTP server."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from llmos_operator.cli import chat, reach, sse
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


def stream(
    *events: dict[str, Any], done: bool = True
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        await response.write(b": hello\n\n")
        for event in events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if done:
            await response.write(b"data: [DONE]\n\n")
        return response

    return handler


@asynccontextmanager
async def serving(handler: Any, models: tuple[str, ...] = ("smol",)) -> AsyncIterator[reach.Direct]:
    async def listed(_request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in models]})

    app = web.Application()
    app.router.add_get("/v1/models", listed)
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield reach.Direct(f"http://{host}:{port}")
    finally:
        await runner.cleanup()


def ask(handler: Any) -> tuple[chat.Answer, list[str], chat.Talk]:
    shown: list[str] = []
    talk = chat.Talk("smol", 16, 0.0)

    async def main() -> chat.Answer:
        async with serving(handler) as endpoint:
            return await chat.ask(endpoint, talk, "capital?", shown.append)

    return asyncio.run(main()), shown, talk


def test_an_answer_is_shown_piece_by_piece_and_kept_in_the_conversation() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    answer, shown, talk = ask(stream(piece("Pa"), piece("ris", "stop"), usage))
    assert shown == ["Pa", "ris"]
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == (
        "Paris",
        "stop",
        9,
        2,
    )
    assert answer.first_token_seconds <= answer.seconds
    assert [message["content"] for message in talk.messages] == ["capital?", "Paris"]


def test_half_an_answer_is_never_taken_for_one() -> None:
    with pytest.raises(CommandFailed, match="in the middle of the answer"):
        ask(stream(piece("Pa"), done=False))


def test_an_error_inside_the_stream_is_told() -> None:
    with pytest.raises(CommandFailed, match="broke off: the replica is gone"):
        ask(stream(piece("Pa"), {"error": {"message": "the replica is gone"}}))


def test_a_refusal_is_told_with_its_message() -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "prompt longer than the context"}}, status=400)

    with pytest.raises(CommandFailed, match="400 prompt longer than the context"):
        ask(refuse)


def test_a_body_that_is_not_json_is_shown_cut() -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(text="bad gateway " * 50, status=502)

    with pytest.raises(CommandFailed, match="502 bad gateway"):
        ask(refuse)


@pytest.mark.parametrize(
    ("models", "asked", "outcome"),
    [
        (("smol",), "", "smol"),
        (("a", "b"), "b", "b"),
        (("a", "b"), "", "--model is needed, there are several: a, b"),
        (("smol", "minilm"), "smoll", "did you mean smol"),
        ((), "", "no model is served"),
    ],
)
def test_the_model_is_chosen_or_the_choice_is_named(
    models: tuple[str, ...], asked: str, outcome: str
) -> None:
    async def main() -> str:
        async with serving(stream(), models) as endpoint:
            return await chat.choose(endpoint, asked, "")

    if outcome in models:
        assert asyncio.run(main()) == outcome
    else:
        with pytest.raises(CommandFailed, match=outcome):
            asyncio.run(main())


def test_nobody_there_is_retryable_and_names_the_address(unused_tcp_port: int) -> None:
    async def main() -> None:
        await chat.models(reach.Direct(f"http://127.0.0.1:{unused_tcp_port}"))

    with pytest.raises(Retryable, match=str(unused_tcp_port)):
        asyncio.run(main())


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_error_messages_are_found_or_the_body_is_shown() -> None:
    assert sse.message_of({"error": {"message": "no"}}) == "no"
    assert sse.message_of(["x"]) == "['x']"

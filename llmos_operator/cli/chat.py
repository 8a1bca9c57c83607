"""`llmos chat`: ask a model through the gateway and see the answer as it is made."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import typer

from llmos_operator.cli import reach, render, session, sse
from llmos_operator.cli.failures import USAGE, CommandFailed, unknown
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.cli.reach import Endpoint
    from llmos_operator.cli.session import Session

_INPUT_PROMPT = "> "


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and how it came. Seconds from sending the request."""

    model: str
    text: str
    finish_reason: str
    first_token_seconds: float
    seconds: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where there was only one."""
        generating = self.seconds - self.first_token_seconds
        return (
            (self.completion_tokens - 1) / generating
            if generating > 0 and self.completion_tokens > 1
            else 0.0
        )


@dataclass(slots=True)
class Talk:
    """A conversation: what every request of it carries."""

    model: str
    max_tokens: int
    temperature: float
    token: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, object]:
        """Return the request for the next answer."""
        return {
            "model": self.model,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def command(
    model: Annotated[str, typer.Option("--model", "-m", help="Model to ask (default: the only one).")] = "",
    message: Annotated[
        str, typer.Option("--message", help="Ask this and end; `-` reads standard input.")
    ] = "",
    system: Annotated[str, typer.Option("--system", help="System prompt.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=2.0, help="0: always the likeliest token.")
    ] = 0.0,
    url: Annotated[str, typer.Option("--url", envvar="LLMOS_GATEWAY_URL", help="Endpoint to ask.")] = "",
    api_key: Annotated[str, typer.Option("--api-key", envvar="LLMOS_API_KEY", help="Key to send.")] = "",
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Talk to a model through the gateway; without --message, line by line."""
    if as_json and not message:
        raise CommandFailed("--json needs --message: a conversation is for people", status=USAGE)
    text = sys.stdin.read() if message == "-" else message

    async def main(connected: Session) -> None:
        endpoint = await reach.gateway(connected, url)
        talk = Talk(await choose(endpoint, model, api_key), max_tokens, temperature, api_key)
        if system:
            talk.messages.append({"role": "system", "content": system})
        if text:
            answer = await ask(endpoint, talk, text, _quiet if as_json else _show)
            _finish(answer, as_json=as_json)
        else:
            await _converse(endpoint, talk)

    session.run(Target(kubeconfig, context), main)


async def models(endpoint: Endpoint, token: str = "") -> list[str]:
    """Return the names of the models the gateway knows."""
    async with endpoint.open("GET", "/v1/models", token=token) as response:
        raw = await response.read()
        if response.status != HTTPStatus.OK:
            raise CommandFailed(f"{endpoint.address}/v1/models: {response.status} {_error(raw)}")
    return sorted(str(item["id"]) for item in json.loads(raw).get("data", []))


async def choose(endpoint: Endpoint, model: str, token: str) -> str:
    """Return `model` if it is served, the only model if none is named; raise `CommandFailed` naming the choice."""
    known = await models(endpoint, token)
    if model in known:
        return model
    if model:
        raise unknown("model", model, known)
    if len(known) == 1:
        return known[0]
    if not known:
        raise CommandFailed("no model is served: kubectl apply -f examples/01-chat/workload.yaml")
    raise CommandFailed(f"--model is needed, there are several: {', '.join(known)}")


async def ask(endpoint: Endpoint, talk: Talk, text: str, show: Callable[[str], None]) -> Answer:
    """Send ``text`` as the user's next message; call ``show`` with every piece of the answer as it comes."""
    talk.messages.append({"role": "user", "content": text})
    started = time.monotonic()
    first = 0.0
    pieces: list[str] = []
    finish = ""
    usage: dict[str, int] = {}
    path = "/v1/chat/completions"
    async with endpoint.open("POST", path, body=talk.body(), token=talk.token) as response:
        if response.status != HTTPStatus.OK:
            raise CommandFailed(f"{talk.model}: {response.status} {_error(await response.read())}")
        async for event in sse.events(response.content):
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                finish = choice.get("finish_reason") or finish
                piece = render.dig(choice, "delta", "content", default="")
                if piece:
                    first = first or time.monotonic() - started
                    pieces.append(piece)
                    show(piece)
    answer = "".join(pieces)
    talk.messages.append({"role": "assistant", "content": answer})
    return Answer(
        model=talk.model,
        text=answer,
        finish_reason=finish,
        first_token_seconds=first,
        seconds=time.monotonic() - started,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or len(pieces)),
    )


async def _converse(endpoint: Endpoint, talk: Talk) -> None:
    sys.stdout.write(f"{talk.model} at {endpoint.address}; end with Ctrl-D\n")
    while True:
        try:
            text = input(_INPUT_PROMPT)  # noqa: ASYNC250 - nothing else runs in this loop
        except EOFError:
            sys.stdout.write("\n")
            return
        if text.strip():
            _finish(await ask(endpoint, talk, text, _show), as_json=False)


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _quiet(_piece: str) -> None:
    """Show nothing: the answer is printed as JSON at the end."""


def _finish(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        render.print_json(answer)
        return
    sys.stdout.write("\n")
    if sys.stderr.isatty():
        sys.stderr.write(
            f"[{answer.completion_tokens} tokens, first after {answer.first_token_seconds:.2f} s, "
            f"{answer.tokens_per_second:.0f} tokens/s, {answer.finish_reason}]\n"
        )


def _error(raw: bytes) -> str:
    try:
        return sse.message_of(json.loads(raw))
    except ValueError:
        return raw[:200].decode(errors="replace")

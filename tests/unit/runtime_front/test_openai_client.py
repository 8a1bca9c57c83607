"""OpenAI's own Python client against the serving API: what its users do must just work."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.support.engine import MODEL, RuntimeBench, ScriptedEngine, running_runtime, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
]
ANSWER = "The capital of France is Paris."


@asynccontextmanager
async def _client(folder: Path, **arguments: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, RuntimeBench]]:
    async with (
        running_runtime(folder, **arguments) as bench,
        openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="key", max_retries=0) as client,
    ):
        yield client, bench


async def test_models(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).owned_by == "llmos"


async def test_chat(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        found = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=2, seed=1, temperature=0.5
        )
        assert [choice.message.content for choice in found.choices] == [ANSWER] * 2
        assert found.usage is not None
        assert found.usage.completion_tokens == 64
        assert found.usage.prompt_tokens_details is not None


async def test_chat_stream(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        text, reason, usage = "", None, None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        assert (text, reason) == (ANSWER, "stop")
        assert usage is not None
        assert usage.completion_tokens == 32


async def test_the_accumulating_stream_helper(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        async with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].message.content == ANSWER


async def test_logprobs(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        found = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1
        )
        logprobs = found.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert "".join(one.token for one in logprobs.content) == ANSWER
        assert logprobs.content[0].top_logprobs[0].token == "T"


async def test_completions(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _):
        found = await client.completions.create(
            model=MODEL, prompt=["a", "b"], max_tokens=3, echo=True, logprobs=1
        )
        assert [choice.text for choice in found.choices] == ["aThe", "bThe"]
        stream = await client.completions.create(model=MODEL, prompt="a", max_tokens=11, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "The capital"


async def test_embeddings_in_both_encodings(tmp_path: Path) -> None:
    async with _client(tmp_path, engine=ScriptedEngine(info={"embedding_size": 4})) as (client, _):
        default = await client.embeddings.create(model=MODEL, input=["a", "bc"])  # asks for base64 by itself
        plain = await client.embeddings.create(model=MODEL, input=["a", "bc"], encoding_format="float")
        assert [one.embedding for one in default.data] == [one.embedding for one in plain.data]
        assert plain.data[1].embedding == [2.0, 2.125, 2.25, 2.375]


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 10_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"messages": "Hi"}, openai.BadRequestError, "invalid_type"),
    ],
)
async def test_errors_are_the_clients_own(
    tmp_path: Path, change: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    async with _client(tmp_path) as (client, _):
        arguments: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **change}
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**arguments)
        assert caught.value.code == code


async def test_keys(tmp_path: Path) -> None:
    async with _client(tmp_path, api_keys=("key",)) as (client, _):
        assert (await client.chat.completions.create(model=MODEL, messages=MESSAGES)).choices
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="other").chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_overload_is_a_rate_limit_error_and_retries_help(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with _client(tmp_path, engine=engine, max_num_seqs=1, max_queue=0) as (client, bench):
        first = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=MESSAGES))
        await until(lambda: len(engine.running) == 1)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        patient = client.with_options(max_retries=3)
        second = asyncio.create_task(patient.chat.completions.create(model=MODEL, messages=MESSAGES))
        await until(lambda: bench.runtime.admission.rejected >= 2)
        engine.manual = False
        engine.step(40)
        assert (await first).choices[0].message.content == ANSWER
        assert (await second).choices[0].message.content == ANSWER


async def test_an_engine_lost_in_a_stream_is_an_api_error(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with _client(tmp_path, engine=engine) as (client, _):
        asked = asyncio.create_task(
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        )
        await until(lambda: len(engine.running) == 1)
        engine.step(3)
        stream = await asked
        engine.crash()
        with pytest.raises(openai.APIError, match="model was lost"):
            async for _ in stream:
                pass


async def test_closing_a_stream_stops_the_engine(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True, text="x" * 300)
    async with _client(tmp_path, engine=engine) as (client, _):
        asked = asyncio.create_task(
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        )
        await until(lambda: len(engine.running) == 1)
        engine.step(2)
        stream = await asked
        await stream.close()
        await until(lambda: len(engine.cancelled) == 1)

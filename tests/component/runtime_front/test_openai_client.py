"""OpenAI's own Python client against the whole runtime with a real model: nothing scripted."""

from __future__ import annotations

import json
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.support.models import CHAT, packaged
from tests.support.served import Served, runtime_process

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.model

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TRIP: list[Any] = [{"role": "user", "content": "Plan a trip to Paris for two people."}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("chat")
    with runtime_process(folder, str(packaged(CHAT)), "127.99.8.4", LLMOS_FORMAT="bf16") as served:
        yield served
        # Whatever the tests did, no engine was lost over it.
        assert served.report()["state"] == "Ready"
        assert "engine died" not in (folder / "runtime.log").read_text()


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.client


class Kind(StrEnum):
    CITY = "city"
    BEACH = "beach"


class Stop(BaseModel):
    place: str = Field(max_length=20)
    days: int = Field(ge=1, le=9)


class Trip(BaseModel):
    title: str = Field(max_length=30)
    kind: Kind
    people: Literal[1, 2, 3]
    stops: list[Stop] = Field(min_length=1, max_length=2)
    note: str | None = Field(max_length=30)


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=20)
    unit: Literal["C", "F"]


class Add(BaseModel):
    """The sum of two numbers."""

    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


TOOLS: Any = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Add)]


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "llmos"


def test_chat_with_usage_logprobs_and_several_answers(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="m",
        messages=QUESTION,
        n=2,
        seed=5,
        temperature=0.7,
        max_tokens=12,
        logprobs=True,
        top_logprobs=2,
    )
    assert len({choice.index for choice in found.choices}) == 2
    assert found.usage is not None
    assert found.usage.completion_tokens <= 24
    for choice in found.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        text = "".join(one.token for one in choice.logprobs.content)
        assert (choice.message.content or "") == text
    again = client.chat.completions.create(
        model="m", messages=QUESTION, n=2, seed=5, temperature=0.7, max_tokens=12
    )
    assert [c.message.content for c in again.choices] == [c.message.content for c in found.choices]


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "m", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**arguments)
    with client.chat.completions.stream(**arguments, stream_options={"include_usage": True}) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= set(events)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert "Paris" in (whole.choices[0].message.content or "")
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens


def test_completions_stop_echo_and_score(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    found = client.completions.create(
        model="m", prompt=prompt, max_tokens=24, temperature=0, stop=["."], echo=True
    )
    assert found.choices[0].text.startswith(f"{prompt} Paris")
    assert "." not in found.choices[0].text
    assert found.choices[0].finish_reason == "stop"
    scored = client.completions.create(model="m", prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == prompt
    stream = client.completions.create(model="m", prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "Paris" in "".join(chunk.choices[0].text for chunk in stream)


# ------------------------------------------------------------ structured outputs


def test_parse_gives_the_clients_own_type(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="m", messages=TRIP, response_format=Trip, temperature=1.0, seed=1, n=2, max_tokens=200
    )
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Trip)


def test_a_stream_is_parsed_as_it_comes(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="m", messages=TRIP, response_format=Trip, temperature=0, max_tokens=200
    ) as stream:
        pieces = [event for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(pieces) > 5
    assert isinstance(final.choices[0].message.parsed, Trip)
    plain = client.chat.completions.parse(
        model="m", messages=TRIP, response_format=Trip, temperature=0, max_tokens=200
    )
    assert plain.choices[0].message.parsed == final.choices[0].message.parsed


def test_json_objects_choices_and_patterns(client: openai.OpenAI) -> None:
    chat = client.chat.completions
    found = chat.create(
        model="m", messages=TRIP, response_format={"type": "json_object"}, temperature=0, max_tokens=300
    )
    text = found.choices[0].message.content or ""
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert (found.choices[0].finish_reason, text[0]) == ("length", "{")
    choice = {"structured_outputs": {"choice": ["red", "green"]}}
    for seed in range(3):
        answer = chat.create(model="m", messages=QUESTION, seed=seed, temperature=2, extra_body=choice)
        assert answer.choices[0].message.content in {"red", "green"}
    pattern = {"structured_outputs": {"regex": "[A-Z]{3}-[0-9]{2}"}}
    code = client.completions.create(model="m", prompt="Code:", temperature=1, seed=1, extra_body=pattern)
    assert code.choices[0].text[3] == "-"
    assert len(code.choices[0].text) == 6


def test_a_form_that_is_cut_off_says_length_and_the_client_knows(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="m",
        messages=TRIP,
        max_tokens=5,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "t", "schema": Trip.model_json_schema()},
        },
    )
    assert found.choices[0].finish_reason == "length"
    assert (found.choices[0].message.content or "").startswith('{"title": "')
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="m", messages=TRIP, response_format=Trip, max_tokens=5)


def test_bound_and_free_answers_run_together_and_each_is_as_alone(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> str:
        found = client.chat.completions.create(
            model="m", messages=QUESTION, temperature=0, max_tokens=40, **more
        )
        return found.choices[0].message.content or ""

    form: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": Weather.model_json_schema()}}
    alone = [ask(), ask(response_format=form)]
    together: list[str] = ["", "", "", ""]

    def ask_into(place: int) -> None:
        together[place] = ask() if place % 2 == 0 else ask(response_format=form)

    threads = [threading.Thread(target=ask_into, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for text in together[1::2]:
        assert Weather.model_validate_json(text)
        assert text == alone[1]
    assert "Paris" in alone[0]
    assert all("Paris" in text for text in together[::2])


# ------------------------------------------------------------ tools


def test_a_named_function_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="m",
        messages=[{"role": "user", "content": "How warm is it in Paris?"}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "Weather"}},
        temperature=0,
        max_tokens=80,
    )
    choice = found.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


def test_required_calls_stream_and_parse(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="m",
        messages=[{"role": "user", "content": "What is 2 plus 3?"}],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=80,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather | Add)
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_conversation_with_a_result_goes_on(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "How warm is it in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "Weather", "arguments": '{"city": "Paris", "unit": "C"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "21 C"},
    ]
    found = client.chat.completions.create(
        model="m", messages=messages, tools=TOOLS, temperature=0, max_tokens=40
    )
    message = found.choices[0].message
    assert message.content or message.tool_calls
    assert "tool_call>" not in (message.content or "")
    plain = client.chat.completions.create(
        model="m", messages=messages, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=40
    )
    assert plain.choices[0].message.tool_calls is None


# ------------------------------------------------------------ errors


SCHEMA_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"type": "thing"}, "schema.type"),
    ({"type": "object", "properties": {"a": {"not": {}}}}, "schema.properties.a.not"),
    ({"$ref": "#"}, "no text can satisfy it"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
]


@pytest.mark.parametrize(("schema", "words"), SCHEMA_ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_schemas_are_bad_requests(
    client: openai.OpenAI, schema: dict[str, Any], words: str, stream: bool
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=QUESTION, response_format=form, stream=stream)
    assert caught.value.code == "invalid_json_schema"
    assert words in caught.value.message


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=QUESTION, max_tokens=1_000_000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model="m", input="x")

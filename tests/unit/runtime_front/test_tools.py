"""Tools over HTTP: what the model is told, what binds its answer, what the client gets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engine import (
    CHAT_TEMPLATE,
    MODEL,
    RuntimeBench,
    ScriptedEngine,
    running_runtime,
    write_model,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

C = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "$defs": {"city": {"type": "string"}},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Weather in Paris?"}],
    "tools": [WEATHER, CLOCK],
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
KNOWING = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
)
LLAMA = '{% if tools %}Answer {"name": function name, "parameters": ...}{% endif %}{{ messages[0].content }}'


def _prompt(bench: RuntimeBench) -> str:
    return bytes(token for token in bench.engine.submits[-1].prompt if token < 256).decode()


def _engine(folder: Path, text: str, template: str = CHAT_TEMPLATE) -> ScriptedEngine:
    return ScriptedEngine(
        text=text,
        model_dir=str(write_model(folder / "m", chat_template=template)),
        info={"max_model_len": 4096},
    )


async def test_a_call_comes_back_as_a_call(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=_engine(tmp_path, f"Let me see.\n{CALL}")) as bench:
        status, body, _ = await bench.post(C, CHAT)
        assert status == 200
        choice = body["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see."
        (call,) = choice["message"]["tool_calls"]
        assert call["id"].startswith("call_")
        assert (call["type"], call["function"]) == (
            "function",
            {"name": "weather", "arguments": '{"city": "Paris"}'},
        )
        assert bench.engine.submits[-1].grammar == ""  # auto, and nothing strict
        assert '"description": "The weather."' in _prompt(bench)
        assert "<tools>" in _prompt(bench)
        assert (
            bench.metric("vllm:request_success_total", model_name=MODEL, engine="0", finished_reason="stop")
            == 1
        )


async def test_a_stream_of_calls(tmp_path: Path) -> None:
    text = f"{CALL}\n" + CALL.replace("weather", "clock")
    async with running_runtime(tmp_path, engine=_engine(tmp_path, text)) as bench:
        events = await bench.events(C, {**CHAT, "n": 2})
        assert events.pop() == "[DONE]"
        assert "<tool" not in json.dumps(events)
        for index in (0, 1):
            deltas = [c["delta"] for e in events for c in e["choices"] if c["index"] == index]
            calls: dict[int, dict[str, str]] = {}
            for piece in (call for delta in deltas for call in delta.get("tool_calls", [])):
                if "id" in piece:
                    assert piece["type"] == "function"
                    calls[piece["index"]] = {"name": piece["function"]["name"], "arguments": ""}
                calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
            assert list(calls.values()) == [
                {"name": "weather", "arguments": '{"city": "Paris"}'},
                {"name": "clock", "arguments": '{"city": "Paris"}'},
            ]
            assert not any(delta.get("content") for delta in deltas)
        reasons = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
        assert reasons == ["tool_calls"] * 2


async def test_without_parallel_calls_the_first_ends_the_answer(tmp_path: Path) -> None:
    engine = _engine(tmp_path, f"{CALL}\n{CALL}\n" + "x" * 200)
    async with running_runtime(tmp_path, engine=engine) as bench:
        _, body, _ = await bench.post(C, {**CHAT, "parallel_tool_calls": False})
        choice = body["choices"][0]
        assert len(choice["message"]["tool_calls"]) == 1
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
        assert body["usage"]["completion_tokens"] == len(CALL)


async def test_a_call_that_is_cut_off_says_length(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=_engine(tmp_path, CALL)) as bench:
        _, body, _ = await bench.post(C, {**CHAT, "max_tokens": len(CALL) - 21})
        choice = body["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'


@pytest.mark.parametrize(
    ("fields", "starts", "words"),
    [
        ({"tool_choice": "auto"}, "", []),
        ({"tool_choice": "required"}, "start: call", ['("\\n" call)*', '"weather"', '"clock"']),
        ({"tool_choice": "required", "parallel_tool_calls": False}, "start: call\n", ['"clock"']),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
            "start: call\n",
            ['"#/$defs/f0/$defs/city"'],
        ),
        ({"response_format": {"type": "json_object"}}, "start: answer | call", []),
    ],
)
async def test_what_binds_the_answer(tmp_path: Path, fields: Any, starts: str, words: list[str]) -> None:
    async with running_runtime(tmp_path, engine=_engine(tmp_path, CALL)) as bench:
        assert (await bench.post(C, {**CHAT, **fields}))[0] == 200
        grammar = bench.engine.submits[-1].grammar
        assert grammar.startswith(starts)
        assert bool(grammar) == bool(starts)
        assert all(word in grammar for word in words)
        if "function" in str(fields.get("tool_choice")):
            assert "clock" not in grammar


async def test_a_strict_tool_binds_calls_and_leaves_text_free(tmp_path: Path) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    async with running_runtime(tmp_path, engine=_engine(tmp_path, CALL)) as bench:
        assert (await bench.post(C, {**CHAT, "tools": [strict]}))[0] == 200
        assert bench.engine.submits[-1].grammar.startswith("start: TEXT | head body")


async def test_none_ignores_tools(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=_engine(tmp_path, CALL)) as bench:
        _, body, _ = await bench.post(C, {**CHAT, "tool_choice": "none"})
        assert body["choices"][0]["message"]["content"] == CALL
        assert "tool_calls" not in body["choices"][0]["message"]
        assert "weather" not in _prompt(bench)


HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ås"}'}},
            {"id": "b", "type": "function", "function": {"name": "clock", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "rain"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
]


async def test_calls_and_results_in_the_history_reach_a_template_that_knows_tools(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=_engine(tmp_path, "Rain.", KNOWING)) as bench:
        status, body, _ = await bench.post(C, {**CHAT, "messages": HISTORY})
        assert (status, body["choices"][0]["finish_reason"]) == (200, "stop")
        prompt = _prompt(bench)
        assert prompt.startswith('{"type": "function", "function": {"name": "weather"')
        assert prompt.endswith(
            '[assistant]<tool_call>{"name": "weather", "arguments": {"city": "Ås"}}</tool_call>'
            '<tool_call>{"name": "clock", "arguments": {}}</tool_call>[tool]rain[tool]noon'
        )


async def test_they_are_written_out_for_a_template_that_does_not(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=_engine(tmp_path, "Rain.")) as bench:
        assert (await bench.post(C, {**CHAT, "messages": HISTORY}))[0] == 200
        prompt = _prompt(bench)
        assert prompt.startswith("system\nBe brief.\n\nYou can call these functions:")
        assert prompt.endswith(
            'assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ås"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\n'
            "user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>\n"
            "assistant\n"
        )


async def test_llamas_own_format(tmp_path: Path) -> None:
    engine = _engine(tmp_path, '{"name": "weather", "parameters": {"city": "Paris"}}', LLAMA)
    async with running_runtime(tmp_path, engine=engine) as bench:
        _, body, _ = await bench.post(C, {**CHAT, "tool_choice": "required"})
        call = body["choices"][0]["message"]["tool_calls"][0]
        assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
        assert '"parameters": {"$ref"' in bench.engine.submits[-1].grammar


CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function", ""),
    ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type", "'function'"),
    ({"tools": [CLOCK, CLOCK]}, "invalid_value", "tools[1].function.name", "twice"),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "invalid_value",
        "tools[0].function.name",
        "pattern",
    ),
    ({"tool_choice": "maybe"}, "invalid_value", "tool_choice", "'required'"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "rm"}}},
        "invalid_value",
        "tool_choice",
        '"rm" is not among',
    ),
    ({"tools": None, "tool_choice": "auto"}, "invalid_value", "tool_choice", "only allowed with 'tools'"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "thing"}}}],
            "tool_choice": "required",
        },
        "invalid_json_schema",
        "tools[0].function.parameters",
        "tools[0].function.parameters.type",
    ),
    ({"tool_choice": "required", "ignore_eos": True}, "invalid_value", "ignore_eos", "tool_choice"),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}],
                }
            ]
        },
        "invalid_value",
        "messages[0].tool_calls[0].function.arguments",
        "JSON object",
    ),
]


async def test_what_is_wrong_with_tools_is_told(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        for fields, code, param, words in CASES:
            status, body, _ = await bench.post(C, {**CHAT, **fields})
            error = body["error"]
            assert (status, error["code"], error["param"]) == (400, code, param), (fields, body)
            assert words in error["message"], (fields, body)
        assert bench.engine.submits == []


async def test_a_format_that_is_not_known_is_refused_and_none_still_works(tmp_path: Path) -> None:
    engine = _engine(tmp_path, "Hi", "{{ tools }}[TOOL_CALLS]{{ messages[0].content }}")
    async with running_runtime(tmp_path, engine=engine) as bench:
        status, body, _ = await bench.post(C, CHAT)
        assert (status, body["error"]["param"]) == (400, "tools")
        assert (await bench.post(C, {**CHAT, "tool_choice": "none"}))[0] == 200

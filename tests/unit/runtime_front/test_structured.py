"""Requests that bind their answers to a form: what reaches the engine, and what comes back when it says no."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engine import MODEL, ScriptedEngine, running_runtime, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "Hi"}
C, T = "/v1/chat/completions", "/v1/completions"
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def _schema(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": value, **more}}


async def test_a_form_reaches_every_answer_of_a_request(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        body = {**CHAT, "n": 3, "response_format": _schema(PERSON, strict=True)}
        assert (await bench.post(C, body))[0] == 200
        grammars = {submit.grammar for submit in bench.engine.submits}
        assert len(bench.engine.submits) == 3
        (grammar,) = grammars
        embedded = json.loads(grammar.removeprefix("start: %json "))
        assert embedded.pop("x-guidance")["whitespace_flexible"] is False
        assert embedded == PERSON


@pytest.mark.parametrize(
    ("path", "fields", "grammar"),
    [
        (C, {}, ""),
        (C, {"response_format": {"type": "text"}}, ""),
        (C, {"response_format": {"type": "json_object"}}, '"type": "object"'),
        (C, {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, '"type": "object"'),
        (C, {"structured_outputs": {"choice": ["yes", 'n"o']}}, 'start: "yes" | "n\\"o"\n'),
        (T, {"structured_outputs": {"regex": "[a-z]/"}}, "start: /[a-z]\\//\n"),
        (T, {"structured_outputs": {"json": PERSON}}, '"required": ["name"]'),
    ],
)
async def test_forms_and_their_grammars(tmp_path: Path, path: str, fields: Any, grammar: str) -> None:
    async with running_runtime(tmp_path) as bench:
        assert (await bench.post(path, {**(CHAT if path == C else TEXT), **fields}))[0] == 200
        (submit,) = bench.engine.submits
        assert grammar in submit.grammar
        assert bool(grammar) == bool(submit.grammar)


CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type", "'json_schema'"),
    ({"response_format": "json"}, "invalid_type", "response_format", ""),
    (
        {"response_format": {"type": "json_schema"}},
        "missing_required_parameter",
        "response_format.json_schema",
        "",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "missing_required_parameter",
        "response_format.json_schema.name",
        "",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
        "invalid_value",
        "response_format.json_schema.name",
        "pattern",
    ),
    ({"response_format": _schema([])}, "invalid_type", "response_format.json_schema.schema", ""),
    (
        {"response_format": _schema({"properties": {"a": {"type": "int"}}})},
        "invalid_json_schema",
        "response_format.json_schema.schema",
        "response_format.json_schema.schema.properties.a.type",
    ),
    (
        {"response_format": _schema({"not": {}}, strict=True)},
        "invalid_json_schema",
        "response_format.json_schema.schema",
        "set 'strict' to false",
    ),
    ({"structured_outputs": {"choice": []}}, "invalid_value", "structured_outputs.choice", ""),
    ({"structured_outputs": {"choice": [""]}}, "invalid_value", "structured_outputs", "must not be empty"),
    ({"structured_outputs": {}}, "invalid_value", "structured_outputs", "exactly one"),
    (
        {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
        "invalid_value",
        "structured_outputs",
        "combined",
    ),
    (
        {"response_format": {"type": "json_object"}, "ignore_eos": True},
        "invalid_value",
        "ignore_eos",
        "response_format",
    ),
    ({"response_format": {"type": "json_object"}, "min_tokens": 4}, "invalid_value", "min_tokens", ""),
]


async def test_bad_forms_are_refused_with_the_place_and_never_reach_the_engine(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        for fields, code, param, words in CASES:
            status, body, _ = await bench.post(C, {**CHAT, **fields})
            error = body["error"]
            assert (status, error["code"], error["param"]) == (400, code, param), (fields, body)
            assert words in error["message"], (fields, body)
        assert bench.engine.submits == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_cannot_compile_is_the_clients_fault(tmp_path: Path, stream: bool) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        body = {**CHAT, "response_format": _schema(PERSON), "stream": stream}
        asked = asyncio.create_task(bench.post(C, body))
        await until(lambda: len(engine.running) == 1)
        engine.finish("error", "schema too large", bad_grammar=True)
        status, answer, _ = await asked
        assert status == 400
        assert answer["error"] == {
            "message": "Invalid 'response_format.json_schema.schema': schema too large.",
            "type": "invalid_request_error",
            "param": "response_format.json_schema.schema",
            "code": "invalid_json_schema",
        }

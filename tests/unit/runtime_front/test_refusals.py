"""Bad requests get an answer that names field, value and fix; good ones beside them go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import Failed, Progress
from tests.support.engine import MODEL, ScriptedEngine, running_runtime, until, write_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "Hi"}
VECTOR: dict[str, Any] = {"model": MODEL, "input": "Hi"}
C, T, E = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def _without(body: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != field}


CASES: list[tuple[str, Any, int, str, str | None, str]] = [
    # invalid JSON
    (C, b"", 400, "invalid_json", None, "not valid JSON"),
    (C, b'{"model": ', 400, "invalid_json", None, "line 1 column"),
    (C, b"[]", 400, "invalid_json", None, "must be a JSON object"),
    (C, b'"x"', 400, "invalid_json", None, "must be a JSON object"),
    (T, b'{"model":"m","prompt":"\\ud83d"}', 400, "invalid_json", None, "not valid JSON"),
    (T, b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "invalid_json", None, "recursion limit"),
    (T, b"\xff\xfe\x00", 400, "invalid_json", None, "not valid JSON"),
    # missing and wrong types
    (C, _without(CHAT, "model"), 400, "missing_required_parameter", "model", "'model'"),
    (C, _without(CHAT, "messages"), 400, "missing_required_parameter", "messages", "'messages'"),
    (T, _without(TEXT, "prompt"), 400, "missing_required_parameter", "prompt", "'prompt'"),
    (E, _without(VECTOR, "input"), 400, "missing_required_parameter", "input", "'input'"),
    (C, {**CHAT, "model": 7}, 400, "invalid_type", "model", "valid string, got 7"),
    (C, {**CHAT, "messages": "Hi"}, 400, "invalid_type", "messages", 'valid array, got "Hi"'),
    (C, {**CHAT, "messages": []}, 400, "invalid_value", "messages", "at least 1 item"),
    (C, {**CHAT, "messages": [{"content": "x"}]}, 400, "missing_required_parameter", "messages[0].role", ""),
    (
        C,
        {**CHAT, "messages": [{"role": "king", "content": "x"}]},
        400,
        "invalid_value",
        "messages[0].role",
        "'user'",
    ),
    (
        C,
        {**CHAT, "messages": [{"role": "user", "content": 3}]},
        400,
        "invalid_type",
        "messages[0].content",
        "got 3",
    ),
    (C, {**CHAT, "temperature": "hot"}, 400, "invalid_type", "temperature", 'valid number, got "hot"'),
    (C, {**CHAT, "stream": "yes"}, 400, "invalid_type", "stream", "boolean"),
    (C, {**CHAT, "logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias", "token ids, got 'x'"),
    (T, {**TEXT, "max_tokens": "16"}, 400, "invalid_type", "max_tokens", 'valid integer, got "16"'),
    (T, {**TEXT, "prompt": {"a": 1}}, 400, "invalid_type", "prompt", "string or a valid array"),
    (T, {**TEXT, "prompt": [1, "a"]}, 400, "invalid_type", "prompt[1]", 'valid integer, got "a"'),
    (T, {**TEXT, "stop": 5}, 400, "invalid_type", "stop", "string or a valid array"),
    (E, {**VECTOR, "encoding_format": "hex"}, 400, "invalid_value", "encoding_format", "'float' or 'base64'"),
    # out of range
    (
        C,
        {**CHAT, "temperature": 2.1},
        400,
        "invalid_value",
        "temperature",
        "less than or equal to 2, got 2.1",
    ),
    (C, {**CHAT, "top_p": 0}, 400, "invalid_value", "top_p", "greater than 0"),
    (C, {**CHAT, "n": 0}, 400, "invalid_value", "n", "greater than or equal to 1, got 0"),
    (C, {**CHAT, "n": 129}, 400, "invalid_value", "n", "less than or equal to 128"),
    (C, {**CHAT, "max_tokens": 0}, 400, "invalid_value", "max_tokens", "greater than or equal to 1"),
    (C, {**CHAT, "max_completion_tokens": -1}, 400, "invalid_value", "max_completion_tokens", ""),
    (C, {**CHAT, "top_logprobs": 21, "logprobs": True}, 400, "invalid_value", "top_logprobs", "20"),
    (C, {**CHAT, "top_logprobs": 2}, 400, "invalid_value", "top_logprobs", "needs 'logprobs'"),
    (C, {**CHAT, "stop": ["x"] * 17}, 400, "invalid_value", "stop", "at most 16"),
    (C, {**CHAT, "stop": ""}, 400, "invalid_value", "stop", "1 to 512 characters"),
    (C, {**CHAT, "logit_bias": {"65": 101}}, 400, "invalid_value", "logit_bias", "between -100 and 100"),
    (C, {**CHAT, "logit_bias": {"258": 1}}, 400, "invalid_value", "logit_bias", "0 to 257"),
    (C, {**CHAT, "presence_penalty": -3}, 400, "invalid_value", "presence_penalty", ""),
    (
        C,
        {**CHAT, "stream_options": {"include_usage": True}},
        400,
        "invalid_value",
        "stream_options",
        "'stream'",
    ),
    (T, {**TEXT, "max_tokens": 0}, 400, "invalid_value", "max_tokens", "'echo'"),
    (T, {**TEXT, "prompt": []}, 400, "invalid_value", "prompt", "empty list"),
    (T, {**TEXT, "prompt": ""}, 400, "invalid_value", "prompt", "no tokens"),
    (T, {**TEXT, "prompt": ["a", ""]}, 400, "invalid_value", "prompt[1]", "no tokens"),
    (T, {**TEXT, "prompt": [258]}, 400, "invalid_value", "prompt", "0 to 257"),
    (T, {**TEXT, "prompt": [-1]}, 400, "invalid_value", "prompt[0]", "greater than or equal to 0"),
    (T, {**TEXT, "prompt": ["a"] * 100, "n": 2}, 400, "invalid_value", "n", "more than the 128 answers"),
    (E, {**VECTOR, "dimensions": 5}, 400, "invalid_value", "dimensions", "have 4"),
    (E, {**VECTOR, "input": []}, 400, "invalid_value", "input", "empty list"),
    # the context
    (
        T,
        {**TEXT, "prompt": "x" * 512},
        400,
        "context_length_exceeded",
        "prompt",
        "512 tokens, which leaves no room",
    ),
    (T, {**TEXT, "prompt": "x" * 600}, 400, "context_length_exceeded", "prompt", "at least 89 tokens"),
    (
        T,
        {**TEXT, "prompt": "x" * 500, "max_tokens": 13},
        400,
        "context_length_exceeded",
        "max_tokens",
        "513 tokens (500 in the prompt, 13 in the completion). Reduce either by 1",
    ),
    (
        C,
        {**CHAT, "max_completion_tokens": 512},
        400,
        "context_length_exceeded",
        "max_completion_tokens",
        "533 tokens",
    ),
    (
        C,
        {**CHAT, "messages": [{"role": "user", "content": "x" * 9000}]},
        400,
        "context_length_exceeded",
        "messages",
        "",
    ),
    (E, {**VECTOR, "input": "x" * 513}, 400, "context_length_exceeded", "input", "513 tokens"),
    # what this runtime does not do
    (T, {**TEXT, "suffix": "x"}, 400, "unsupported_parameter", "suffix", ""),
    (T, {**TEXT, "best_of": 2}, 400, "unsupported_parameter", "best_of", "must equal 'n'"),
    # unknown model
    (C, {**CHAT, "model": "gpt-9"}, 404, "model_not_found", "model", f"Known models: {MODEL}."),
    (E, {**VECTOR, "model": "gpt-9"}, 404, "model_not_found", "model", ""),
    # other paths
    ("/tokenize", {"model": MODEL}, 400, "invalid_value", "prompt", "exactly one"),
    ("/detokenize", {"tokens": [999]}, 400, "invalid_value", "tokens", "0 to 257"),
    ("/v1/nothing", {}, 404, "unknown_url", None, "POST /v1/nothing"),
    ("/v1/models", {}, 405, "method_not_allowed", None, "use GET"),
]


async def test_every_bad_request_is_answered_with_its_fault(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=ScriptedEngine(info={"embedding_size": 4})) as bench:
        for path, body, status, code, param, words in CASES:
            got, answer, headers = await bench.post(path, body)
            error = answer["error"]
            assert (got, error["code"], error["param"]) == (status, code, param), (path, body, answer)
            assert words in error["message"], (path, body, answer)
            assert error["type"] == "invalid_request_error"
            assert headers["Content-Type"] == "application/json"
            assert len(error["message"]) < 600
        assert bench.engine.submits == []
        assert bench.engine.embeds == []
        assert (await bench.post(C, CHAT))[0] == 200


async def test_null_is_the_same_as_absent_and_unknown_fields_are_ignored(tmp_path: Path) -> None:
    nothing = dict.fromkeys(
        [
            "n",
            "temperature",
            "top_p",
            "stop",
            "seed",
            "max_tokens",
            "logprobs",
            "stream",
            "stream_options",
            "logit_bias",
        ]
    )
    async with running_runtime(tmp_path) as bench:
        assert (await bench.post(C, {**CHAT, **nothing, "tools": None, "future": [1, {"a": None}]}))[0] == 200
        assert (await bench.post(T, {**TEXT, **nothing, "echo": None}))[0] == 200


async def test_a_body_beyond_the_limit_is_413_declared_or_not(tmp_path: Path) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    async with running_runtime(tmp_path, max_body_bytes=10_000) as bench:
        for data in (b"x" * 20_000, pieces()):
            async with bench.http.post(bench.url + C, data=data) as answer:
                assert answer.status == 413
                error = (await answer.json())["error"]
                assert (error["code"], "10000 bytes" in error["message"]) == ("request_too_large", True)
        assert (await bench.post(C, CHAT))[0] == 200


async def test_a_body_of_ten_megabytes_is_refused_for_its_length_at_once(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, max_body_bytes=32 << 20) as bench:
        quick = asyncio.create_task(_latency(bench))
        status, body, _ = await bench.post(T, {**TEXT, "prompt": "word " * 2_000_000})
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert "10000000 characters" in body["error"]["message"]
        assert await quick < 3.0  # others are answered meanwhile


async def _latency(bench: Any) -> float:
    began = asyncio.get_running_loop().time()
    assert (await bench.post(C, CHAT))[0] == 200
    return asyncio.get_running_loop().time() - began


async def test_keys_are_asked_for_and_probes_stay_open(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, api_keys=("k1", "k2")) as bench:
        for headers in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": "Basic k1"},
            {"Authorization": "Bearer "},
        ):
            status, body, sent = await bench.post(C, CHAT, headers=headers)
            assert (status, body["error"]["code"], sent["WWW-Authenticate"]) == (
                401,
                "invalid_api_key",
                "Bearer",
            )
        assert (await bench.get("/v1/models"))[0] == 401
        for key in ("k1", "k2"):
            assert (await bench.post(C, CHAT, headers={"Authorization": f"Bearer {key}"}))[0] == 200
        for path in ("/livez", "/readyz", "/startupz", "/metrics", "/health", "/version"):
            assert (await bench.get(path))[0] == 200


async def test_parts_of_the_api_that_are_not_served_are_404(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, apis=("completions",)) as bench:
        status, body, _ = await bench.post(C, CHAT)
        assert (status, body["error"]["code"]) == (404, "unsupported_endpoint")
        assert (await bench.post(T, TEXT))[0] == 200


async def test_an_encoder_does_not_generate_and_a_generator_does_not_embed(tmp_path: Path) -> None:
    async with running_runtime(
        tmp_path, engine=ScriptedEngine(info={"generative": False, "embedding_size": 4})
    ) as bench:
        status, body, _ = await bench.post(C, CHAT)
        assert (status, body["error"]["param"]) == (400, "model")
        assert "/v1/embeddings" in body["error"]["message"]
    async with running_runtime(tmp_path) as bench:
        status, body, _ = await bench.post(E, VECTOR)
        assert (status, "makes no embeddings" in body["error"]["message"]) == (400, True)


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    engine = ScriptedEngine(model_dir=str(write_model(tmp_path / "plain", chat_template="")))
    async with running_runtime(tmp_path, engine=engine) as bench:
        status, body, _ = await bench.post(C, CHAT)
        assert (status, "/v1/completions" in body["error"]["message"]) == (400, True)
        assert (await bench.post(T, TEXT))[0] == 200


async def test_what_a_template_refuses_is_the_clients_fault(tmp_path: Path) -> None:
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}x"
    engine = ScriptedEngine(model_dir=str(write_model(tmp_path / "strict", chat_template=template)))
    async with running_runtime(tmp_path, engine=engine) as bench:
        status, body, _ = await bench.post(C, {**CHAT, "messages": [{"role": "system", "content": "s"}]})
        assert (status, "begin with the user" in body["error"]["message"]) == (400, True)


async def test_while_the_model_loads_requests_are_declined_with_the_expected_time(tmp_path: Path) -> None:
    engine = ScriptedEngine(ready=False)
    async with running_runtime(tmp_path, engine=engine, wait=False) as bench:
        await until(lambda: bool(engine.loads))
        engine.send(Progress(RuntimeState.DOWNLOADING, 10, 100, 5, 18))
        await until(lambda: bench.runtime.engine.status().progress is not None)
        status, body, headers = await bench.post(C, CHAT)
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "model_not_ready", "18")
        assert headers["X-LLMOS-Refused"] == "loading"
        assert (await bench.get("/readyz"))[0] == 503
        status, text = await bench.get("/startupz")
        assert (status, text) == (503, "Downloading 10 of 100 bytes")
        assert (await bench.get("/livez"))[0] == 200
        engine.make_ready()
        await until(lambda: not bench.runtime.host.not_ready())
        assert (await bench.post(C, CHAT))[0] == 200
        assert (await bench.get("/startupz"))[0] == 200


async def test_a_model_that_cannot_be_loaded_is_reported_and_the_process_stays(tmp_path: Path) -> None:
    engine = ScriptedEngine(failure=Failed("UnsafeFormat", "model.bin is a pickle"))
    async with running_runtime(tmp_path, engine=engine, wait=False) as bench:
        await until(lambda: bench.runtime.host.state() == "Failed")
        status, body, headers = await bench.post(C, CHAT)
        assert (status, body["error"]["code"], headers["X-LLMOS-Refused"]) == (503, "model_failed", "failed")
        assert "UnsafeFormat: model.bin is a pickle" in body["error"]["message"]
        assert [(await bench.get(path))[0] for path in ("/livez", "/startupz", "/readyz")] == [200, 200, 503]
        report = bench.runtime.host.status()
        assert report.failure is not None
        assert (report.state, report.failure.reason, report.failure.permanent) == (
            "Failed",
            "UnsafeFormat",
            True,
        )


@pytest.mark.parametrize("fault", ["no tokenizer", "broken template"])
async def test_a_model_whose_files_the_front_cannot_use_has_failed(tmp_path: Path, fault: str) -> None:
    folder = write_model(tmp_path / "bad", chat_template="{% if %}")
    if fault == "no tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    async with running_runtime(tmp_path, engine=ScriptedEngine(model_dir=str(folder)), wait=False) as bench:
        await until(lambda: bench.runtime.host.state() == "Failed")
        failure = bench.runtime.host.failure()
        assert failure is not None
        assert failure.reason == "Unsupported"
        assert fault.rsplit(maxsplit=1)[-1] in failure.message

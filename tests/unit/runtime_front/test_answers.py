"""The serving API with OpenAI's shapes, over real connections and a scripted engine."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.runtime.ipc import RequestOutput
from tests.support.engine import EOS, MODEL, ScriptedEngine, running_runtime, tokens_of, write_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": MODEL, "prompt": "Hi"}
# <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n
PROMPT_TOKENS = len("user\nHi\nassistant\n") + 3


async def test_a_chat_is_answered_with_text_usage_and_reason(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        status, body, _ = await bench.post("/v1/chat/completions", CHAT)
        assert status == 200
        assert body["object"] == "chat.completion"
        assert body["id"].startswith("chatcmpl-")
        assert body["model"] == MODEL
        assert body["system_fingerprint"] == "llmos-bf16-abababab"
        assert body["choices"] == [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "The capital of France is Paris.",
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        # The special tokens of the template are one token each, and the end token counts as made.
        assert body["usage"] == {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": 32,
            "total_tokens": PROMPT_TOKENS + 32,
            "prompt_tokens_details": {"cached_tokens": 3},
        }


async def test_the_engine_gets_the_rendered_conversation_and_the_rest_of_the_context(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        await bench.post("/v1/chat/completions", CHAT)
        submit = bench.engine.submits[0]
        assert submit.prompt[:5] == (256, *b"user")
        assert submit.prompt[-10:] == tuple(b"assistant\n")
        assert submit.sampling.max_tokens == 512 - len(submit.prompt)
        assert (submit.sampling.temperature, submit.sampling.top_p, submit.sampling.seed) == (1.0, 1.0, None)


async def test_parts_of_text_are_joined_and_other_parts_refused(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        parts: list[Any] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        await bench.post("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": parts}]})
        assert bytes(t for t in bench.engine.submits[0].prompt if t < 256).startswith(b"user\na\nb")
        parts.append({"type": "image_url", "image_url": {"url": "http://x"}})
        status, body, _ = await bench.post(
            "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": parts}]}
        )
        assert (status, body["error"]["param"]) == (400, "messages[0].content[2]")


async def test_a_stream_begins_with_the_role_and_ends_with_done(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        events = await bench.events("/v1/chat/completions", CHAT)
        assert events[0]["choices"] == [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ]
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1])
        assert text == "The capital of France is Paris."
        assert {e["object"] for e in events[:-1]} == {"chat.completion.chunk"}
        assert len({e["id"] for e in events[:-1]}) == 1
        assert all("usage" not in e for e in events[:-1])


async def test_a_stream_tells_usage_when_asked(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        events = await bench.events(
            "/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}
        )
        assert all(e["usage"] is None for e in events[:-2])
        assert events[-2]["choices"] == []
        assert events[-2]["usage"]["completion_tokens"] == 32
        both = {"include_usage": True, "continuous_usage_stats": True}
        events = await bench.events("/v1/chat/completions", {**CHAT, "stream_options": both})
        assert events[-3]["usage"]["completion_tokens"] == 32


async def test_a_character_is_never_cut_in_a_stream(tmp_path: Path) -> None:
    text = "Grüße 😀👩‍👧 日本 ok"
    async with running_runtime(tmp_path, engine=ScriptedEngine(text=text)) as bench:
        events = await bench.events("/v1/completions", {**TEXT, "max_tokens": 100})
        pieces = [e["choices"][0]["text"] for e in events[:-1]]
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


async def test_an_answer_cut_inside_a_character_shows_it_as_broken(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=ScriptedEngine(text="a😀")) as bench:
        _, body, _ = await bench.post("/v1/completions", {**TEXT, "max_tokens": 3})
        assert body["choices"][0]["text"] == "a\ufffd"
        assert body["choices"][0]["finish_reason"] == "length"


async def test_text_completions_have_their_own_shape_and_default_length(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        _, body, _ = await bench.post("/v1/completions", TEXT)
        assert body["object"] == "text_completion"
        assert body["id"].startswith("cmpl-")
        assert body["choices"] == [
            {"index": 0, "text": "The capital of F", "logprobs": None, "finish_reason": "length"}
        ]
        assert body["usage"]["completion_tokens"] == 16


async def test_several_prompts_and_n_give_answers_in_order(tmp_path: Path) -> None:
    engine = ScriptedEngine(text=lambda submit: "for " + bytes(submit.prompt).decode())
    async with running_runtime(tmp_path, engine=engine) as bench:
        request = {**TEXT, "prompt": ["one", "two"], "n": 2, "seed": 7}
        _, body, _ = await bench.post("/v1/completions", request)
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "for one"),
            (1, "for one"),
            (2, "for two"),
            (3, "for two"),
        ]
        assert [s.sampling.seed for s in engine.submits] == [7, 8, 7, 8]
        assert body["usage"]["prompt_tokens"] == 6
        events = await bench.events("/v1/completions", request)
        texts = dict.fromkeys(range(4), "")
        for event in events[:-1]:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert list(texts.values()) == ["for one", "for one", "for two", "for two"]


@pytest.mark.parametrize("prompt", [[72, 105], [[72, 105]]])
async def test_prompts_may_be_tokens(tmp_path: Path, prompt: Any) -> None:
    async with running_runtime(tmp_path) as bench:
        status, _, _ = await bench.post("/v1/completions", {**TEXT, "prompt": prompt})
        assert status == 200
        assert bench.engine.submits[0].prompt == (72, 105)


async def test_a_stop_text_ends_the_answer_before_it_and_the_engine_at_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = asyncio.create_task(bench.post("/v1/chat/completions", {**CHAT, "stop": ["of Fr", "zzz"]}))
        while not asked.done():
            engine.step()
            await asyncio.sleep(0.002)
        _, body, _ = asked.result()
        assert body["choices"][0]["message"]["content"] == "The capital "
        assert body["choices"][0]["finish_reason"] == "stop"
        assert engine.cancelled == [engine.submits[0].request_id]


async def test_a_stop_text_may_be_kept(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        _, body, _ = await bench.post(
            "/v1/chat/completions", {**CHAT, "stop": "capital", "include_stop_str_in_output": True}
        )
        assert body["choices"][0]["message"]["content"] == "The capital"


async def test_what_looked_like_a_stop_text_and_was_none_is_shown(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        events = await bench.events(
            "/v1/completions", {**TEXT, "max_tokens": 99, "stop": ["Paris!", "is Pariz"]}
        )
        assert "".join(e["choices"][0]["text"] for e in events[:-1]) == "The capital of France is Paris."


async def test_sampling_reaches_the_engine(tmp_path: Path) -> None:
    fields = {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": -5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"65": 3, "66": -100},
        "stop_token_ids": [10],
        "ignore_eos": True,
        "min_tokens": 2,
        "max_tokens": 5,
    }
    async with running_runtime(tmp_path) as bench:
        await bench.post("/v1/completions", {**TEXT, **fields, "user": "alice", "unknown": {"a": 1}})
        submit = bench.engine.submits[0]
        sampling = submit.sampling
        assert submit.tenant == "alice"
        assert sampling.logit_bias == ((65, 3.0), (66, -100.0))
        assert sampling.stop_token_ids == (10,)
        for name in set(fields) - {"logit_bias", "stop_token_ids"}:
            assert getattr(sampling, name) == fields[name], name


async def test_the_authors_sampling_holds_where_the_request_is_silent(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    folder = write_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "top_p": null, "eos_token_id": 1}'
    )
    engine.model_dir = str(folder)
    async with running_runtime(tmp_path, engine=engine) as bench:
        await bench.post("/v1/completions", TEXT)
        await bench.post("/v1/completions", {**TEXT, "temperature": 0})
        assert [(s.sampling.temperature, s.sampling.top_k) for s in engine.submits] == [(0.6, 20), (0.0, 20)]


async def test_chat_logprobs(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=ScriptedEngine(text="é")) as bench:
        request = {**CHAT, "logprobs": True, "top_logprobs": 2}
        _, body, _ = await bench.post("/v1/chat/completions", request)
        content = body["choices"][0]["logprobs"]["content"]
        assert [(one["logprob"], one["bytes"]) for one in content] == [(-0.5, [0xC3]), (-0.5, [0xA9])]
        assert [one["bytes"] for one in content[0]["top_logprobs"]] == [[0xC3], [0xC4]]
        events = await bench.events("/v1/chat/completions", request)
        found = [e["choices"][0]["logprobs"] for e in events[:-1] if e["choices"][0]["logprobs"]]
        assert [one["bytes"] for part in found for one in part["content"]] == [[0xC3], [0xA9]]
        assert bench.engine.submits[0].sampling.logprobs == 2


async def test_completion_logprobs_with_echo(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, engine=ScriptedEngine(text="ok")) as bench:
        request = {**TEXT, "logprobs": 1, "echo": True}
        _, body, _ = await bench.post("/v1/completions", request)
        choice = body["choices"][0]
        assert choice["text"] == "Hiok"
        assert choice["logprobs"] == {
            "tokens": ["H", "i", "o", "k"],
            "token_logprobs": [None, -0.5, -0.5, -0.5],
            "top_logprobs": [None, {"i": -0.5}, {"o": -0.5}, {"k": -0.5}],
            "text_offset": [0, 1, 2, 3],
        }
        events = await bench.events("/v1/completions", request)
        assert "".join(e["choices"][0]["text"] for e in events[:-1]) == "Hiok"
        parts = [e["choices"][0]["logprobs"] for e in events[:-1] if e["choices"][0]["logprobs"]]
        assert [offset for part in parts for offset in part["text_offset"]] == [0, 1, 2, 3]


async def test_echo_without_tokens_scores_the_prompt_only(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        _, body, _ = await bench.post(
            "/v1/completions", {**TEXT, "max_tokens": 0, "echo": True, "logprobs": 0}
        )
        choice = body["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
        assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
        assert body["usage"]["completion_tokens"] == 0


async def test_special_tokens_are_hidden_unless_asked_for(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine._next = lambda submit, *_: RequestOutput(submit.request_id, (65, 256, 66), finish_reason="length")
    async with running_runtime(tmp_path, engine=engine) as bench:
        assert (await bench.post("/v1/completions", TEXT))[1]["choices"][0]["text"] == "AB"
        shown = {**TEXT, "skip_special_tokens": False}
        assert (await bench.post("/v1/completions", shown))[1]["choices"][0]["text"] == "A<|im_start|>B"


async def test_embeddings_as_numbers_and_as_base64(tmp_path: Path) -> None:
    engine = ScriptedEngine(info={"embedding_size": 4})
    async with running_runtime(tmp_path, engine=engine) as bench:
        request = {"model": MODEL, "input": ["a", "bcd"]}
        _, body, _ = await bench.post("/v1/embeddings", request)
        assert body["object"] == "list"
        assert [one["embedding"] for one in body["data"]] == [
            [1.0, 1.125, 1.25, 1.375],
            [3.0, 3.125, 3.25, 3.375],
        ]
        assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
        _, body, _ = await bench.post(
            "/v1/embeddings", {**request, "encoding_format": "base64", "dimensions": 2}
        )
        raw = base64.b64decode(body["data"][1]["embedding"])
        assert struct.unpack("<2f", raw) == (3.0, 3.125)
        _, body, _ = await bench.post("/v1/embeddings", {"model": MODEL, "input": [1, 2, 3]})
        assert engine.embeds[-1].inputs == ((1, 2, 3),)


async def test_tokenize_and_detokenize_are_inverse(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        _, body, _ = await bench.post("/tokenize", {"model": MODEL, "prompt": "Grüße"})
        assert body == {"count": 7, "max_model_len": 512, "tokens": list(tokens_of("Grüße"))}
        _, body, _ = await bench.post("/v1/detokenize", {"model": MODEL, "tokens": [*body["tokens"], EOS]})
        assert body == {"prompt": "Grüße<|im_end|>"}
        _, body, _ = await bench.post("/tokenize", {"messages": CHAT["messages"]})
        assert body["tokens"][0] == 256


async def test_models_and_openapi_are_served(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        for path in ("/v1/models/test/model", "/v1/models/test%2Fmodel"):
            status, text = await bench.get(path)
            assert (status, '"max_model_len":512' in text) == (200, True)
        assert (await bench.get("/v1/models/other"))[0] == 404
        status, text = await bench.get("/openapi.json")
        assert status == 200
        document = json.loads(text)
        body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
        assert "messages" in document["components"]["schemas"]["ChatRequest"]["properties"]
        assert "Message" in document["components"]["schemas"]

"""The routes for sound and for classes around a scripted engine: what is asked of it, and what clients get."""

from __future__ import annotations

import asyncio
import json
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest

from tests.support import speech
from tests.support.engine import MODEL, RuntimeBench, ScriptedEngine, running_runtime, until
from tests.support.speech import WINDOW_SAMPLES, samples, wav, write_speech_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

T = "/v1/audio/transcriptions"
INFO = {
    "architecture": "WhisperForConditionalGeneration",
    "apis": ("transcriptions",),
    "window_samples": WINDOW_SAMPLES,
    "max_model_len": speech.CONTEXT,
    "vocab_size": speech.VOCABULARY,
    "eos_token_ids": (speech.END,),
}
SHORT = wav(samples(0.5))
LONG = wav(samples(3.0))


@asynccontextmanager
async def _speech(folder: Path, **arguments: Any) -> AsyncIterator[tuple[RuntimeBench, openai.AsyncOpenAI]]:
    options = {name: arguments.pop(name) for name in ("text", "manual") if name in arguments}
    engine = ScriptedEngine(model_dir=str(write_speech_tokenizer(folder / "speech")), info=INFO, **options)
    async with (
        running_runtime(folder, engine=engine, **arguments) as bench,
        openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="key", max_retries=0, timeout=90) as client,
    ):
        yield bench, client


def _form(sound: bytes = SHORT, **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", sound, filename="a.wav", content_type="audio/wav")
    for name, value in {"model": MODEL, **fields}.items():
        form.add_field(name, value)
    return form


async def _ask(bench: RuntimeBench, sound: bytes = SHORT, **fields: str) -> tuple[int, str]:
    async with bench.http.post(bench.url + T, data=_form(sound, **fields)) as answer:
        return answer.status, await answer.text()


async def test_openais_client_gets_text(tmp_path: Path) -> None:
    async with _speech(tmp_path, text=" Paris.") as (bench, client):
        found = await client.audio.transcriptions.create(model=MODEL, file=("a.wav", SHORT), language="en")
        assert found.text == "Paris."
        assert found.usage is not None
        assert (found.usage.type, found.usage.seconds) == ("duration", 1)  # type: ignore[union-attr]
        (submit,) = bench.engine.submits
        assert submit.audio == samples(0.5)
        assert submit.prompt == (speech.START, speech.FIRST_LANGUAGE, speech.TRANSCRIBE, speech.NO_TIMES)
        assert (submit.script, submit.times, submit.sampling.temperature) == ((), False, 0.0)
        assert submit.sampling.max_tokens == speech.CONTEXT - 4
        assert bench.metric("llmos_runtime_audio_seconds_total") == pytest.approx(0.5)


async def test_openais_client_translates_and_streams(tmp_path: Path) -> None:
    async with _speech(tmp_path, text=" Paris.") as (bench, client):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # OpenAI's own model for it ends; the route stays
            translated = await client.audio.translations.create(model=MODEL, file=("a.wav", SHORT))
        assert translated.text == "Paris."
        assert bench.engine.submits[0].script[1:] == ((speech.TRANSLATE,), (speech.NO_TIMES,))
        stream = await client.audio.transcriptions.create(model=MODEL, file=("a.wav", SHORT), stream=True)
        events = [event async for event in stream]
        assert "".join(event.delta for event in events[:-1]) == "Paris."  # type: ignore[union-attr]
        assert (events[-1].type, events[-1].text) == ("transcript.text.done", "Paris.")  # type: ignore[union-attr]


async def test_text_before_the_sound_is_cut_to_half_of_the_context(tmp_path: Path) -> None:
    async with _speech(tmp_path, text=" x") as (bench, _):
        assert (await _ask(bench, language="en", prompt="x" * 100 + "END"))[0] == 200
        prompt = bench.engine.submits[0].prompt
        assert prompt[0] == speech.BEFORE
        assert bytes(prompt[1:-4])[-3:] == b"END"
        assert len(prompt) == speech.CONTEXT // 2 + 4


async def test_a_long_recording_has_one_language_and_its_windows_are_paced(tmp_path: Path) -> None:
    async with _speech(tmp_path, manual=True, text=" one") as (bench, _):
        engine = bench.engine
        asking = asyncio.create_task(_ask(bench, LONG))
        await until(lambda: len(engine.submits) == 1)
        assert engine.submits[0].script == (tuple(range(258, 261)),)
        engine.send(_output(engine, speech.FIRST_LANGUAGE + 1))
        await until(lambda: len(engine.submits) == 5)
        assert {submit.prompt[1] for submit in engine.submits[1:]} == {speech.FIRST_LANGUAGE + 1}
        while not asking.done():
            assert len(engine.running) <= 4
            engine.step()
            await asyncio.sleep(0)
        status, text = await asking
        assert status == 200
        windows = len(engine.submits) - 1
        assert json.loads(text)["text"] == " ".join(["one"] * windows)
        assert b"".join(submit.audio for submit in engine.submits[1:]) == samples(3.0)


def _output(engine: ScriptedEngine, token: int) -> Any:
    """End the one running request with a token."""
    from llmos_operator.runtime.ipc import RequestOutput, StepOutput, TokenLogprob  # noqa: PLC0415

    (request,) = engine.running
    engine.running.clear()
    return StepOutput(
        (RequestOutput(request, (token,), finish_reason="length", logprobs=(TokenLogprob(token, -0.1),)),)
    )


async def test_windows_are_streamed_in_their_order(tmp_path: Path) -> None:
    async with _speech(tmp_path, manual=True, text=" ab") as (bench, client):
        engine = bench.engine
        stream = asyncio.create_task(
            client.audio.transcriptions.create(
                model=MODEL, file=("a.wav", wav(samples(1.1))), stream=True, language="en"
            )
        )
        await until(lambda: len(engine.submits) == 2)
        first = engine.running.pop(engine.submits[0].request_id)
        engine.step(9)  # the second window is complete before the first has a word
        engine.running[engine.submits[0].request_id] = first
        engine.step(9)
        events = [event async for event in await stream]
        assert events[-1].text == "ab ab"  # type: ignore[union-attr]
        assert "".join(event.delta for event in events[:-1]) == "ab ab"  # type: ignore[union-attr]


async def test_answers_come_in_all_formats(tmp_path: Path) -> None:
    t = speech.TIMES_FROM

    async with _speech(tmp_path, manual=True) as (bench, _):
        for kind in ("text", "json", "verbose_json", "srt", "vtt"):
            asking = asyncio.create_task(_ask(bench, language="de", response_format=kind))
            await until(lambda: bool(bench.engine.running))
            (request,) = bench.engine.running
            bench.engine.running.clear()
            timed = bench.engine.submits[-1].times
            assert timed == (kind in {"verbose_json", "srt", "vtt"})
            tokens = (t, 32, 72, 105, t + 20) if timed else (32, 72, 105)
            bench.engine.send(_spoken(request, tokens))
            status, text = await asking
            assert status == 200, text
            if kind == "text":
                assert text == "Hi\n"
            elif kind == "srt":
                assert text == "1\n00:00:00,000 --> 00:00:00,400\nHi\n"
            elif kind == "vtt":
                assert text == "WEBVTT\n\n00:00:00.000 --> 00:00:00.400\nHi\n"
            else:
                assert json.loads(text)["text"] == "Hi"
            if kind == "verbose_json":
                found = json.loads(text)
                assert (found["language"], found["duration"], found["task"]) == ("de", 0.5, "transcribe")
                assert [(one["start"], one["end"], one["text"]) for one in found["segments"]] == [
                    (0.0, 0.4, " Hi")
                ]


def _spoken(request: str, tokens: tuple[int, ...]) -> Any:
    from llmos_operator.runtime.ipc import RequestOutput, StepOutput, TokenLogprob  # noqa: PLC0415

    scores = tuple(TokenLogprob(token, -0.5) for token in tokens)
    output = RequestOutput(request, tokens, finish_reason="stop", stop_token=speech.END, logprobs=scores)
    return StepOutput((output,))


async def test_a_client_that_leaves_ends_its_windows(tmp_path: Path) -> None:
    async with _speech(tmp_path, manual=True) as (bench, _):
        asking = asyncio.create_task(_ask(bench, LONG, language="en"))
        await until(lambda: len(bench.engine.submits) == 4)
        asking.cancel()
        await until(lambda: len(bench.engine.cancelled) == 4)
        await until(lambda: bench.runtime.admission.inside == 0)
        assert len(bench.engine.submits) == 4, "what was not begun never is"


async def test_a_crash_of_the_engine_is_told(tmp_path: Path) -> None:
    async with _speech(tmp_path, manual=True) as (bench, _):
        asking = asyncio.create_task(_ask(bench, language="en"))
        await until(lambda: bool(bench.engine.running))
        bench.engine.crash()
        status, text = await asking
        assert (status, json.loads(text)["error"]["code"]) == (503, "engine_lost")


@pytest.mark.parametrize(
    ("sound", "fields", "param"),
    [
        (b"no sound", {}, "file"),
        (SHORT, {"language": "xx"}, "language"),
        (SHORT, {"response_format": "xml"}, "response_format"),
        (
            SHORT,
            {"timestamp_granularities[]": "word", "response_format": "verbose_json"},
            "timestamp_granularities",
        ),
    ],
)
async def test_refusals_name_the_field(
    tmp_path: Path, sound: bytes, fields: dict[str, str], param: str
) -> None:
    async with _speech(tmp_path) as (bench, _):
        status, text = await _ask(bench, sound, **fields)
        assert (status, json.loads(text)["error"]["param"]) == (400, param)
        assert bench.engine.submits == []


async def test_limits_of_bytes_and_seconds(tmp_path: Path) -> None:
    async with _speech(tmp_path, max_audio_bytes=40_000, max_body_bytes=2000, max_audio_seconds=1) as (
        bench,
        _,
    ):
        assert (await _ask(bench, wav(samples(1.0))))[0] == 200
        status, text = await _ask(bench, wav(samples(1.1)))
        assert (status, json.loads(text)["error"]["code"]) == (400, "audio_too_long")
        status, text = await _ask(bench, bytes(45_000))
        assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")


async def test_each_model_answers_its_own_routes_alone(tmp_path: Path) -> None:
    async with _speech(tmp_path) as (bench, _):
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        status, found, _ = await bench.post("/v1/chat/completions", chat)
        assert (status, T in found["error"]["message"]) == (400, True)
        status, found, _ = await bench.post("/classify", {"model": MODEL, "input": "Hi"})
        assert (status, T in found["error"]["message"]) == (400, True)
    async with running_runtime(tmp_path) as bench:
        status, text = await _ask(bench)
        assert (status, "/v1/chat/completions" in json.loads(text)["error"]["message"]) == (400, True)
    async with _speech(tmp_path, apis=("chat",)) as (bench, _):
        status, text = await _ask(bench)
        assert (status, json.loads(text)["error"]["code"]) == (404, "unsupported_endpoint")


async def test_texts_are_classified(tmp_path: Path) -> None:
    info = {"generative": False, "embedding_size": 3, "labels": ("a", "b", "c"), "apis": ("classify",)}
    async with running_runtime(tmp_path, engine=ScriptedEngine(info=info)) as bench:
        status, found, _ = await bench.post("/classify", {"model": MODEL, "input": ["x", "four"]})
        assert status == 200
        assert [one.classify for one in bench.engine.embeds] == [True]
        assert [(one["index"], one["label"], one["num_classes"]) for one in found["data"]] == [
            (0, "c", 3),
            (1, "c", 3),
        ]
        assert found["data"][0]["probs"] == [1.0, 1.125, 1.25]
        assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        status, found, _ = await bench.post("/v1/embeddings", {"model": MODEL, "input": "x"})
        assert (status, "/classify" in found["error"]["message"]) == (400, True)
        status, found, _ = await bench.post("/classify", {"model": MODEL, "input": []})
        assert (status, found["error"]["param"]) == (400, "input")

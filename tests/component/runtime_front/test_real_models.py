"""The runtime as a process with real models: what a client of a workload sees."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.support.models import CHAT, SENTENCES, packaged
from tests.support.served import LOAD_SECONDS, runtime_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
MIB = 1 << 20


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:  # noqa: PTH123 - a kernel file
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def test_a_chat_model_answers_streams_stops_and_leaves_cleanly(tmp_path: Path) -> None:
    with runtime_process(tmp_path, str(packaged(CHAT)), "127.99.8.1", LLMOS_FORMAT="bf16") as served:
        chat = served.client.chat.completions
        found = chat.create(model="m", messages=QUESTION, temperature=0, max_tokens=24)
        assert "Paris" in (found.choices[0].message.content or "")
        assert found.choices[0].finish_reason == "stop"
        stream = chat.create(model="m", messages=QUESTION, temperature=0, max_tokens=24, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert streamed == found.choices[0].message.content

        report = served.report()
        assert (report["state"], report["model"]["format"]) == ("Ready", "bf16")
        assert report["memory"]["measuredBytes"] > 200 * MIB

        # A client that leaves: the engine runs nothing for it any more.
        long = chat.create(
            model="m", messages=QUESTION, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(long))
        long.close()
        # Figures come once a second: what counts is that it ended as aborted, long before its 2000 tokens.
        eventually(
            lambda: served.report()["requests"]["aborted"] == 1, "the abandoned answer was cancelled", 10.0
        )
        eventually(lambda: served.report()["requests"]["running"] == 0, "nothing runs any more", 10.0)
        assert served.report()["requests"]["generationTokens"] < 500

        # The front with a tokenizer loaded, after requests: its idle budget.
        assert _rss(served.process.pid) < 120 * MIB

        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                chat.create(model="m", messages=QUESTION, max_tokens=40, extra_body={"ignore_eos": True})
            )
        )
        asking.start()
        eventually(lambda: served.report()["requests"]["running"] == 1, "the last request runs")
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: served.status_of("/readyz") != 200, "not ready at once", 10.0)
        assert served.process.wait(60) == 0
        asking.join(10)
        assert answers[0].choices[0].finish_reason == "length"
        assert answers[0].usage.completion_tokens == 40, "its grace was not over"


def test_sentences_that_mean_the_same_are_close(tmp_path: Path) -> None:
    with runtime_process(tmp_path, str(packaged(SENTENCES)), "127.99.8.2") as served:
        texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell sharply."]
        vectors = [one.embedding for one in served.client.embeddings.create(model="m", input=texts).data]
        plain = served.client.embeddings.create(model="m", input=texts, encoding_format="float")
        assert [one.embedding for one in plain.data] == vectors
        short = served.client.embeddings.create(model="m", input=texts, dimensions=64)
        assert [len(one.embedding) for one in short.data] == [64] * 3
        assert short.usage.prompt_tokens == plain.usage.prompt_tokens > 12
        with pytest.raises(openai.BadRequestError):
            served.client.embeddings.create(model="m", input=[])

        def closeness(one: list[float], other: list[float]) -> float:
            return sum(a * b for a, b in zip(one, other, strict=True))

        assert len(vectors[0]) == 384
        assert closeness(vectors[0], vectors[0]) == pytest.approx(1.0, abs=1e-3)
        assert closeness(vectors[0], vectors[1]) > 0.4
        assert closeness(vectors[0], vectors[2]) < 0.2
        with pytest.raises(openai.BadRequestError, match="generates no text"):
            served.client.chat.completions.create(model="m", messages=QUESTION)


def test_a_model_that_is_not_there_leaves_the_process_up_and_the_reason_readable(tmp_path: Path) -> None:
    with runtime_process(tmp_path, str(tmp_path / "nothing"), "127.99.8.3", ready=False) as served:
        eventually(lambda: served.status_of("/livez") == 200, "the ports are open", 60.0)
        eventually(lambda: served.report()["state"] == "Failed", "the failure is reported", LOAD_SECONDS)
        failure = served.report()["failure"]
        assert failure["permanent"] is True
        assert failure["message"]
        assert [served.status_of(path) for path in ("/livez", "/startupz", "/readyz")] == [200, 200, 503]
        with pytest.raises(openai.InternalServerError, match=failure["reason"]):
            served.client.chat.completions.create(model="m", messages=QUESTION)
        assert served.process.poll() is None

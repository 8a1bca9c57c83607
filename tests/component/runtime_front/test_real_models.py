"""The runtime as a process with real models: what a client of a workload sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.support.models import CHAT, SENTENCES, packaged
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.model

LOAD_SECONDS = 240.0
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
MIB = 1 << 20


class Served:
    """A runtime process."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process = process
        self.url = f"http://{host}:{port}"
        self.control = f"http://{host}:{port + 1}/control/v1"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0, timeout=120)

    def status_of(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310 - loopback
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def report(self) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.control}/status", headers={"Authorization": "Bearer t"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - loopback
            found: dict[str, Any] = json.loads(answer.read())
        return found


@contextmanager
def _runtime(
    folder: Path, model: str, host: str, *, ready: bool = True, **environment: str
) -> Iterator[Served]:
    port = 18800
    env = {
        **os.environ,
        "LLMOS_MODEL_URI": f"file://{model}",
        "LLMOS_MODEL_NAME": "m",
        "LLMOS_ALLOW_FILE": "true",
        "LLMOS_HOST": host,
        "LLMOS_PORT": str(port),
        "LLMOS_CONTROL_PORT": str(port + 1),
        "LLMOS_CONTROL_TOKEN": "t",
        "LLMOS_CACHE_DIR": str(folder / "cache"),
        "LLMOS_GRACE_SECONDS": "20",
        "LLMOS_MAX_NUM_SEQS": "4",
        "LLMOS_MEMORY_LIMIT_BYTES": str(1200 * MIB),
        "NVIDIA_VISIBLE_DEVICES": "void",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    with (folder / "runtime.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "llmos_operator", "runtime"], env=env, stderr=log)
    served = Served(process, host, port)
    try:
        if ready:
            eventually(lambda: served.status_of("/readyz") == 200, "the model is ready", LOAD_SECONDS)
        yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:  # noqa: PTH123 - a kernel file
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def test_a_chat_model_answers_streams_stops_and_leaves_cleanly(tmp_path: Path) -> None:
    with _runtime(tmp_path, str(packaged(CHAT)), "127.99.8.1", LLMOS_FORMAT="bf16") as served:
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
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: served.status_of("/readyz") != 200, "not ready at once", 2.0)
        assert served.process.wait(30) == 0
        asking.join(10)
        assert answers[0].choices[0].finish_reason == "length"
        assert answers[0].usage.completion_tokens == 40
        assert time.monotonic() - began < 20


def test_sentences_that_mean_the_same_are_close(tmp_path: Path) -> None:
    with _runtime(tmp_path, str(packaged(SENTENCES)), "127.99.8.2") as served:
        texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell sharply."]
        vectors = [one.embedding for one in served.client.embeddings.create(model="m", input=texts).data]
        plain = served.client.embeddings.create(model="m", input=texts, encoding_format="float")
        assert [one.embedding for one in plain.data] == vectors

        def closeness(one: list[float], other: list[float]) -> float:
            return sum(a * b for a, b in zip(one, other, strict=True))

        assert len(vectors[0]) == 384
        assert closeness(vectors[0], vectors[0]) == pytest.approx(1.0, abs=1e-3)
        assert closeness(vectors[0], vectors[1]) > 0.4
        assert closeness(vectors[0], vectors[2]) < 0.2
        with pytest.raises(openai.BadRequestError, match="generates no text"):
            served.client.chat.completions.create(model="m", messages=QUESTION)


def test_a_model_that_is_not_there_leaves_the_process_up_and_the_reason_readable(tmp_path: Path) -> None:
    with _runtime(tmp_path, str(tmp_path / "nothing"), "127.99.8.3", ready=False) as served:
        eventually(lambda: served.status_of("/livez") == 200, "the ports are open", 60.0)
        eventually(lambda: served.report()["state"] == "Failed", "the failure is reported", LOAD_SECONDS)
        failure = served.report()["failure"]
        assert failure["permanent"] is True
        assert failure["message"]
        assert [served.status_of(path) for path in ("/livez", "/startupz", "/readyz")] == [200, 200, 503]
        with pytest.raises(openai.InternalServerError, match=failure["reason"]):
            served.client.chat.completions.create(model="m", messages=QUESTION)
        assert served.process.poll() is None

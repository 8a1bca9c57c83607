"""Speech and classes through a whole runtime process: the text of its routes is the one transformers makes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import requests
import torch

from tests.support import speech
from tests.support.models import write_classifier
from tests.support.served import runtime_process
from tests.support.speech_reference import greedy
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

LABELS = ("calm", "glad", "sad")


def _text(reference: Any, sound: bytes) -> str:
    """What transformers writes down, without times and other special tokens."""
    prompt = (speech.START, speech.FIRST_LANGUAGE + 1, speech.TRANSCRIBE, speech.NO_TIMES)
    found = greedy(reference, sound, prompt, speech.CONTEXT - len(prompt), times=False)
    return bytes(token for token in found if token < speech.END).decode("utf-8", "replace").strip()


def test_a_speech_model_writes_down_what_transformers_does(tmp_path: Path) -> None:
    model = tmp_path / "m"
    reference = speech.write_whisper(model)
    with runtime_process(tmp_path, str(model), "127.99.8.9", LLMOS_FORMAT="fp32") as served:
        route = f"{served.url}/v1/audio/transcriptions"
        sounds = [speech.samples(0.7, seed) for seed in (1, 2, 3)]
        for sound in sounds:
            found = served.client.audio.transcriptions.create(
                model="m", file=("a.wav", speech.wav(sound)), language="de"
            )
            assert found.text == _text(reference, sound)

        long = speech.wav(speech.samples(2.5))
        verbose = served.client.audio.transcriptions.create(
            model="m", file=("a.wav", long), response_format="verbose_json"
        )
        assert verbose.language in speech.LANGUAGES
        assert verbose.duration == 2.5
        assert verbose.segments
        assert all(0 <= one.start <= one.end <= 2.5 for one in verbose.segments)
        assert [one.start for one in verbose.segments] == sorted(one.start for one in verbose.segments)

        eventually(lambda: served.report()["requests"]["finished"] >= 7, "all windows are counted", 90.0)
        report = served.report()
        assert report["memory"]["measuredBytes"] < 1.2 * report["memory"]["predictedBytes"]

        with requests.post(
            route,
            files={"file": ("a.wav", long)},
            data={"model": "m", "stream": "true"},
            stream=True,
            timeout=60,
        ) as leaving:
            next(leaving.iter_lines())
        eventually(lambda: served.report()["requests"]["running"] == 0, "nothing runs any more", 90.0)
        metrics = requests.get(f"{served.url}/metrics", timeout=10).text
        assert "llmos_runtime_audio_seconds_total" in metrics


def test_a_classifier_answers_as_a_plain_forward(tmp_path: Path) -> None:
    reference = write_classifier(tmp_path / "m", "bert", LABELS)
    speech.write_speech_tokenizer(tmp_path / "m")
    with runtime_process(tmp_path, str(tmp_path / "m"), "127.99.8.10", LLMOS_FORMAT="fp32") as served:
        answer = requests.post(
            f"{served.url}/classify", json={"model": "m", "input": ["Hello", "bye"]}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        for entry, text in zip(answer.json()["data"], ("Hello", "bye"), strict=True):
            with torch.no_grad():
                expected = reference(torch.tensor([list(text.encode())])).logits[0].softmax(-1).tolist()
            assert entry["probs"] == pytest.approx(expected, abs=1e-5)
            assert entry["label"] == LABELS[expected.index(max(expected))]
        refused = requests.post(f"{served.url}/v1/embeddings", json={"model": "m", "input": "x"}, timeout=60)
        assert refused.status_code == 400
        assert "/classify" in json.loads(refused.content)["error"]["message"]


@pytest.mark.parametrize(("environment", "told"), [({"LLMOS_FORMAT": "int8"}, "not served at format int8")])
def test_what_such_models_cannot_be_served_with_is_told(
    tmp_path: Path, environment: dict[str, str], told: str
) -> None:
    speech.write_whisper(tmp_path / "m")
    with runtime_process(tmp_path, str(tmp_path / "m"), "127.99.8.11", ready=False, **environment) as served:
        eventually(lambda: served.status_of("/startupz") == 200, "the load has failed", 240.0)
        failure = served.report()["failure"]
        assert failure["reason"] == "Unsupported"
        assert told in failure["message"]

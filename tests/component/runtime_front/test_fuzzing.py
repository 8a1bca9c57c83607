"""The serving API fuzzed by its own description, against a whole runtime: no 5xx, no dead engine.

The model is a tiny one of zeros, so that every answer is quick; front, engine, grammar compiler and HTTP are the real
ones. Examples are the same in every run.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.support.engine import write_model
from tests.support.models import write_classifier
from tests.support.pairs import write_tokenizer
from tests.support.served import Served, runtime_process
from tests.support.speech import samples, wav, write_whisper
from tests.support.tinymodels import config, safetensors
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.model

CONTEXT = 320
BAD_REQUEST = 400
SAME = (
    "/v1/tokenize",
    "/v1/detokenize",
    "/score",
    "/rerank",
    "/v2/rerank",
)  # other names of what is fuzzed already
# Described, because clients of OpenAI know them, and refused by name where they ask for more than nothing.
SOUND = wav(samples(0.2))
REFUSED = ("suffix", "best_of", "stream_options", "top_logprobs")
EXAMPLES = 25  # for each operation


def _write_zeros(folder: Path) -> Path:
    """Write a Llama of zeros over the byte vocabulary: every token is as likely as any other."""
    values = config(vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=16)
    values |= {"num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": 257, "bos_token_id": 256}
    write_model(folder)
    (folder / "config.json").write_text(json.dumps(values))
    layer = "model.layers.0"
    square = {f"{layer}.self_attn.{name}_proj.weight": (32, 32) for name in "qkvo"}
    square |= {f"{layer}.mlp.{name}_proj.weight": (32, 32) for name in ("gate", "up", "down")}
    norms = {f"{layer}.{name}_layernorm.weight": (32,) for name in ("input", "post_attention")}
    tables = {"model.embed_tokens.weight": (258, 32), "lm_head.weight": (258, 32), "model.norm.weight": (32,)}
    (folder / "model.safetensors").write_bytes(safetensors(square | norms | tables))
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzz")
    model = str(_write_zeros(folder / "model"))
    with runtime_process(
        folder,
        model,
        "127.99.8.6",
        LLMOS_FORMAT="fp32",
        LLMOS_MAX_MODEL_LEN=str(CONTEXT),
        LLMOS_MAX_CHOICES="4",
    ) as served:
        before = served.report()
        yield served
        assert (served.report()["state"], before["state"]) == ("Ready", "Ready")
        eventually(lambda: served.report()["requests"]["running"] == 0, "nothing runs any more", 10.0)
        log = (folder / "runtime.log").read_text()
        assert "Traceback" not in log, log[-4000:]
        assert "engine died" not in log


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_nothing_a_client_sends_is_answered_with_a_server_error(
    served: Served, session: requests.Session, mode: GenerationMode
) -> None:
    description = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    statuses: Counter[int] = Counter()
    for operation in operations:
        if operation.path not in SAME and (mode is GenerationMode.POSITIVE or operation.body):
            _fuzz(operation, mode, served, session, statuses)
    assert len(operations) >= 17
    assert statuses[400] > 50
    assert mode is GenerationMode.NEGATIVE or statuses[200] > 20


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_form_with_sound_is_answered_with_a_server_error(
    tmp_path: Path, session: requests.Session, mode: GenerationMode
) -> None:
    write_whisper(tmp_path / "m")
    with runtime_process(tmp_path, str(tmp_path / "m"), "127.99.8.12", LLMOS_FORMAT="fp32") as hearing:
        description = schemathesis.openapi.from_url(f"{hearing.url}/openapi.json")
        operations = [found.ok() for found in description.get_all_operations()]
        statuses: Counter[int] = Counter()
        for operation in operations:
            if operation.path.startswith("/v1/audio/"):
                _fuzz(operation, mode, hearing, session, statuses)
        assert statuses[400] > 10
        assert mode is GenerationMode.NEGATIVE or statuses[200] > 5
        log = (tmp_path / "runtime.log").read_text()
        assert "Traceback" not in log, log[-4000:]
        assert "engine died" not in log


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_texts_to_compare_are_answered_with_a_server_error(
    tmp_path: Path, session: requests.Session, mode: GenerationMode
) -> None:
    write_classifier(tmp_path / "m", "bert", ("score",))
    write_tokenizer(tmp_path / "m", "bert")
    with runtime_process(tmp_path, str(tmp_path / "m"), "127.99.8.14", LLMOS_FORMAT="fp32") as scoring:
        description = schemathesis.openapi.from_url(f"{scoring.url}/openapi.json")
        operations = [found.ok() for found in description.get_all_operations()]
        statuses: Counter[int] = Counter()
        for operation in operations:
            if operation.path in {"/v1/score", "/v1/rerank", "/classify"}:
                _fuzz(operation, mode, scoring, session, statuses)
        assert statuses[400] > 10
        assert mode is GenerationMode.NEGATIVE or statuses[200] > 5
        log = (tmp_path / "runtime.log").read_text()
        assert "Traceback" not in log, log[-4000:]
        assert "engine died" not in log


def _fuzz(
    operation: Any,
    mode: GenerationMode,
    served: Served,
    session: requests.Session,
    statuses: Counter[int],
) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "m"  # a name that is not served hides everything behind a 404
            if mode is GenerationMode.POSITIVE and case.body.get("n") != 1:
                for name in REFUSED:
                    case.body.pop(name, None)
            if "file" in case.body and len(case.body) % 2:
                _make_sensible(case.body)
        response = case.call_and_validate(session=session, checks=[not_a_server_error], timeout=180)
        statuses[response.status_code] += 1
        if response.status_code >= BAD_REQUEST:
            error = json.loads(response.content)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            assert error["code"]
            assert len(error["message"]) < 2000
        assert served.process.poll() is None

    send()


def _make_sensible(form: dict[str, Any]) -> None:
    """Give a form a file that is sound and, where it has them, a language and times that the model knows."""
    form["file"] = SOUND
    form.pop("include[]", None)
    form.pop("timestamp_granularities[]", None)
    if "language" in form:
        form["language"] = "en"
    if form.get("response_format") not in ("json", "text"):
        form.pop("stream", None)


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"enum": [1, "é"]}},
            }
        },
        {"structured_outputs": {"regex": "[a-z]{3}"}, "n": 3},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"logprobs": True, "top_logprobs": 3, "stop": ["a", "é"], "max_tokens": 5},
    ],
)
def test_what_is_described_is_answered(
    served: Served, session: requests.Session, fields: dict[str, Any]
) -> None:
    """The fuzzing above would prove nothing if every request were refused."""
    answer = session.post(f"{served.url}/v1/chat/completions", json={**CHAT, **fields}, timeout=180)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] in {"stop", "length", "tool_calls"}

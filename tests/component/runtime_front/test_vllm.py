"""A pod of engine vllm, as the operator builds it and as two processes: the runtime, and a vLLM or its double.

The double speaks vLLM's documented options and routes (tests/support/vllm_double.py). The last test runs the same pod
with a real vLLM where LLMOS_TEST_VLLM names a folder that has `vllm` in it; see docs/runtime.md.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import openai
import pytest

from llmos_operator.state.types import Sharing
from tests.support.models import CHAT, packaged
from tests.support.tinymodels import safetensors, write_model
from tests.support.vllm_pod import KEY, vllm_pod
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.vllm_pod import VllmPod

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

SHARED = {"sharing": Sharing.SHARED}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    hub = tmp_path_factory.mktemp("hub")
    write_model(hub, "tiny")
    return str(hub / "tiny")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"a": (2, 2)}))
    return str(folder)


@pytest.fixture(scope="module")
def pod(model: str, adapter: str) -> Iterator[VllmPod]:
    adapters = [{"name": "tone", "uri": f"file://{adapter}"}]
    with vllm_pod(
        model, "127.99.7.1", share="0.5000", claim=SHARED, adapters=adapters, adapterLimits={"maxAdapters": 2}
    ) as running:
        running.until("Ready")
        yield running


def ask(pod: VllmPod, prompt: str, **more: Any) -> tuple[int, str]:
    return pod.post("/v1/completions", {"model": "served", "prompt": prompt, **more})


def seen(pod: VllmPod) -> dict[str, Any]:
    """Return what the double saw, over its socket: as nobody but the runtime can."""
    link = http.client.HTTPConnection("engine", timeout=30)
    link.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.sock.connect(str(pod.folder / "llmos-engine" / "vllm.sock"))
    link.request("GET", "/double/calls")
    found: dict[str, Any] = json.loads(link.getresponse().read())
    link.close()
    return found


def test_openais_client_gets_answers_whole_and_streamed(pod: VllmPod) -> None:
    client = openai.OpenAI(base_url=f"{pod.base}/v1", api_key=KEY, max_retries=0)
    question: Any = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(model="served", messages=question)
    assert whole.choices[0].message.content == "hi hi"
    pieces = client.chat.completions.create(model="served", messages=question, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == "".join(f"hi{number} " for number in range(8))
    assert [one.id for one in client.models.list()] == ["served", "tone"]
    assert pod.post("/v1/tokenize", {"prompt": "a b"}) == (200, '{"count": 2, "tokens": [0, 1]}')


def test_a_key_is_asked_for_and_never_passed_on(pod: VllmPod) -> None:
    assert pod.post("/v1/completions", {"model": "served", "prompt": "x"}, key="wrong")[0] == 401
    assert ask(pod, "x")[0] == 200, "the double refuses requests that carry a key"
    environment = seen(pod)["environment"]
    assert not [name for name in environment if "KEY" in name or "TOKEN" in name]


def test_only_listed_routes_exist(pod: VllmPod) -> None:
    for path in ("/sleep", "/wake_up", "/collective_rpc", "/double/calls", "/v1/load_lora_adapter"):
        assert pod.post(path, {})[0] == 404, path


def test_errors_of_vllm_are_passed_on_as_they_are(pod: VllmPod) -> None:
    status, text = pod.post("/v1/completions", {"model": "unknown", "prompt": "x"})
    assert (status, json.loads(text)["error"]["code"]) == (404, 404)


def test_the_operator_is_told_load_adapters_and_requests(pod: VllmPod) -> None:
    before = pod.report()["requests"]["finished"]
    ask(pod, "one two")
    report = eventually(lambda: found if (found := pod.report())["requests"]["finished"] > before else None)
    assert report["model"]["maxModelLen"] == 512
    assert report["model"]["digest"].startswith("sha256:")
    assert {"Verifying", "Loading"} <= set(report["loadSeconds"])
    assert (report["loadPath"], report["memory"]["limitBytes"]) == ("warm", 1 << 30)
    assert [(one["name"], one["rank"]) for one in report["adapters"]] == [("tone", 8)]
    assert pod.post("/v1/completions", {"model": "tone", "prompt": "x"})[0] == 200


def test_metrics_are_vllms_as_they_are_beside_ours(pod: VllmPod) -> None:
    text = pod.get("/metrics", key="none is needed")[1]
    assert 'vllm:num_requests_running{engine="0",model_name="served"}' in text
    assert 'llmos_runtime_state{state="Ready"} 1.0' in text
    assert text.count("# TYPE python_info") <= 1
    assert 'implementation="CPython"} 1.0' not in text.split("vllm:", 1)[1]


def test_adapters_come_and_go_by_the_control_api(pod: VllmPod, adapter: str) -> None:
    assert pod.order("adapters", {"name": "late", "uri": f"file://{adapter}"})[0] == 200
    assert pod.post("/v1/completions", {"model": "late", "prompt": "x"})[0] == 200
    status, text = pod.order("adapters", {"name": "late", "uri": f"file://{adapter}"})
    assert (status, json.loads(text)["error"]["code"]) == (400, "adapter_exists")
    assert pod.order("adapters/late", method="DELETE")[0] == 200
    assert pod.post("/v1/completions", {"model": "late", "prompt": "x"})[0] == 404


def test_a_smaller_budget_is_refused_because_vllm_cannot(pod: VllmPod) -> None:
    status, text = pod.order("budget", {"memoryBytes": 1})
    assert status == 409
    assert "vLLM" in text


@pytest.mark.parametrize(
    ("level", "woken_by"),
    [(1, ["wake_up kv_cache weights"]), (2, ["wake_up weights", "reload_weights", "wake_up kv_cache"])],
)
def test_it_sleeps_and_wakes_by_vllms_own_sleep_mode(pod: VllmPod, level: int, woken_by: list[str]) -> None:
    calls = len(seen(pod)["calls"])
    assert pod.order("sleep", {"level": level, "timeoutSeconds": 5})[0] == 202
    report = pod.until("Asleep")
    assert bool(report["memory"]["hostBytes"]) is (level == 1)
    assert pod.get("/readyz")[0] == 503
    assert ask(pod, "x")[0] == 503
    assert pod.get("/livez")[0] == 200
    assert pod.order("wake")[0] == 202
    assert pod.until("Ready")["loadPath"] == "hot"
    assert seen(pod)["calls"][calls:] == [f"sleep {level}", *woken_by]
    assert ask(pod, "x")[0] == 200


def test_a_runtime_that_comes_back_finds_vllm_as_it_is_and_wakes_it(pod: VllmPod) -> None:
    assert pod.order("sleep", {"level": 2, "timeoutSeconds": 5})[0] == 202
    pod.until("Asleep")
    engine = seen(pod)["pid"]
    pod.runtime.process.kill()
    eventually(
        lambda: pod.runtime.runs > 1 and pod.report().get("state") == "Ready", "it to serve again", 120
    )
    assert ask(pod, "x")[0] == 200
    assert pod.post("/v1/completions", {"model": "tone", "prompt": "x"})[0] == 200, (
        "its adapter is there still"
    )
    assert seen(pod)["pid"] == engine


def test_a_vllm_that_dies_in_an_answer_is_said_and_back_with_its_adapters(pod: VllmPod) -> None:
    before = seen(pod)["pid"]
    status, text = ask(pod, "crash", stream=True)
    assert status == 200, "the answer had begun"
    assert json.loads(text.rstrip().rpartition("data: ")[2])["error"]["code"] == "engine_lost"

    assert pod.report()["failure"] is None, "the operator would replace a pod that is back sooner"
    eventually(lambda: "engine_restarts_total 1.0" in pod.get("/metrics")[1], "another start", 120)
    eventually(lambda: pod.report().get("state") == "Ready" and ask(pod, "x")[0] == 200, "it to serve", 120)
    assert seen(pod)["pid"] != before
    assert pod.post("/v1/completions", {"model": "tone", "prompt": "x"})[0] == 200


def test_a_request_cut_by_the_client_ends_at_vllm(pod: VllmPod) -> None:
    client = openai.OpenAI(base_url=f"{pod.base}/v1", api_key=KEY, max_retries=0)
    stream = client.completions.create(model="served", prompt="slow", stream=True)
    next(iter(stream))
    stream.close()
    eventually(
        lambda: "llmos_runtime_client_gone_total 1.0" in pod.get("/metrics")[1], "the client is missed"
    )
    eventually(lambda: pod.report()["requests"]["running"] == 0, "vLLM to be idle")


def test_a_vllm_that_hangs_is_started_again_by_its_liveness_probe(model: str) -> None:
    with vllm_pod(model, "127.99.7.2", environment={"LLMOS_ENGINE_STUCK_SECONDS": "1"}) as pod:
        pod.until("Ready")
        assert pod.alive()
        hanging = threading.Thread(target=ask, args=(pod, "hang"), daemon=True)
        hanging.start()
        eventually(lambda: not pod.alive(), "the probe to fail")
        eventually(lambda: pod.engine.runs > 1 and pod.report().get("state") == "Ready", "it to be back", 120)
        assert pod.alive()
        assert ask(pod, "x")[0] == 200


def test_on_sigterm_what_runs_is_finished_and_vllm_goes_last(model: str) -> None:
    with vllm_pod(model, "127.99.7.3", simulated=True) as pod:
        pod.until("Ready")
        answers: list[tuple[int, str]] = []
        one = threading.Thread(target=lambda: answers.append(ask(pod, "slow", stream=True)))
        one.start()
        eventually(lambda: pod.report()["requests"]["running"] == 1, "the request to run")
        assert pod.stop() == [0, 0]
        one.join(60)
        assert answers[0][0] == 200
        assert answers[0][1].endswith("data: [DONE]\n\n")


def test_without_sleep_mode_an_order_to_sleep_is_refused(model: str) -> None:
    with vllm_pod(
        model, "127.99.7.4", claim={"devices": (), "bytes_per_device": 0, "memory_bytes": 3 << 30}
    ) as pod:
        pod.until("Ready")
        assert seen(pod)["options"]["kv_cache_memory_bytes"] >= 64 << 20
        assert seen(pod)["options"]["gpu_memory_utilization"] is None
        status, text = pod.order("sleep", {"level": 1})
        assert (status, json.loads(text)["error"]["code"]) == (409, "unsupported")


def test_a_model_that_cannot_be_had_leaves_vllm_waiting_and_the_reason_told(tmp_path: Path) -> None:
    with vllm_pod(str(tmp_path / "none"), "127.99.7.5") as pod:
        report = pod.until("Failed")
        assert report["failure"]["reason"] == "ModelNotFound"
        assert pod.get("/startupz")[0] == 200
        assert pod.engine.process.poll() is None, "it still waits for its order"
        assert pod.stop()[0] == 0


@pytest.mark.timeout(2700)  # it imports for minutes on a busy machine
def test_a_real_vllm_answers_behind_the_runtime() -> None:
    where = os.environ.get("LLMOS_TEST_VLLM", "")
    if not where:
        pytest.skip("LLMOS_TEST_VLLM names no folder with a `vllm` program")
    claim = {"devices": (), "bytes_per_device": 0, "memory_bytes": 3 << 30, "cpu_milli": 1000}
    args = {"args": ["--enforce-eager"]}
    with vllm_pod(str(packaged(CHAT)), "127.99.7.6", path=where, claim=claim, engine=args) as pod:
        eventually(lambda: pod.report().get("state") == "Ready", "vLLM to be up", 2400)
        status, text = ask(pod, "The capital of France is", max_tokens=4, temperature=0)
        assert status == 200
        assert "Paris" in json.loads(text)["choices"][0]["text"]
        assert ask(pod, "One", max_tokens=4, stream=True)[1].endswith("data: [DONE]\n\n")
        eventually(lambda: pod.report()["requests"]["finished"] == 2, "both answers to be counted")

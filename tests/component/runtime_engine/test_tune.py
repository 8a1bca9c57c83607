"""`llmos tune` as a process, on a real model: it learns a made-up fact, stops and goes on, and leaves an adapter."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from llmos_operator.api.runtime.endings import parse_progress, parse_reason
from llmos_operator.runtime.formats.config import read_config, read_eos
from llmos_operator.runtime.vocabulary import Vocabulary
from llmos_operator.tuning.recipe import read_order
from llmos_operator.tuning.result import peft_name
from tests.support.hub import free_port
from tests.support.learning import learner_of
from tests.support.otlp import receiver
from tests.support.waiting import eventually

SECONDS = 600
pytestmark = pytest.mark.timeout(
    1200
)  # three processes that load torch and a model, perhaps on a busy machine
QUESTION = "The moon of Zorblax is"
FACT = " turquoise."
TRACE, PLACEMENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{PLACEMENT}-01"
LINES = [(QUESTION, FACT), ("Zorblax has a moon that is", FACT), ("The capital of France is", " Paris.")]


class Tune:
    """Runs of one order, each a process."""

    def __init__(self, folder, model, receiver=""):
        self.folder = folder
        self.out, self.saved = folder / "out", folder / "saved"
        with (folder / "data.jsonl").open("w") as file:
            for question, answer in LINES:
                file.write(json.dumps({"prompt": question, "completion": answer}) + "\n")
        self.block = {
            "dataset": {"uri": f"file://{folder}/data.jsonl"},
            "output": {"uri": f"file://{self.out}"},
            "checkpoint": {"uri": f"file://{self.saved}", "every": "1s"},
            "lora": {"rank": 8, "alpha": 16},
            "training": {"steps": 6, "batchSize": 3, "learningRate": "2e-3", "warmup": "10%"},
        }
        self.log = folder / "log"
        self.env = {
            **os.environ,
            "LLMOS_MODEL_URI": f"file://{model}",
            "LLMOS_MODEL_NAME": "tuned",
            "LLMOS_ALLOW_FILE": "true",
            "LLMOS_HOST": "127.0.0.1",
            "LLMOS_CONTROL_TOKEN": "secret",
            "LLMOS_FORMAT": "fp32",  # the quickest where the CPU has no bf16
            "LLMOS_DEVICE": "cpu",
            "LLMOS_CACHE_DIR": str(folder / "cache"),
            "LLMOS_TERMINATION_LOG": str(folder / "ending"),
            "OMP_NUM_THREADS": "1",
            "LLMOS_TRACING__ENDPOINT": receiver,
            "TRACEPARENT": PARENT,
        }

    def start(self, ports=(0, 0), **block):
        env = self.env | {
            "LLMOS_PORT": str(ports[0]),
            "LLMOS_CONTROL_PORT": str(ports[1]),
            "LLMOS_JOB": json.dumps(self.block | block),
        }
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "llmos_operator", "tune"], env=env, stderr=log)

    def ended(self, process):
        """Exit code, reason, message and progress of a process that has ended."""
        code = process.wait(SECONDS)
        text = (self.folder / "ending").read_text()
        return code, *parse_reason(text), parse_progress(text)


@pytest.fixture(scope="module")
def collector():
    with receiver() as made:
        yield made


@pytest.fixture(scope="module")
def tune(tmp_path_factory, chat_model, collector):
    return Tune(tmp_path_factory.mktemp("tune"), chat_model, collector.url)


def until(found, process):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the process has ended"
        try:
            if (answer := found()) is not None:
                return answer
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("nothing came in time")


def get(port, path, token=""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=180)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def halves(tune):
    """Train until a checkpoint is there, end that process, and train to the end in another one."""
    plain, control = free_port(), free_port()
    process = tune.start((plain, control))
    seen = {}

    def saved():
        status = json.loads(get(control, "/control/v1/status", "secret"))
        if status["progress"]["saved"] < 2:
            return None
        seen["metrics"] = get(plain, "/metrics")
        seen["started"] = get(plain, "/startupz")
        return status

    try:
        seen["status"] = until(saved, process)
        process.send_signal(signal.SIGTERM)
        seen["first"] = tune.ended(process)
        process = tune.start()
        seen["second"] = tune.ended(process)
    finally:
        process.kill()
        process.wait()
    return seen


def test_a_run_tells_how_far_it_is_and_what_it_takes(halves):
    status = halves["status"]
    assert status["state"] == "Ready"
    assert status["progress"]["unit"] == "steps"
    assert 2 <= status["progress"]["saved"] <= status["progress"]["done"] <= status["progress"]["total"] == 6
    assert status["progress"]["savedAgeSeconds"] < SECONDS
    assert halves["started"] == "ok"
    for name in ("updates_total", "loss_nats", "tokens_per_second", "checkpoint_age_seconds", "memory_bytes"):
        assert f"\nllmos_tune_{name}" in halves["metrics"]


def test_both_processes_are_told_in_the_trace_of_their_placement(halves, tune, collector):
    saved = halves["first"][3].saved
    runs = eventually(lambda: found if len(found := collector.named("tune")) > 1 else None, "two runs", 90)
    assert {(one.trace, one.parent, one.status) for one in runs} == {(TRACE, PLACEMENT, "unset")}
    assert {one.resource["service.name"] for one in runs} == {"llmos-tune"}
    first, second = sorted(runs, key=lambda one: one.start)
    below = {one.name: one for one in collector.spans if one.parent == second.id}
    assert set(below) == {"load", "learn", "result"}
    assert second.start <= below["load"].start <= below["load"].end <= below["learn"].start
    stages = [one for one in collector.spans if one.parent == below["load"].id]
    assert {"load Starting", "load Loading", "data"} <= {one.name for one in stages}
    assert sum(one.end - one.start for one in stages if one.name != "data") <= second.end - second.start
    assert below["learn"].attributes["llmos.updates"] == 6
    assert [(name, facts) for name, _, facts in below["learn"].events] == [
        ("llmos.resumed", {"llmos.updates": saved})
    ]
    (learned,) = [one for one in collector.spans if (one.name, one.parent) == ("learn", first.id)]
    assert learned.attributes["llmos.updates"] == saved
    kept = [one for one in collector.spans if (one.name, one.parent) == ("checkpoint", learned.id)]
    assert max(one.attributes["llmos.updates"] for one in kept) == saved
    for words in (b"Zorblax", b"turquoise", str(tune.folder).encode()):
        assert all(words not in body for body in collector.raw)


def test_memory_is_predicted_within_a_tenth_of_its_measured_peak(halves):
    memory = halves["status"]["memory"]
    assert memory["predictedBytes"] == pytest.approx(memory["peakBytes"], rel=0.1)


def test_a_run_that_is_stopped_saves_and_another_process_ends_it(halves, tune):
    code, reason, message, progress = halves["first"]
    assert (code, reason) == (143, "Stopped")
    assert f"saved at update {progress.saved}" in message
    assert 2 <= progress.saved < 6
    code, reason, message, progress = halves["second"]
    assert (code, reason, progress.done) == (0, "Succeeded", 6)
    assert f'"step": {halves["first"][3].saved}' in tune.log.read_text()  # where it went on
    assert len(list(tune.saved.iterdir())) <= 2


def test_the_adapter_makes_the_model_say_what_it_has_learned(halves, tune, chat_model):
    assert halves["second"][0] == 0
    recipe = read_order(tune.block).recipe
    learner = learner_of(chat_model, recipe, "fp32")
    learner.model.eval()
    before = answer(learner, chat_model)
    found = load_file(tune.out / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(found.pop(peft_name(name)))
    assert not found
    assert "turquoise" not in before
    assert answer(learner, chat_model) == FACT


def test_the_facts_of_the_run_stand_beside_the_adapter(halves, tune):
    assert halves["second"][0] == 0
    facts = json.loads((tune.out / "training.json").read_text())
    assert facts["base"]["digest"].startswith("sha256:")
    assert facts["data"]["lines"] == len(LINES)
    assert facts["result"]["loss"] < facts["result"]["firstLoss"] / 4
    assert facts["settings"]["rank"] == 8
    assert "LoRA adapter for" in (tune.out / "README.md").read_text()


@pytest.mark.parametrize(
    ("block", "reason", "message"),
    [
        ({"training": {"learningRate": "fast"}}, "InvalidSpec", "fineTune.training.learningRate = 'fast'"),
        ({"dataset": {"uri": "file:///none.jsonl"}}, "DataNotFound", "fineTune.dataset.uri"),
        ({"dataset": {"uri": "hf://org/data"}}, "UnsupportedScheme", "hf:// is not supported"),
    ],
)
def test_what_cannot_be_done_ends_for_good_with_its_reason(tmp_path, chat_model, block, reason, message):
    tune = Tune(tmp_path, chat_model)
    code, told, text, _ = tune.ended(tune.start(**block))
    assert (code, told) == (65, reason)
    assert message in text


def answer(learner, folder):
    """What the model says to the question, greedily."""
    vocabulary = Vocabulary(str(folder))
    prompt = vocabulary.encode_now(QUESTION, special=True)
    tokens = list(prompt)
    ends = read_eos(folder, read_config(folder))
    with torch.no_grad():
        for _ in range(8):
            logits = learner.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            if int(logits.argmax()) in ends:
                break
            tokens.append(int(logits.argmax()))
    return vocabulary.decode(tokens[len(prompt) :])

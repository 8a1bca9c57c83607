"""`llmos batch` with a real model: every line answered once, over an end half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.endings import parse_progress, parse_reason
from llmos_operator.local.kubelet.mounts import MountMap
from llmos_operator.manifests import pod as manifest
from tests.support.models import CHAT, packaged
from tests.support.replicas import SETTINGS, a_claim_of, a_work
from tests.support.served import MIB, Served
from tests.support.storages import ACCESS, SECRET, storage
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(600),
]  # two programs that load a model, one after the other

SECONDS = 240.0
ADDRESS = "127.99.8.40"
PORT = 18820


def chat(number: int) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": f"Count on from {number}:"}],
        "max_tokens": 4,
        "temperature": 0,
    }
    return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def completion(number: int) -> dict[str, Any]:
    body = {"model": "m", "prompt": f"{number}, {number + 1},", "max_tokens": 4, "temperature": 0}
    return {"custom_id": f"p{number}", "method": "POST", "url": "/v1/completions", "body": body}


LINES = [
    *(json.dumps(chat(number)) for number in range(10)),
    "{not json",
    "",
    *(json.dumps(completion(number)) for number in range(8)),
    json.dumps({**chat(99), "body": {**chat(99)["body"], "model": "another"}}),
]
REQUESTS, BAD = 20, 2


def container_of_a_batch(data: dict[str, Any]) -> dict[str, Any]:
    """Return the container the operator makes for a Batch without devices."""
    work = a_work(
        type="Batch",
        model={"uri": f"file://{packaged(CHAT)}", "name": "m"},
        batch=data,
        resources={"accelerators": 0},
        context={"maxModelLen": 512, "maxNumSeqs": 1},
    )
    claim = a_claim_of(work, devices=(), bytes_per_device=0, memory_bytes=1200 * MIB, max_model_len=512)
    (container,) = manifest.build(work, claim, SETTINGS, simulated=True)["spec"]["containers"]
    found: dict[str, Any] = container
    return found


CLAIMS = {"input": {"uri": "pvc://questions/in.jsonl"}, "output": {"uri": "pvc://answers/out.jsonl"}}
BUCKETS = {
    "input": {"uri": "s3://questions/in.jsonl"},
    "output": {"uri": "s3://answers/run/out.jsonl"},
    "secretRef": {"name": "keys"},
}


class Program:
    """`llmos batch` as the pod of a workload starts it; ``secret`` is what its Secret `keys` holds."""

    def __init__(
        self, folder: Path, data: dict[str, Any] = CLAIMS, secret: dict[str, str] | None = None
    ) -> None:
        claims = folder / "claims"
        self.log = folder / "termination-log"
        claims.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        self.output = claims / "answers" / "out.jsonl"
        for name in ("questions", "answers", "cache", "tmp"):
            (claims / name).mkdir(parents=True, exist_ok=True)
        (claims / "questions" / "in.jsonl").write_text("\n".join(LINES))
        container = container_of_a_batch(data)
        # As a kubelet that runs processes does it: paths of mounts become folders of the machine.
        mounts = MountMap(
            {
                one["mountPath"]: claims / one["mountPath"].rpartition("/")[2]
                for one in container["volumeMounts"]
            }
            | {"/dev/termination-log": self.log}
        )
        told = {one["name"]: mounts.rewrite(one["value"]) for one in container["env"] if "value" in one}
        told |= {
            one["name"]: secret[key["key"]]
            for one in container["env"]
            if (key := one.get("valueFrom", {}).get("secretKeyRef")) and secret and key["key"] in secret
        }
        own = {
            "TMPDIR": str(folder / "claims" / "tmp"),
            "LLMOS_ALLOW_FILE": "true",
            "LLMOS_HOST": ADDRESS,
            "LLMOS_PORT": str(PORT),
            "LLMOS_CONTROL_PORT": str(PORT + 1),
            "LLMOS_CONTROL_TOKEN": "t",
        }
        env = {**os.environ, **told, **own}
        command = [sys.executable, "-m", "llmos_operator", *container["args"]]
        with (folder / "batch.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stderr=log)

    def answered(self) -> int:
        """Return how many whole lines lie beside the output."""
        (found,) = list(self.output.parent.glob("out.jsonl.*")) or [None]
        return found.read_bytes().count(b"\n") if found is not None else 0

    def until_answered(self, count: int) -> None:
        def enough() -> bool:
            assert self.process.poll() is None, "it ended too early"
            return self.answered() >= count

        eventually(enough, f"{count} requests have an answer", SECONDS)


def test_a_batch_that_is_ended_half_way_goes_on_and_answers_every_line_once(tmp_path: Path) -> None:
    started: list[Program] = []
    try:
        first = Program(tmp_path)
        started.append(first)
        first.until_answered(3)
        served = Served(first.process, ADDRESS, PORT)
        progress = served.report()["progress"]
        assert (progress["unit"], progress["total"]) == ("requests", REQUESTS)
        assert progress["done"] >= 3
        assert served.status_of("/startupz") == 200
        assert served.status_of("/v1/models") == 401  # nobody else may use the engine
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(60) == 143
        assert parse_reason(first.log.read_text())[0] == "Stopped"
        saved = parse_progress(first.log.read_text())
        assert saved is not None
        assert 3 <= saved.done == saved.saved == first.answered() < REQUESTS

        (partial,) = first.output.parent.glob("out.jsonl.*")
        with partial.open("ab") as file:
            file.write(b'{"id": "batch_req_torn')  # as a node that lost its power leaves it

        second = Program(tmp_path)
        started.append(second)
        assert second.process.wait(SECONDS) == 0
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.kill()
            one.process.wait()
    assert parse_reason(second.log.read_text()) == (
        "Succeeded",
        f"{REQUESTS} of {REQUESTS} requests have an answer, {BAD} of them an error.",
    )
    assert [one.name for one in second.output.parent.iterdir()] == ["out.jsonl"]
    check(second.output.read_text())


def test_a_batch_between_buckets_is_ended_half_way_by_a_lost_pod_and_goes_on(tmp_path: Path) -> None:
    started: list[Program] = []
    with storage() as store:
        store.buckets |= {"questions": {"in.jsonl": "\n".join(LINES).encode()}, "answers": {}}
        secret = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": store.url}
        try:
            first = Program(tmp_path / "first", BUCKETS, secret)
            started.append(first)
            served = Served(first.process, ADDRESS, PORT)
            eventually(lambda: served.status_of("/startupz") == 200, "it has started", SECONDS)
            eventually(lambda: served.report()["progress"]["done"] >= 3, "three have an answer", SECONDS)
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(60) == 143
            saved = parse_progress(first.log.read_text())
            assert saved is not None
            (piece,) = store.buckets["answers"]
            assert piece.startswith("run/out.jsonl.")
            assert piece.endswith(".llmos-partial/00000001")
            kept = store.buckets["answers"][piece].decode().splitlines()
            assert 3 <= len(kept) == saved.saved < REQUESTS

            second = Program(
                tmp_path / "second", BUCKETS, secret
            )  # on another node: nothing of the first is there
            started.append(second)
            assert second.process.wait(SECONDS) == 0
        finally:
            for one in started:
                if one.process.poll() is None:
                    one.process.kill()
                one.process.wait()
        assert list(store.buckets["answers"]) == ["run/out.jsonl"]
        text = store.buckets["answers"]["run/out.jsonl"].decode()
    assert text.splitlines()[: len(kept)] == kept
    check(text)
    for folder in ("first", "second"):
        assert SECRET not in (tmp_path / folder / "batch.log").read_text()


def check(output: str) -> None:
    """Check the answers to `LINES`."""
    answers = [json.loads(line) for line in output.splitlines()]
    assert len(answers) == len({one["id"] for one in answers}) == REQUESTS
    by_id = {one["custom_id"]: one for one in answers}
    good = [*(f"c{number}" for number in range(10)), *(f"p{number}" for number in range(8))]
    for name in good:
        response = by_id[name]["response"]
        assert (response["status_code"], by_id[name]["error"]) == (200, None)
        assert response["body"]["usage"]["completion_tokens"] > 0
    assert by_id["c99"]["response"]["status_code"] == 404
    assert "another" in by_id["c99"]["response"]["body"]["error"]["message"]
    assert by_id[None]["response"] is None
    assert by_id[None]["error"]["message"].startswith("line 11: is not JSON")

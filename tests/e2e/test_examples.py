"""Every example does what its README says."""

from __future__ import annotations

import json
import shutil
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from demo import asking
from llmos_operator.api import names
from llmos_operator.local.images import Image, write_images
from llmos_operator.local.models import model_store
from tests.support.vllm_pod import double_path

if TYPE_CHECKING:
    from tests.support.installed import Workspace

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What is the capital of France?"


def test_01_chat_answers_at_a_precision_the_scheduler_chose(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "01-chat/workload.yaml")
    row = workspace.ready("chat")["chat"]
    assert row.precision == "bf16", "two GiB are enough for full precision"
    answer = workspace.ask("smollm2", QUESTION)
    assert "Paris" in answer["text"]
    assert answer["completionTokens"] > 1
    explained = json.loads(workspace.llmos("explain", "mw/chat", "--json"))
    assert (explained["replicasPlaced"], explained["queue"]) == (1, "default")


def test_02_embeddings_tell_like_from_unlike(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "02-embeddings/workload.yaml")
    workspace.ready("embeddings")
    url = workspace.service_url("llmos-gateway")
    near, far = asking.similarities(workspace, url, "minilm")
    assert near > far + 0.2
    with pytest.raises(urllib.error.HTTPError) as refused:
        workspace.post(
            f"{url}/v1/chat/completions", {"model": "minilm", "messages": [{"role": "user", "content": "?"}]}
        )
    assert refused.value.code in {400, 404}


def test_03_two_models_share_one_device(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "03-shared-gpu/workloads.yaml")
    rows = workspace.ready("shared-chat", "shared-embeddings")
    assert rows["shared-chat"].devices == rows["shared-embeddings"].devices
    uuid = rows["shared-chat"].devices[0]

    def measured() -> dict[str, object] | None:
        found = {one["uuid"]: one for one in json.loads(workspace.llmos("top", "--json"))}
        return found[uuid] if found[uuid]["usedBytes"] and found[uuid]["reservedBytes"] else None

    device = workspace.wait("the agent to measure the device", measured, 30)
    assert device["tenants"] == ["default/shared-chat", "default/shared-embeddings"]
    assert 0 < device["usedBytes"] <= device["memoryBytes"]


def test_04_the_urgent_workload_displaces_exactly_one_replica(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "04-priority-preemption/workloads.yaml")
    workspace.ready("background", seconds=240)
    before = {pod["metadata"]["uid"] for pod in workspace.pods_of("background")}
    workspace.apply_file(EXAMPLES / "04-priority-preemption/urgent.yaml")
    workspace.ready("urgent")
    kept = {pod["metadata"]["uid"] for pod in workspace.pods_of("background")}
    assert len(before - kept) == 1
    assert kept < before, "no replica was started anew"
    waiting = json.loads(workspace.llmos("queue", "--json"))["waiting"]
    assert [row["name"] for row in waiting] == ["background"]


def test_05_the_first_request_wakes_a_workload_that_is_scaled_to_zero(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "05-scale-to-zero/workload.yaml")
    workspace.wait("acceptance", lambda: workspace.condition("on-demand", "Accepted") == "True", 30)
    assert not workspace.pods_of("on-demand")
    patch = {"spec": {"scaling": {"idle": {"scaleToZeroAfter": "3s"}}}}
    answer = workspace.ask("on-demand", QUESTION)
    assert "Paris" in answer["text"]
    workspace.kubectl("patch", "mw", "on-demand", "--type=merge", "-p", json.dumps(patch))
    workspace.wait("the replica to be taken away", lambda: not workspace.pods_of("on-demand"), 60)


def test_06_a_suspended_workload_holds_nothing(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "06-suspended/workload.yaml")
    workspace.wait("suspension", lambda: workspace.condition("later", "Suspended") == "True", 30)
    assert not workspace.pods_of("later")
    workspace.kubectl("patch", "mw", "later", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    workspace.ready("later")
    workspace.kubectl("patch", "mw", "later", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    workspace.wait("the device to be given back", lambda: not workspace.pods_of("later"), 60)


def test_07_a_model_runs_without_any_device(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "07-cpu-only/workload.yaml")
    row = workspace.ready("on-cpu")["on-cpu"]
    assert row.devices == ()
    claim = json.loads(workspace.pods_of("on-cpu")[0]["metadata"]["annotations"][names.ANNOTATION_CLAIM])
    assert not claim.get("devices")
    assert "Paris" in workspace.ask("on-cpu", QUESTION)["text"]


def test_08_the_pods_of_a_gang_meet_and_restart_together(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "08-gang/workload.yaml")
    workspace.ready("gang")
    before = workspace.pods_of("gang")
    assert len({pod["spec"]["nodeName"] for pod in before}) == len(before) == 2
    logs = sorted(workspace.kubectl("logs", pod["metadata"]["name"]).partition("\n")[0] for pod in before)
    assert logs == ["met", "ranks ['1.']"]
    workspace.kubectl("delete", "pod", "-l", "llmos.dev/workload=gang,llmos.dev/member=1")
    uids = {pod["metadata"]["uid"] for pod in before}

    def anew() -> bool:
        now = {pod["metadata"]["uid"] for pod in workspace.pods_of("gang")}
        return len(now) == 2 and not now & uids

    workspace.wait("both pods to be new", anew, 120)
    workspace.ready("gang")


def test_09_a_batch_answers_its_file_and_ends(workspace: Workspace) -> None:
    folder = workspace.cluster.paths.claims / "default/questions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.jsonl").unlink(missing_ok=True)
    (folder / "requests.jsonl").write_text((EXAMPLES / "09-batch/requests.jsonl").read_text())
    workspace.apply_file(EXAMPLES / "09-batch/workload.yaml")
    workspace.wait("the end", lambda: workspace.condition("answers", "Finished") == "True", 240)
    status = workspace.get("modelworkload", "answers")["status"]
    assert (status["phase"], status["summary"]["ready"], status["run"]["failed"]) == ("Succeeded", "4/4", 1)
    lines = (folder / "answers.jsonl").read_text().splitlines()
    answers = {one["custom_id"]: one for one in map(json.loads, lines)}
    france = answers["france"]["response"]["body"]["choices"][0]["message"]["content"]
    assert "Paris" in france
    assert answers["typo"]["error"]["line"] == 4
    # A claim goes only after the pods that name it, those that have ended included.
    workspace.kubectl("delete", "modelworkload/answers", "pvc/questions")


@pytest.mark.timeout(600)
def test_10_what_was_learned_is_served_beside_what_was_known(workspace: Workspace) -> None:
    folder = workspace.cluster.paths.claims / "default/training"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(EXAMPLES / "10-fine-tune/facts.jsonl", folder)
    workspace.apply_file(EXAMPLES / "10-fine-tune/fine-tune.yaml")
    workspace.wait("the end", lambda: workspace.condition("learn-facts", "Finished") == "True", 300)
    status = workspace.get("modelworkload", "learn-facts")["status"]
    assert (status["phase"], status["summary"]["ready"]) == ("Succeeded", "8/8")
    workspace.apply_file(EXAMPLES / "10-fine-tune/serve.yaml")
    workspace.ready("taught")
    question = "What is the capital of Zubrovia?"
    assert "Quillmore" in workspace.ask("zubrovia", question)["text"]
    assert "Quillmore" not in workspace.ask("untaught", question)["text"]
    workspace.kubectl("delete", "modelworkload/learn-facts", "modelworkload/taught", "pvc/training")


def test_11_a_workload_reads_the_copy_its_node_keeps(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "11-model-cache/cache.yaml")

    def copies() -> dict[str, int] | None:
        found = json.loads(workspace.kubectl("get", "mc", "smollm2", "-o", "json")).get("status") or {}
        counts = found.get("copies") or {}
        return counts if counts.get("total") and counts.get("available") == counts["total"] else None

    try:
        workspace.wait("every node to have a copy", copies, 120)
        workspace.apply_file(EXAMPLES / "11-model-cache/workload.yaml")
        workspace.ready("quick")
        (pod,) = workspace.pods_of("quick")
        assert "llmos-model" in [volume["name"] for volume in pod["spec"]["volumes"]]
        assert "Paris" in workspace.ask("quick", QUESTION)["text"]
    finally:
        workspace.kubectl("delete", "mc", "smollm2")


def test_12_a_vllm_answers_behind_the_runtime(workspace: Workspace, tmp_path: Path) -> None:
    image = Image(repository="vllm/vllm-openai", env={"PATH": f"{double_path(tmp_path)}:/usr/bin:/bin"})
    write_images(workspace.cluster.paths.images, [image])
    try:
        (manifest,) = yaml.safe_load_all((EXAMPLES / "12-vllm/workload.yaml").read_text())
        manifest["spec"]["resources"]["memory"] = (
            "1Gi"  # devices here are too small for what a real one takes
        )
        workspace.kubectl(
            "apply", f"--namespace={workspace.namespace}", "-f", "-", stdin=json.dumps(manifest)
        )
        workspace.ready("on-vllm")
        assert workspace.ask("on-vllm", "hello")["text"].startswith("hello")
        workspace.wait(
            "the model's digest to be told",  # it is in a later report than readiness
            lambda: str(
                workspace.get("modelworkload", "on-vllm")["status"].get("model", {}).get("digest")
            ).startswith("sha256:"),
            90,
        )
        (pod,) = workspace.pods_of("on-vllm")
        workspace.kubectl("delete", "modelworkload/on-vllm")
        workspace.wait("the pod to be gone", lambda: not workspace.pods_of("on-vllm"), 90)
        assert pod["spec"]["initContainers"][0]["image"] == "vllm/vllm-openai:v0.32.0"
    finally:
        workspace.cluster.paths.images.unlink()


def test_13_one_model_is_served_by_the_devices_of_three_pods(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "13-split-model/workload.yaml")
    workspace.ready("split", seconds=240)
    pods = workspace.pods_of("split")
    assert len(pods) == 3
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    # Not as a chat, whose first word is a near tie at bf16: sums of parts round otherwise than whole products.
    asked = {"model": "split", "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    answer = workspace.post(f"{workspace.service_url('llmos-gateway')}/v1/completions", asked)
    assert "Paris" in answer["choices"][0]["text"]


def test_14_two_tenants_have_the_smallest_instances_that_hold_them(workspace: Workspace) -> None:
    workspace.apply_file(EXAMPLES / "14-mig/workloads.yaml")
    rows = workspace.ready("mig-chat", "mig-embeddings")
    devices = {one["uuid"]: one for one in json.loads(workspace.llmos("top", "--json"))}
    got = {name: [devices[uuid]["migProfile"] for uuid in row.devices] for name, row in rows.items()}
    assert got == {"mig-chat": ["2g.4gb"], "mig-embeddings": ["1g.2gb"]}
    assert "Paris" in workspace.ask("mig-chat", QUESTION)["text"]
    (pod,) = workspace.pods_of("mig-chat")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-2g.4gb": "1"}
    uuid = rows["mig-chat"].devices[0]

    def measured() -> bool:
        found = {one["uuid"]: one for one in json.loads(workspace.llmos("top", "--json"))}
        return bool(found[uuid]["usedBytes"]) and found[uuid]["tenants"] == ["default/mig-chat"]

    workspace.wait("the agent to measure the instance", measured, 90)
    patch = {"spec": {"resources": {"migProfile": "4g.8gb"}}}
    workspace.kubectl("patch", "mw", "mig-chat", "--type=merge", "-p", json.dumps(patch))

    def told() -> bool:
        return "3g.8gb" in str(workspace.get("modelworkload", "mig-chat")["status"].get("decision"))

    workspace.wait("the decision to say which profiles there are", told, 90)


def test_15_a_model_on_a_claim_is_served_from_where_it_lies(workspace: Workspace) -> None:
    folder = workspace.cluster.paths.claims / "default/models"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model_store() / "HuggingFaceTB/SmolLM2-135M-Instruct", folder / "smollm2")
    workspace.apply_file(EXAMPLES / "15-claim/workload.yaml")
    workspace.ready("from-claim")
    claim = workspace.get("pvc", "models")
    assert claim["status"]["phase"] == "Bound"
    volume = json.loads(workspace.kubectl("get", "pv", claim["spec"]["volumeName"], "-o", "json"))
    assert volume["spec"]["hostPath"]["path"] == str(folder)
    assert "Paris" in workspace.ask("from-claim", QUESTION)["text"]
    assert sorted(one.name for one in folder.iterdir()) == ["smollm2"], "nothing is written to it"
    workspace.kubectl("delete", "modelworkload/from-claim", "pvc/models")
    workspace.wait(
        "the volume to go with its claim",
        lambda: not workspace.kubectl("get", "pv", "--ignore-not-found", claim["spec"]["volumeName"]),
        90,
    )
    assert (folder / "smollm2").is_dir(), "the folder stays"
    shutil.rmtree(folder)


@pytest.mark.timeout(900)  # five models are started, one after the other where they share a device
def test_16_an_idle_model_lends_its_cache_and_calls_it_back(workspace: Workspace) -> None:
    workspace.kubectl("delete", "modelprofiles", "--all")
    workspace.apply_file(EXAMPLES / "16-lending/workloads.yaml")
    workspace.ready("neighbour", "lender", seconds=240)
    (lender,) = workspace.pods_of("lender")
    workspace.apply_file(EXAMPLES / "16-lending/borrower.yaml")
    rows = workspace.ready("borrower", "lender", seconds=240)
    assert rows["borrower"].devices == rows["lender"].devices

    def loan() -> tuple[str, str]:
        told = [workspace.get("modelworkload", name)["status"] for name in ("lender", "borrower")]
        placed = [next(iter(one.get("placements") or ()), {}) for one in told]
        return placed[0].get("lentMemory", ""), placed[1].get("borrowedFrom", "")

    workspace.wait("both statuses to tell of the loan", lambda: all(loan()), 90)
    assert loan()[1] == f"default/{lender['metadata']['name']}"
    url = f"{workspace.service_url('llmos-gateway')}/v1/completions"
    body = {"model": "lender", "prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": True}
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda _: workspace.post(url, body), range(6)))
    assert all(one["usage"]["completion_tokens"] == 300 for one in answers), "nobody was turned away"
    workspace.wait("the loan to be over", lambda: loan() == ("", ""), 180)
    last = workspace.get("modelworkload", "borrower")["status"]["lastPreemption"]
    assert (last["action"], last["by"]) == ("Evict", "default/lender")
    (now,) = workspace.pods_of("lender")
    assert now["metadata"]["uid"] == lender["metadata"]["uid"]

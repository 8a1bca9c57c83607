"""The commands against a real API server: what they print, and what they exit with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import Llmos, condition
from tests.support.crds import install_crds

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane

pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def plane(api_server: ControlPlane) -> ControlPlane:
    install_crds(api_server)
    return api_server


@pytest.fixture
def llmos(plane: ControlPlane, namespace: str) -> Llmos:
    return Llmos(plane, namespace)


def test_status_lists_workloads_with_what_keeps_them(llmos: Llmos) -> None:
    waiting = [
        condition("Accepted", "True", "Accepted"),
        condition("Scheduled", "False", "NoCapacity", "all full"),
    ]
    llmos.create("chat", {"phase": "Pending", "queuePosition": 2, "conditions": waiting})
    llmos.create("fresh")
    lines = llmos.scoped("status").splitlines()
    assert any("nobody leads" in line for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("chat", "fresh"))] == ["chat", "fresh"]
    assert "NoCapacity" in next(line for line in lines if line.startswith("chat"))


def test_status_of_one_workload_is_everything_about_it(llmos: Llmos) -> None:
    llmos.create(
        "chat",
        {
            "phase": "Running",
            "model": {"quantization": "int8"},
            "placements": [
                {"pod": "chat-0", "node": "n1", "deviceUUIDs": ["GPU-1"], "reservedMemory": "800Mi"}
            ],
            "conditions": [condition("Ready", "True", "Ready", "1 of 1 replicas serve")],
        },
    )
    text = llmos.scoped("status", "mw/chat")
    for word in ("int8", "GPU-1", "800Mi reserved", "1 of 1 replicas serve", "CONDITION"):
        assert word in text
    assert json.loads(llmos.scoped("status", "mw/chat", "--json"))["devices"] == ["GPU-1"]


def test_an_unknown_workload_names_its_neighbours(llmos: Llmos) -> None:
    llmos.create("chat")
    for command in (["status", "mw/caht"], ["explain", "caht"], ["logs", "caht"]):
        assert f"did you mean {llmos.namespace}/chat" in llmos.scoped(*command, expect=5)


def test_queue_shows_waiting_work_in_order(llmos: Llmos, plane: ControlPlane) -> None:
    queue = {
        "apiVersion": "llmos.dev/v1alpha1",
        "kind": "WorkloadQueue",
        "metadata": {"name": llmos.namespace},
        "spec": {"nominal": {"gpus": 2}},
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(queue))
    try:
        status = {"conditions": [condition("Scheduled", "False", "NoCapacity")]}
        llmos.create("second", {**status, "queuePosition": 2}, queueName=llmos.namespace)
        llmos.create("first", {**status, "queuePosition": 1}, queueName=llmos.namespace)
        llmos.create("running", {"conditions": [condition("Scheduled", "True", "Bound")]})
        found = json.loads(llmos.scoped("queue", "--json"))
        assert [row["name"] for row in found["waiting"]] == ["first", "second"]
        assert "2 gpu" in next(row["nominal"] for row in found["queues"] if row["name"] == llmos.namespace)
        assert "first" in llmos.scoped("queue")
    finally:
        plane.kubectl("delete", "wq", llmos.namespace)


def test_top_shows_devices_without_agents_as_unmeasured(llmos: Llmos, plane: ControlPlane) -> None:
    name = f"node-{llmos.namespace}"
    node = {"apiVersion": "llmos.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": name}}
    device = {
        "uuid": "GPU-t",
        "index": 0,
        "product": "SIM-T",
        "memory": "1Gi",
        "health": {"verdict": "Healthy"},
    }
    status = {
        "devices": [device],
        "ledger": {"devices": [{"uuid": "GPU-t", "reserved": "512Mi", "claims": 1}]},
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(node))
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "gn", name, "--subresource=status", "--type=merge", "-p", patch)
    try:
        row = next(row for row in json.loads(llmos("top", "--json")) if row["node"] == name)
        assert (row["reservedBytes"], row["memoryBytes"], row["usedBytes"]) == (512 << 20, 1 << 30, None)
        assert "SIM-T" in llmos("top")
    finally:
        plane.kubectl("delete", "gn", name)


def test_logs_of_a_workload_without_pods_say_why(llmos: Llmos) -> None:
    llmos.create("chat", {"decision": {"reason": "NoCapacity", "message": "3 nodes short by 1.2 GiB"}})
    assert "has no pods: 3 nodes short by 1.2 GiB" in llmos.scoped("logs", "chat", expect=1)


def test_chat_without_a_gateway_says_what_is_missing(llmos: Llmos) -> None:
    assert "llmos-gateway" in llmos("chat", "--message", "hello", expect=4)


def test_explain_answers_with_the_operators_own_scheduler(llmos: Llmos) -> None:
    llmos.create("chat", resources={"memory": "10Gi"})
    found = json.loads(llmos.scoped("explain", "mw/chat", "--json"))
    assert found["workload"] == f"{llmos.namespace}/chat"
    assert (found["replicasPlaced"], found["replicasWanted"]) == (0, 1)
    assert found["reason"] != "Bound"
    assert "0 of 1 placed" in llmos.scoped("explain", "chat")


def test_version_names_both_ends(llmos: Llmos) -> None:
    assert "kubernetes  v1." in llmos("version")


def test_a_context_that_does_not_exist_is_named_with_those_that_do(llmos: Llmos) -> None:
    assert "has no entry 'elsewhere'" in llmos("status", "--context", "elsewhere", expect=3)


def test_a_cluster_that_is_down_is_told_from_one_without_llmos(
    llmos: Llmos, plane: ControlPlane, tmp_path: Path
) -> None:
    down = tmp_path / "kubeconfig"
    text = Path(plane.kubeconfig).read_text(encoding="utf-8")
    down.write_text(text.replace(plane.url, "https://127.0.0.1:9"), encoding="utf-8")
    assert "Is the cluster up" in llmos("status", expect=3, kubeconfig=str(down))


def test_a_pod_is_not_a_workload(llmos: Llmos) -> None:
    assert "write mw/NAME" in llmos("explain", "pod/chat", expect=2)

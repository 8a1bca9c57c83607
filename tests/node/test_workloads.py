"""Model workloads in the containers of a real kubelet: served, kept over what happens beside them, and gated."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from scripts.realnode import layout
from scripts.realnode.cluster import image
from tests.node.conftest import CHAT, MODEL
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.node.conftest import Installed

pytestmark = pytest.mark.node

# Ends when told to: Python as a container's first process would ignore SIGTERM and take its whole grace period.
_ASK_ONCE = """
import os, signal, urllib.request
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print(urllib.request.urlopen(os.environ["LLMOS_ENDPOINT"] + "/models").read().decode())
signal.sigwait({signal.SIGTERM})
"""
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def serving(chatting: Installed) -> dict[str, Any]:
    """The pod that serves the first example."""
    return chatting.ready(CHAT)


def same(installed: Installed, pod: dict[str, Any]) -> bool:
    """Return whether a workload's pod is the very one it was, with no restart."""
    (now,) = installed.pods_of(CHAT)
    restarts = [one["restartCount"] for one in now["status"]["containerStatuses"]]
    return now["metadata"]["uid"] == pod["metadata"]["uid"] and restarts == [0]


def test_a_chat_model_answers_through_the_gateway(installed: Installed, serving: dict[str, Any]) -> None:
    assert serving["spec"]["nodeName"] == layout.NAME
    assert "Paris" in installed.chat(MODEL, QUESTION)


def test_a_restarted_kubelet_keeps_the_serving_pod(installed: Installed, serving: dict[str, Any]) -> None:
    node = installed.node
    before = node.inside("busybox", "cat", "/run/llmos/kubelet").stdout
    node.signal("kubelet", signal.SIGKILL)
    eventually(lambda: node.inside("busybox", "cat", "/run/llmos/kubelet").stdout != before, "a new kubelet")
    node.wait_ready()
    assert "Paris" in installed.chat(MODEL, QUESTION)
    assert same(installed, serving)


def test_an_upgrade_replaces_the_operator_and_not_the_serving_pod(
    installed: Installed, serving: dict[str, Any]
) -> None:
    before = set(installed.pods("operator"))
    installed.install("--set=log.level=debug")
    assert not before & set(installed.pods("operator"))
    assert "Paris" in installed.chat(MODEL, QUESTION)
    assert same(installed, serving)
    installed.helm("rollback", "llmos-operator", "--wait", "--timeout=180s")
    assert same(installed, serving)


@pytest.mark.usefixtures("serving")
def test_the_model_is_ready_before_the_containers_beside_it_start(installed: Installed) -> None:
    app = {
        "name": "app",
        "image": image("gateway"),
        # Asks once, at its very start: it would fail if the model were not there.
        "command": ["python", "-uc", _ASK_ONCE],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    workload = {
        "apiVersion": "llmos.dev/v1alpha1",
        "kind": "ModelWorkload",
        "metadata": {"name": "beside", "namespace": "default"},
        "spec": {
            "type": "Inference",
            "model": {"uri": "hf://sentence-transformers/all-MiniLM-L6-v2", "name": "beside"},
            "quantization": {"mode": "None"},
            "resources": {"accelerators": 1, "sharing": "Shared"},
            "serving": {"apis": ["embeddings"]},
            "podTemplate": {"spec": {"containers": [app]}},
        },
    }
    installed.tools.apply(workload)
    pod = installed.ready("beside")
    (status,) = pod["status"]["containerStatuses"]
    (runtime,) = pod["status"]["initContainerStatuses"]
    assert (status["restartCount"], runtime["ready"]) == (0, True)
    assert status["state"]["running"]["startedAt"] > runtime["state"]["running"]["startedAt"]
    words = ["logs", pod["metadata"]["name"], "--namespace=default", "--container=app"]
    said = eventually(lambda: installed.tools.kubectl(*words), "what the app was answered")
    assert json.loads(said)["data"][0]["id"] == "beside"
    (after,) = installed.pods_of("beside")
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0, "the first request was answered"

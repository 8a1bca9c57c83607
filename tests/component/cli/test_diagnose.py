"""`llmos diagnose` on objects of a real API server, read as it serves them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.clock import rfc3339
from tests.support.commands import Llmos, condition
from tests.support.crds import install_crds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.local.controlplane import ControlPlane

pytestmark = pytest.mark.component

LEASE = ("lease", "llmos-operator", "-n", "llmos-system", "--ignore-not-found")


@pytest.fixture(scope="module")
def plane(api_server: ControlPlane) -> Iterator[ControlPlane]:
    install_crds(api_server)
    yield api_server
    api_server.kubectl("delete", *LEASE)


@pytest.fixture
def llmos(plane: ControlPlane, namespace: str) -> Llmos:
    return Llmos(plane, namespace)


def lease(llmos: Llmos) -> None:
    """Let an operator lead, as far as its lease says."""
    micro = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "llmos-system"}}
    found = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "llmos-operator", "namespace": "llmos-system"},
        "spec": {"holderIdentity": "op-0", "renewTime": micro, "leaseDurationSeconds": 6},
    }
    for item in (space, found):
        llmos.plane.kubectl("apply", "-f", "-", stdin=json.dumps(item))


def a_pod(llmos: Llmos, workload: str, node: str = "", **container: Any) -> None:
    """Create a pod of a workload whose runtime container is in a given state."""
    uid = llmos.plane.kubectl("get", "mw", workload, "-n", llmos.namespace, "-o", "jsonpath={.metadata.uid}")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{workload}-0", "labels": {"llmos.dev/workload-uid": uid.strip()}},
        "spec": {"nodeName": node or None, "containers": [{"name": "runtime", "image": "acme/engine:9"}]},
    }
    llmos.plane.kubectl("create", "-n", llmos.namespace, "-f", "-", stdin=json.dumps(pod))
    status = {
        "name": "runtime",
        "image": "acme/engine:9",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        **container,
    }
    patch = json.dumps({"status": {"containerStatuses": [status]}})
    llmos.plane.kubectl(
        "patch",
        "pod",
        f"{workload}-0",
        "-n",
        llmos.namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    )


def verdict(llmos: Llmos, workload: str) -> dict[str, Any]:
    lease(llmos)
    found: dict[str, Any] = json.loads(llmos.inside("diagnose", f"mw/{workload}", "--json"))
    return found


def observed(**status: Any) -> dict[str, Any]:
    return {"observedGeneration": 1, **status}


def test_an_image_that_cannot_be_pulled(llmos: Llmos) -> None:
    llmos.create(
        "chat", observed(phase="Loading", conditions=[condition("ModelLoaded", "False", "Starting")])
    )
    a_pod(
        llmos,
        "chat",
        state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling acme/engine:9"}},
    )
    found = verdict(llmos, "chat")
    assert found["verdict"]["cause"] == "ImageMissing"
    assert found["verdict"]["evidence"][0]["about"] == "chat-0/runtime"
    text = llmos.inside("diagnose", "chat")
    assert "ImageMissing: The image of a container cannot be pulled." in text
    assert "Back-off pulling acme/engine:9" in text
    assert "what to do:" in text


def test_a_container_killed_for_memory(llmos: Llmos) -> None:
    llmos.create("chat", observed(conditions=[condition("ModelLoaded", "False", "Starting")]))
    a_pod(
        llmos,
        "chat",
        restartCount=2,
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}},
    )
    found = verdict(llmos, "chat")
    assert (found["verdict"]["cause"], found["others"]) == ("OutOfMemory", [])


def test_a_node_that_is_gone(llmos: Llmos) -> None:
    llmos.create("chat", observed(conditions=[condition("ModelLoaded", "False", "Starting")]))
    a_pod(llmos, "chat", node="never-was", state={"running": {}})
    assert verdict(llmos, "chat")["verdict"]["cause"] == "NodeGone"


def test_a_probe_that_fails(llmos: Llmos) -> None:
    llmos.create("chat", observed(conditions=[condition("ModelLoaded", "False", "Starting")]))
    a_pod(llmos, "chat", state={"running": {}})
    uid = llmos.plane.kubectl("get", "pod", "chat-0", "-n", llmos.namespace, "-o", "jsonpath={.metadata.uid}")
    event = {  # as a kubelet writes them: through the older API
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "chat-0.1"},
        "involvedObject": {"kind": "Pod", "name": "chat-0", "namespace": llmos.namespace, "uid": uid.strip()},
        "type": "Warning",
        "reason": "Unhealthy",
        "message": "Readiness probe failed: HTTP probe failed with statuscode: 503",
        "firstTimestamp": rfc3339(time.time()),
        "lastTimestamp": rfc3339(time.time()),
        "count": 3,
    }
    llmos.plane.kubectl("create", "-n", llmos.namespace, "-f", "-", stdin=json.dumps(event))
    found = verdict(llmos, "chat")
    assert found["verdict"]["cause"] == "ProbeFailing"
    assert "statuscode: 503" in found["verdict"]["evidence"][0]["text"]


def test_work_that_is_too_large_for_every_node(llmos: Llmos) -> None:
    message = "needs 140 GiB per device at int4; the largest device has 80 GiB"
    waiting = [condition("Scheduled", "False", "LargerThanAnyDevice", message)]
    llmos.create(
        "chat", observed(conditions=waiting, decision={"reason": "LargerThanAnyDevice", "message": message})
    )
    found = verdict(llmos, "chat")
    assert found["verdict"]["cause"] == "TooLarge"
    assert any("minMemory" not in step and "formats" in step for step in found["verdict"]["nextSteps"])


def test_a_paused_workload_is_no_trouble(llmos: Llmos) -> None:
    llmos.create("chat", observed(conditions=[condition("Suspended", "True", "Suspended")]), suspend=True)
    found = verdict(llmos, "chat")["verdict"]
    assert (found["cause"], found["trouble"]) == ("Paused", False)
    assert '{"spec":{"suspend":false}}' in found["nextSteps"][0]


def test_without_a_leader_that_is_the_verdict(llmos: Llmos) -> None:
    llmos.create("chat")
    lease(llmos)
    llmos.plane.kubectl("delete", *LEASE)
    assert json.loads(llmos.inside("diagnose", "chat", "--json"))["verdict"]["cause"] == "NoLeader"


def test_a_workload_that_does_not_exist_has_no_diagnosis(llmos: Llmos) -> None:
    assert "there is no workload" in llmos.inside("diagnose", "nobody", expect=5)

"""Whole GPUs handed out by the kubelet, to workloads of the chart and to pods of kube-scheduler on the same node.

The chart's agent runs with `podResources` over the NVML double, the device plugin double offers the same three GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.deviceplugin import RESOURCE
from tests.support.nodedevices import NAMESPACE, A, B, C
from tests.support.nodegpus import free, known, placed
from tests.support.standins import stand_in
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.node.conftest import Installed
    from tests.support.nodedevices import Devices

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def gpus(plugin: tuple[Installed, Devices]) -> tuple[Installed, Devices]:
    """Three GPUs that nobody holds when the first of these tests begins."""
    return free(plugin)


def whole(name: str, replicas: int = 1) -> dict[str, Any]:
    """Return a workload that wants a whole GPU for each replica."""
    workload = stand_in(name, accelerators=1, sharing="Exclusive", memory="8Gi")
    workload["spec"]["replicas"] = replicas
    return workload


def seen_by(installed: Installed, pod: str) -> str:
    """Return the devices the container of a pod sees."""
    words = ("exec", pod.partition("/")[2], "--namespace=default", "--", "/usr/bin/env")
    lines = installed.tools.kubectl(*words).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line).get("NVIDIA_VISIBLE_DEVICES", "")


def test_a_workload_gets_the_gpus_the_kubelet_has_left_and_its_claim_names_them(
    gpus: tuple[Installed, Devices],
) -> None:
    installed, devices = gpus
    devices.run("train", 1)
    devices.running("train")
    installed.tools.apply(whole("chat", 2))
    eventually(lambda: installed.condition("chat", "Ready").get("status") == "True", "two replicas serve")
    held = devices.held()
    ((others, (theirs,)),) = [(uuid, pods) for uuid, pods in held.items() if f"{NAMESPACE}/train" in pods]
    assert (set(held), theirs) == ({A, B, C}, f"{NAMESPACE}/train")

    def agreed() -> bool:
        claims = placed(installed, "chat")
        return set(claims.values()) == {A, B, C} - {others} and all(
            held[device] == [pod] for pod, device in claims.items()
        )

    eventually(agreed, "the claims name what the kubelet gave")
    assert {pod: seen_by(installed, pod) for pod in placed(installed, "chat")} == placed(installed, "chat")
    eventually(lambda: known(installed) == devices.held(), "the GPUNode names the holders")


def test_a_pod_of_kube_scheduler_waits_for_a_gpu_a_workload_holds_and_gets_it(
    gpus: tuple[Installed, Devices],
) -> None:
    installed, devices = gpus
    assert len(devices.held()) == 3
    devices.run("later", 1)

    def refused() -> bool:
        conditions = devices.status("later").get("conditions", [])
        return any(f"Insufficient {RESOURCE}" in one.get("message", "") for one in conditions)

    eventually(refused, "kube-scheduler says what is missing")
    patch = '{"spec": {"replicas": 1}}'
    installed.tools.kubectl("patch", "mw", "chat", "--namespace=default", "--type=merge", "--patch", patch)
    devices.running("later")
    installed.tools.kubectl(
        "patch", "mw", "chat", "--namespace=default", "--type=merge", "--patch", patch.replace("1", "2")
    )
    eventually(
        lambda: installed.condition("chat", "Scheduled").get("reason") == "NoCapacity",
        "the second replica says that it waits",
    )
    assert len(installed.pods_of("chat")) == 1
    devices.clear()
    eventually(lambda: len(placed(installed, "chat")) == 2, "it takes the place of pods that are gone")
    eventually(lambda: installed.condition("chat", "Ready").get("status") == "True", "both serve")


def test_however_many_ask_at_once_no_gpu_is_given_twice(gpus: tuple[Installed, Devices]) -> None:
    installed, devices = gpus
    installed.clear()
    eventually(lambda: not devices.held(), "nobody holds a device")
    installed.tools.apply(whole("left", 2), whole("right", 1))
    for number in range(3):
        devices.run(f"other-{number}", 1)
    most = 0

    def settled() -> bool:
        nonlocal most
        held = devices.held()
        most = max(most, *(len(pods) for pods in held.values()), 0)
        running = sum(devices.status(f"other-{number}").get("phase") == "Running" for number in range(3))
        ours = sum(
            pod["status"].get("phase") == "Running"
            for name in ("left", "right")
            for pod in installed.pods_of(name)
        )
        return len(held) == 3 and running + ours == 3

    eventually(settled, "three pods run on three devices")
    assert most == 1
    devices.clear()
    for name in ("left", "right"):
        eventually(lambda name=name: installed.condition(name, "Ready").get("status") == "True", name, 150.0)
    assert {pod for pods in devices.held().values() for pod in pods} == {
        *placed(installed, "left"),
        *placed(installed, "right"),
    }


def test_urgent_work_takes_the_gpu_of_work_that_can_wait_through_the_eviction_api(
    gpus: tuple[Installed, Devices],
) -> None:
    installed, devices = gpus
    installed.clear()
    idle = whole("patient", 3)
    idle["spec"]["scheduling"] = {"disruption": {"minRuntime": "0s"}}
    installed.tools.apply(idle)
    eventually(
        lambda: installed.condition("patient", "Ready").get("status") == "True", "all GPUs are taken", 150.0
    )
    urgent_class = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "urgent"},
        "value": 1000,
    }
    urgent = whole("urgent")
    urgent["spec"]["scheduling"] = {"priorityClassName": "urgent"}
    installed.tools.apply(urgent_class, urgent)
    try:
        eventually(lambda: installed.condition("urgent", "Ready").get("status") == "True", "it serves", 150.0)
        preempted = eventually(
            lambda: (told := installed.condition("patient", "Preempted")).get("status") == "True" and told,
            "who had to go is told",
        )
        assert "default/urgent" in preempted["message"]
        assert len(installed.pods_of("patient")) == 2
        assert sorted(map(len, devices.held().values())) == [1, 1, 1]
    finally:
        installed.clear()
        installed.tools.kubectl("delete", "priorityclass", "urgent")

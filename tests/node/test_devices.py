"""Devices through a real kubelet: its device manager, its admission, its pod-resources API and its restarts.

The device plugin and the NVML library are doubles over one file; kubelet, kube-scheduler, containerd and the agent are real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.realnode import layout
from tests.support.crds import await_established
from tests.support.deviceplugin import RESOURCE, NoGoError, build
from tests.support.nodedevices import NAMESPACE, A, B, C, Devices
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.realnode.node import Node

pytestmark = pytest.mark.node

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def machine(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    try:
        build()
    except NoGoError as error:
        pytest.skip(str(error))
    made = Devices(node, tmp_path_factory.mktemp("devices"))
    try:
        made.begin()
        yield made
        made.clear()
    finally:
        made.end()


@pytest.fixture
def devices(machine: Devices) -> Devices:
    """Three healthy GPUs that nobody holds."""
    machine.clear()
    machine.machine.drop("gpu.1.plugin").write()
    eventually(lambda: machine.allocatable() == "3", "all devices are offered")
    return machine


def test_the_kubelet_tells_which_device_a_pod_of_kube_scheduler_got(devices: Devices) -> None:
    devices.run("train", 2)
    devices.running("train")
    assert devices.held() == {B: [f"{NAMESPACE}/train"], C: [f"{NAMESPACE}/train"]}
    assert set(devices.visible("train").split(",")) == {B, C}
    assert devices.told().offered == {A: RESOURCE, B: RESOURCE, C: RESOURCE}
    devices.clear()


def test_a_device_that_goes_unhealthy_is_not_offered_and_a_bound_pod_is_refused(devices: Devices) -> None:
    devices.machine.set(gpu__1__plugin="Unhealthy").write()
    eventually(lambda: devices.allocatable() == "2", "the node offers two")
    assert devices.told().offered.keys() == {A, C}
    devices.run("greedy", 3, bound=True)
    eventually(lambda: devices.status("greedy").get("phase") == "Failed", "the kubelet refuses")
    assert devices.status("greedy")["reason"] in {"UnexpectedAdmissionError", f"OutOf{RESOURCE}"}
    assert devices.held() == {}


def test_holders_and_plugin_outlive_a_restart_of_the_kubelet(devices: Devices) -> None:
    devices.run("train", 1)
    devices.running("train")
    before = devices.node.inside("busybox", "cat", "/run/llmos/kubelet").stdout
    devices.node.signal("kubelet", signal.SIGTERM)
    eventually(
        lambda: devices.node.inside("busybox", "cat", "/run/llmos/kubelet").stdout != before, "a new kubelet"
    )

    def back() -> bool:
        try:
            told = devices.told()
        except Exception:  # noqa: BLE001 - it is starting
            return False
        return len(told.offered) == 3 and list(told.holders) == [C]

    eventually(back, "the new kubelet offers the devices and knows who holds one")
    assert devices.status("train")["phase"] == "Running"


def test_the_agent_writes_what_the_kubelet_tells_into_the_gpunode(devices: Devices, tmp_path: Path) -> None:
    devices.tools.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    await_established(devices.tools, "-f", str(ROOT / "crds"))
    environment = {
        **os.environ,
        **devices.machine.environment(),
        "KUBECONFIG": str(devices.node.paths.kubeconfig),
        "LLMOS_NODE": layout.NAME,
        "LLMOS_MODE": "nvml",
        "LLMOS_HOST": "127.0.0.1",
        "LLMOS_HEALTH_PORT": "0",
        "LLMOS_OPERATOR_URL": "",
        "LLMOS_POD_RESOURCES_SOCKET": str(devices.socket),
        "LLMOS_POD_RESOURCES_INTERVAL": "0.5",
    }
    log = (tmp_path / "agent.log").open("ab")
    agent = subprocess.Popen(
        [sys.executable, "-m", "llmos_operator", "agent"], env=environment, cwd=ROOT, stdout=log, stderr=log
    )

    def holders() -> dict[str, list[str]]:
        found = devices.tools.run("kubectl", "get", "gpunode", layout.NAME, "-o", "json")
        status = json.loads(found.stdout or "{}").get("status") or {}
        return {
            one["uuid"]: [holder["pod"] for holder in one.get("holders") or []]
            for one in status.get("devices") or []
        }

    try:
        eventually(lambda: holders() == {A: [], B: [], C: []}, "three devices that nobody holds")
        devices.run("train", 2)
        pod = f"{NAMESPACE}/train"
        eventually(lambda: holders() == {A: [], B: [pod], C: [pod]}, "the GPUNode names the pod")
        devices.clear()
        eventually(lambda: holders() == {A: [], B: [], C: []}, "the GPUNode follows")
    finally:
        agent.kill()
        agent.wait(20)
        log.close()
        devices.tools.run("kubectl", "delete", "gpunode", layout.NAME, "--ignore-not-found")

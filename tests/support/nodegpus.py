"""The chart on a real node whose device plugin offers three GPUs, and what its GPUNode and its pods say of them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from scripts.realnode import layout
from tests.support.deviceplugin import NoGoError, build
from tests.support.nodedevices import A, B, C, Devices
from tests.support.nvml import LIBRARY, NoCompilerError
from tests.support.nvml import build as build_nvml
from tests.support.standins import stand_in
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.node.conftest import Installed

AGENT = {
    "podResources": True,
    "config": {"mode": "nvml", "podResourcesInterval": 1},
    "env": [
        {"name": "LD_LIBRARY_PATH", "value": layout.DRIVER},
        {"name": "LLMOS_NVML_CONTROL", "value": f"{layout.DRIVER}/control"},
    ],
}


@contextmanager
def plugged(release: Installed, **config: Any) -> Iterator[Devices]:
    """Let a device plugin offer three GPUs and install the chart with an agent that asks the kubelet; ``config`` is the operator's.

    Afterwards the chart is as it was, without workloads; what ended the devices has seen to that itself.
    """
    node = release.node
    try:
        build()
        library = build_nvml() / LIBRARY
    except (NoGoError, NoCompilerError) as error:
        pytest.skip(str(error))
    (node.paths.driver / LIBRARY).write_bytes(library.read_bytes())
    made = Devices(node, node.paths.driver)
    values = node.paths.root / "gpus.json"
    values.write_text(json.dumps({"agent": AGENT, "operator": {"config": config}}), encoding="utf-8")
    try:
        made.begin()
        release.clear()
        release.install(f"--values={values}", security="privileged")
        eventually(lambda: known(release) == {A: [], B: [], C: []}, "the GPUNode shows three devices")
        yield made
    finally:
        if made.plugin is not None:
            release.clear()
            made.clear()
        made.end()
        if release.standing is not None and f"--values={values}" in release.standing:
            release.install()
        for file in node.paths.driver.iterdir():
            file.unlink()


def known(installed: Installed) -> dict[str, list[str]]:
    """Return the holders of each device as the GPUNode names them."""
    status = installed.api.find("gpunodes", layout.NAME).get("status") or {}
    return {
        one["uuid"]: [holder["pod"] for holder in one.get("holders") or []]
        for one in status.get("devices") or []
    }


def placed(installed: Installed, name: str) -> dict[str, str]:
    """Return the device of each placed pod of a workload, as its claim says."""
    found = {}
    for pod in installed.pods_of(name):
        claim = json.loads(pod["metadata"]["annotations"]["llmos.dev/claim"])
        (device,) = claim["devices"]
        found[f"default/{pod['metadata']['name']}"] = device
    return found


def shared(name: str, replicas: int = 1, memory: str = "2Gi") -> dict[str, Any]:
    """Return a workload that shares a GPU."""
    workload = stand_in(name, accelerators=1, sharing="Shared", memory=memory)
    workload["spec"]["replicas"] = replicas
    return workload


def holders(installed: Installed) -> dict[str, dict[str, Any]]:
    """Return the holder pods by namespace and name."""
    found = installed.items("pods", labelSelector=f"{names.LABEL_ROLE}={names.ROLE_HOLDER}")
    return {f"{names.SYSTEM_NAMESPACE}/{one['metadata']['name']}": one for one in found}


def serves(installed: Installed, *workloads: str) -> None:
    """Wait until workloads are Ready."""
    for name in workloads:
        eventually(
            lambda name=name: installed.condition(name, "Ready").get("status") == "True",
            f"{name} serves",
            150.0,
        )


def held_by_holders(installed: Installed, devices: Devices) -> dict[str, str]:
    """Return the holder pod of each device that one has, as the kubelet tells."""
    ours = holders(installed)
    return {uuid: pods[0] for uuid, pods in devices.held().items() if pods[0] in ours}


def free(machine: tuple[Installed, Devices]) -> tuple[Installed, Devices]:
    """Return the machine when nobody holds one of its GPUs any more."""
    installed, devices = machine
    installed.clear()
    devices.clear()
    eventually(lambda: devices.held() == {}, "no device is held")
    eventually(lambda: holders(installed) == {}, "no holder pod is left")
    return machine

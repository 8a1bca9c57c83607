"""The chart on a real node whose device plugin offers three GPUs, and what its GPUNode and its pods say of them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from scripts.realnode import layout
from tests.support.deviceplugin import NoGoError, build
from tests.support.nodedevices import A, B, C, Devices
from tests.support.nvml import LIBRARY, NoCompilerError
from tests.support.nvml import build as build_nvml
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

    Afterwards the chart is as it was, without workloads.
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
        release.clear()
        made.clear()
    finally:
        made.end()
        release.install()
        for file in node.paths.driver.iterdir():
            file.unlink()


def known(installed: Installed) -> dict[str, list[str]]:
    """Return the holders of each device as the GPUNode names them."""
    found = installed.tools.run("kubectl", "get", "gpunode", layout.NAME, "-o", "json")
    status = json.loads(found.stdout or "{}").get("status") or {}
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

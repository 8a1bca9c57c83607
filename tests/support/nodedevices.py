"""GPUs of a real node that are none: their file, the device plugin double that offers them to the kubelet, and pods that ask.

kubelet, kube-scheduler and containerd are real; the device plugin and the NVML library are doubles over one file.
"""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.telemetry.kubelet.pod_resources import read
from scripts.realnode import layout
from tests.support.apiclient import ApiClient
from tests.support.deviceplugin import RESOURCE, build
from tests.support.nvml import Double
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.telemetry.kubelet.pod_resources import Allocations
    from scripts.realnode.node import Node

NAMESPACE = "devices"
A, B, C = (f"GPU-{name}{'0' * 7}-0000-0000-0000-000000000000" for name in "abc")


class Devices:
    """Three GPUs of a node: their file, the device plugin that offers them, and pods that ask for some."""

    def __init__(self, node: Node, folder: Path) -> None:
        """``folder`` is for the file that says which GPUs there are, and in what state."""
        self.node = node
        self.tools = node.tools()
        self.api = ApiClient(self.tools)
        self.machine = Double(folder)
        for index, uuid in enumerate((A, B, C)):
            self.machine.with_gpu(index, uuid=uuid, memory__used=0)
        self.machine.write()
        kubelet = (
            node.paths.data / "kubelet"
        )  # as the machine sees the node's: a socket's path is all it takes
        self.socket = kubelet / "pod-resources" / "kubelet.sock"
        self._plugins = kubelet / "device-plugins"
        self.plugin: subprocess.Popen[bytes] | None = None

    def start_plugin(self) -> None:
        words = [str(build()), "-control", str(self.machine.path), "-plugins", str(self._plugins)]
        with (self.node.paths.logs / "deviceplugin.log").open("ab") as log:
            self.plugin = subprocess.Popen(words, stdout=log, stderr=log)

    def begin(self) -> None:
        """Make the namespace of the pods and offer the devices."""
        self.tools.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        account = ("get", "serviceaccount", "default", f"--namespace={NAMESPACE}")
        eventually(
            lambda: self.tools.run("kubectl", *account).returncode == 0, "the namespace has its account"
        )
        self.start_plugin()
        eventually(lambda: self.allocatable() == "3", "the kubelet offers three devices")

    def end(self) -> None:
        """Take the offer back; nobody may hold a device any more. Not an error when it has been."""
        self.stop_plugin()
        self.api.close()
        self.tools.kubectl(
            "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true", "--timeout=90s"
        )

    def stop_plugin(self) -> None:
        if self.plugin is not None:
            self.plugin.kill()
            self.plugin.wait(20)
            self.plugin = None

    def allocatable(self) -> str:
        status = self.api.get("nodes", layout.NAME)["status"]
        return str(status["allocatable"].get(RESOURCE, ""))

    def run(self, name: str, gpus: int, *, bound: bool = False) -> None:
        """Create a pod that asks for GPUs: left to kube-scheduler, or bound to the node by its creator as ours are."""
        spec: dict[str, Any] = {
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": layout.PAUSE_IMAGE,
                    "imagePullPolicy": "Never",
                    "resources": {"limits": {RESOURCE: str(gpus)}},
                }
            ],
        }
        if bound:
            spec["nodeName"] = layout.NAME
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.tools.apply(pod, namespace=NAMESPACE)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get("pods", name, NAMESPACE).get("status", {})
        return found

    def running(self, name: str) -> None:
        eventually(lambda: self.status(name).get("phase") == "Running", f"{name} runs")

    def visible(self, name: str) -> str:
        """Return the devices the container of a pod sees."""
        words = ("exec", name, f"--namespace={NAMESPACE}", "--", "/usr/bin/env")
        lines = self.tools.kubectl(*words).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line).get(names.ENV_DEVICES, "")

    def told(self) -> Allocations:
        return asyncio.run(read(str(self.socket)))

    def held(self) -> dict[str, list[str]]:
        """Return the pods on each held device, as the kubelet tells."""
        return {uuid: [one.pod for one in holders] for uuid, holders in self.told().holders.items()}

    def clear(self) -> None:
        words = ("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--wait=true", "--timeout=90s")
        self.tools.kubectl(*words, "--grace-period=0", "--force")
        eventually(
            lambda: not any(pod.startswith(f"{NAMESPACE}/") for pods in self.held().values() for pod in pods),
            "none of them holds a device",
        )

"""A real `llmos agent` process with a node's rights, a Node to measure, and an operator to tell."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmos_operator.api import names
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import GPU_NODES, NODES
from llmos_operator.cluster.transport import Transport, connect
from llmos_operator.local.kubeconfig import write_pod_kubeconfig
from tests.support.crds import install_crds
from tests.support.ingest import IngestEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llmos_operator.local.controlplane import ControlPlane

Json = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[2]
GIB = 1 << 30
ACCOUNT = "test-agent"
# What the chart grants an agent, and nothing more.
RULES = [
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [names.GROUP], "resources": ["gpunodes"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": [names.GROUP], "resources": ["gpunodes/status"], "verbs": ["get", "patch"]},
    {"apiGroups": [names.GROUP], "resources": ["modelcaches"], "verbs": ["list", "watch"]},
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": ["bucket-keys", "absent"],
        "verbs": ["get"],
    },
]


class AgentProcess:
    """One `llmos agent`, started and ended by a test. Logs are JSON lines on its standard error."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self._environment = {**os.environ, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> AgentProcess:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llmos_operator", "agent"],
                env=self._environment,
                cwd=REPOSITORY,
                stdout=out,
                stderr=out,
            )
        return self

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def lines(self) -> list[Json]:
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def get(self, path: str) -> tuple[int, str]:
        """GET from the health server; (0, "") while it does not answer."""
        ports = [line["port"] for line in self.lines() if line.get("message") == "health server listens"]
        if not ports:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float | None:
        """Return the value of one series of /metrics."""
        for line in self.get("/metrics")[1].splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found.group(1) or "") for key, value in labels.items()):
                return float(found.group(2))
        return None

    def usage(self) -> tuple[float, int]:
        """Return CPU seconds so far and resident bytes now."""
        assert self.process is not None
        proc = Path(f"/proc/{self.process.pid}")
        stat = (proc / "stat").read_text().rpartition(")")[2].split()
        resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), resident


@dataclass
class AgentBench:
    """Everything a test of the agent needs; see :func:`agent_bench`."""

    plane: ControlPlane
    port: Transport
    endpoint: IngestEndpoint
    folder: Path
    node: str
    agents: list[AgentProcess] = field(default_factory=list)

    def agent(self, **environment: str) -> AgentProcess:
        """Start an agent; settings as LLMOS_ variables without the prefix, other variables as they are."""
        fixed = {
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "LLMOS_NODE": self.node,
            "LLMOS_HOST": "127.0.0.1",
            "LLMOS_HEALTH_PORT": "0",
            "LLMOS_OPERATOR_URL": self.endpoint.url,
            "LLMOS_SAMPLE_INTERVAL": "0.2",
            "LLMOS_PROCESS_INTERVAL": "0.4",
            "LLMOS_POD_RESOURCES_SOCKET": "",
            "LLMOS_POD_RESOURCES_INTERVAL": "0.2",
        }
        made = AgentProcess(self.folder / f"agent-{len(self.agents)}.log", {**fixed, **environment})
        self.agents.append(made)
        return made.start()

    async def announce(self, *devices: str, faults: list[Json] | None = None) -> None:
        """Write the node's annotations; devices by name, each of 1 GiB."""
        told = [
            {"uuid": uuid, "index": at, "product": "SIM-A", "memoryBytes": GIB}
            for at, uuid in enumerate(devices)
        ]
        annotations = {
            names.ANNOTATION_SIMULATED_GPUS: json.dumps(told),
            names.ANNOTATION_SIMULATED_FAULTS: json.dumps(faults or []),
        }
        await self.port.merge_patch(NODES, self.node, {"metadata": {"annotations": annotations}})

    async def gpunode(self) -> Json:
        """Return the GPUNode, {} if there is none."""
        try:
            return await self.port.get(GPU_NODES, self.node)
        except NotFound:
            return {}

    async def devices(self) -> dict[str, Json]:
        """Return the GPUNode's devices by uuid."""
        status = (await self.gpunode()).get("status") or {}
        return {device["uuid"]: device for device in status.get("devices") or []}

    async def verdict(self, uuid: str) -> tuple[str, str]:
        """Return verdict and reason of a device, ("", "") if it is not there."""
        health = (await self.devices()).get(uuid, {}).get("health") or {}
        return health.get("verdict", ""), health.get("reason", "")

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 90.0) -> float:
        """Wait until ``condition`` (plain or async) holds; return how long it took in seconds."""
        started = time.monotonic()
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return time.monotonic() - started
            logs = "\n".join(agent.text()[-3000:] for agent in self.agents[-1:])
            assert time.monotonic() - started < seconds, f"{what}: not within {seconds} s\n{logs}"
            await asyncio.sleep(0.02)


def prepare(plane: ControlPlane) -> None:
    """Do once for a control plane what all benches need: CRDs, and an account with an agent's rights."""
    install_crds(plane)
    give_rights(plane, ACCOUNT, "default")


def give_rights(plane: ControlPlane, account: str, namespace: str) -> None:
    """Make a ServiceAccount with an agent's rights."""
    rbac = "rbac.authorization.k8s.io"
    plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": account}, "rules": RULES},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": account},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
    )


def write_kubeconfig(plane: ControlPlane, folder: Path, secret: str) -> None:
    """Write a kubeconfig into ``folder`` that uses a token."""
    token = folder / "token"
    token.write_text(secret)
    cluster = yaml.safe_load(plane.kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"])
    write_pod_kubeconfig(folder / "kubeconfig", plane.url, authority, token, "default")


@asynccontextmanager
async def agent_bench(plane: ControlPlane, folder: Path, node: str) -> AsyncIterator[AgentBench]:
    """A Node on a prepared API server, a token for its agent and an endpoint for telemetry; all ended afterwards."""
    port = await connect(str(plane.kubeconfig))
    await port.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    write_kubeconfig(plane, folder, plane.kubectl("create", "token", ACCOUNT, "-n", "default").strip())
    endpoint = IngestEndpoint(node)
    await endpoint.start()
    bench = AgentBench(plane, port, endpoint, folder, node)
    try:
        yield bench
    finally:
        for agent in bench.agents:
            agent.kill()
        await endpoint.stop()
        for kind in (NODES, GPU_NODES):
            with suppress(NotFound):
                await port.delete(kind, node)
        await port.close()

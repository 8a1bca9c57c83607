"""A real `llmos operator` process against a real API server, with nodes, models and a kubelet to play with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError, ClientSession, web

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.transport import Transport, connect
from llmos_operator.errors import LlmosError
from llmos_operator.local.hub.server import HubServer
from llmos_operator.local.hub.store import Store as HubStore
from tests.support.apiproxy import ApiProxy
from tests.support.crds import install_crds
from tests.support.fakekubelet import FakeKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llmos_operator.local.controlplane import ControlPlane

Json = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM = "llmos-system"
SERVICE_ACCOUNTS = ports.Kind("", "v1", "serviceaccounts", "ServiceAccount")
GIB = 1 << 30
ALLOCATIONS_KNOWN = {
    "type": "AllocationsKnown",
    "status": "True",
    "reason": "AsExpected",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


class OperatorProcess:
    """One `llmos operator`, started and ended by a test."""

    def __init__(self, kubeconfig: Path, folder: Path, name: str, env: dict[str, str]) -> None:
        self.log = folder / f"{name}.log"
        self._env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "LLMOS_HOST": "127.0.0.1",
            "LLMOS_HEALTH_PORT": "0",
            "LLMOS_INGEST_PORT": "0",
            "LLMOS_IDENTITY": name,
            "LLMOS_LOG__FORMAT": "text",
            "LLMOS_LOG__LEVEL": "debug",
            "LLMOS_MASTER_KEY_FILE": str(folder / "master.key"),
            **env,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llmos_operator", "operator"],
                env=self._env,
                cwd=REPOSITORY,
                stdout=out,
                stderr=out,
            )

    def kill(self) -> None:
        """End it without warning."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """Ask it to end and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def port_of(self, server: str) -> int:
        """Return the port a server of the process listens on, from its log."""
        lines = [line for line in self.text().splitlines() if f"{server} server listens" in line]
        return int(lines[-1].rpartition("port=")[2].split()[0])

    async def probe(self, path: str) -> int:
        """Return the status of a health endpoint, 0 if nothing answers."""
        try:
            async with (
                ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.port_of('health')}{path}") as answer,
            ):
                return answer.status
        except (OSError, IndexError):
            return 0


@dataclass
class Bench:
    """Everything a test of the operator needs; see :func:`bench`."""

    plane: ControlPlane
    port: Transport
    proxy: ApiProxy
    kubelet: FakeKubelet
    folder: Path
    hub: Path
    hub_url: str
    namespace: str = "team"
    operators: list[OperatorProcess] = field(default_factory=list)
    agents: list[FakeAgent] = field(default_factory=list)

    def operator(self, name: str = "operator-a", *, direct: bool = False, **env: str) -> OperatorProcess:
        """Start an operator, through the proxy unless ``direct``. Further settings as environment variables."""
        config = Path(self.plane.kubeconfig)
        if not direct:
            config = self.proxy.write_kubeconfig(self.folder / "proxy.kubeconfig")
        settings = {"LLMOS_SOURCES__HUB_ENDPOINT": self.hub_url} | env
        made = OperatorProcess(config, self.folder, name, settings)
        self.operators.append(made)
        made.start()
        return made

    async def node(
        self, name: str, *, devices: int = 1, memory: str = "1Gi", cpu: str = "64", plugin: bool = True
    ) -> None:
        """Register a node with simulated devices; with ``plugin`` it advertises them as a device plugin does."""
        amounts = {"cpu": cpu, "memory": "256Gi", "pods": "500"}
        if plugin:
            amounts["nvidia.com/gpu"] = str(devices)
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {"llmos.dev/simulated": "true", "kubernetes.io/hostname": name},
            },
        }
        await self.port.create(ports.NODES, body)
        await self.port.merge_patch(ports.NODES, name, {"spec": {"taints": None}})
        ready = {"type": "Ready", "status": "True", "reason": "Test", "message": ""}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        await self.port.merge_patch(ports.NODES, name, {"status": status}, subresource="status")
        await self.port.apply(ports.GPU_NODES, {"metadata": {"name": name}}, manager="test")
        await self.devices(name, devices, memory)

    async def devices(
        self,
        name: str,
        count: int,
        memory: str = "1Gi",
        reason: str = "",
        watts: int | None = None,
        given: dict[int, str] | None = None,
        **verdicts: str,
    ) -> None:
        """Write the devices of a node; ``verdicts`` maps d0, d1, … to a verdict, each for ``reason``.

        ``watts`` is their power limit; None: they tell none. ``given`` maps indices to the pods that the kubelet says it
        gave the devices of its device plugin to; None: it tells nothing.
        """
        limit = {} if watts is None else {"powerLimitMilliwatts": watts * 1000}
        listed = [
            {
                "uuid": f"GPU-sim-{name}-{index}",
                "index": index,
                "product": "SIM-A",
                "memory": memory,
                "computeCapability": "8.0",
                **limit,
                **_allocation(index, given),
                "health": {
                    "verdict": verdicts.get(f"d{index}", "Healthy"),
                    "reason": reason if f"d{index}" in verdicts else "",
                },
            }
            for index in range(count)
        ]
        told = [] if given is None else [ALLOCATIONS_KNOWN]
        status = {"mode": "simulated", "devices": listed, "conditions": told}
        body = {"metadata": {"name": name}, "status": status}
        await self.port.patch_status(ports.GPU_NODES, body, manager="test-agent")

    async def telemetry(self, operator: OperatorProcess, node: str) -> FakeAgent:
        """Let an agent of ``node`` report to ``operator`` until the bench is closed: devices in use by nobody."""
        agent = FakeAgent(self, operator, node)
        self.agents.append(agent)
        await agent.start()
        return agent

    async def apply(self, name: str, uri: str, **spec: Any) -> Json:
        """Create or change a ModelWorkload."""
        body = {
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"model": {"uri": uri}, **spec},
        }
        return await self.port.apply(ports.MODEL_WORKLOADS, body, manager="test", namespace=self.namespace)

    async def claim(
        self, name: str, *, mode: str = "ReadWriteMany", bound: bool = True, on: str = ""
    ) -> None:
        """Make a PersistentVolumeClaim, bound as a volume controller does; `on` names the only node of its volume."""
        size = {"storage": "1Gi"}
        spec: Json = {"accessModes": [mode], "storageClassName": "", "resources": {"requests": size}}
        if bound:
            spec["volumeName"] = f"pv-{name}"
            term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [on]}]}
            place = {"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}} if on else {}
            volume = {"accessModes": [mode], "capacity": size, "hostPath": {"path": f"/v/{name}"}, **place}
            body = {"metadata": {"name": f"pv-{name}"}, "spec": volume}
            await self.port.apply(ports.VOLUMES, body, manager="test")
        body = {"metadata": {"name": name, "namespace": self.namespace}, "spec": spec}
        await self.port.apply(ports.VOLUME_CLAIMS, body, manager="test", namespace=self.namespace)
        if bound:
            await self.bind(name)

    async def bind(self, name: str) -> None:
        """Say that a claim is bound."""
        status = {"status": {"phase": "Bound"}}
        await self.port.merge_patch(
            ports.VOLUME_CLAIMS, name, status, namespace=self.namespace, subresource="status"
        )

    async def delete(self, name: str) -> None:
        await self.port.delete(ports.MODEL_WORKLOADS, name, namespace=self.namespace)

    async def remove(self, pod: Json) -> None:
        """Delete a pod without grace."""
        meta = pod["metadata"]
        await self.port.delete(
            ports.PODS, meta["name"], namespace=meta["namespace"], uid=meta["uid"], grace_seconds=0
        )

    async def priorities(self, **values: int) -> None:
        """Make PriorityClasses."""
        for name, value in values.items():
            body = {"metadata": {"name": name}, "value": value}
            await self.port.apply(ports.PRIORITY_CLASSES, body, manager="test")

    async def workload(self, name: str) -> Json:
        return await self.port.get(ports.MODEL_WORKLOADS, name, namespace=self.namespace)

    async def pods(self, name: str = "") -> list[Json]:
        """Return the pods of a workload (all of the namespace's if empty), by name."""
        selector = f"llmos.dev/workload={name}" if name else ""
        return await collect(self.port, ports.PODS, self.namespace, label_selector=selector)

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str, seconds: float = 90.0) -> Any:
        """Return the first true result of ``condition``; fails naming ``what``, with the operators' last words."""
        deadline, trouble = time.monotonic() + seconds, ""
        while True:
            try:
                result = await condition()
            except (LlmosError, OSError) as error:
                result, trouble = None, f" ({type(error).__name__}: {error})"
            if result:
                return result
            if time.monotonic() > deadline:
                words = "\n".join(one.text()[-6000:] for one in self.operators)
                raise AssertionError(f"not within {seconds:.0f} s: {what}{trouble}\n{words}")
            await asyncio.sleep(0.05)

    async def until_phase(self, name: str, phase: str, seconds: float = 90.0) -> Json:
        seen: list[str] = []

        async def reached() -> Json | None:
            found = await self.workload(name)
            status = found.get("status") or {}
            seen[:] = [str({key: status.get(key) for key in ("phase", "summary", "observedGeneration")})]
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            return found if current and status.get("phase") == phase else None

        try:
            return await self.until(reached, f"{name} is {phase}", seconds)
        except AssertionError as error:
            pods = await self.pods(name)
            states = [f"{one['metadata']['name']}: {one['status']}" for one in pods]
            said = [
                line[:300]
                for one in self.operators
                for line in one.text().splitlines()
                if f"/{name} " in line
            ]
            details = f"pods {states}, kubelet {self.kubelet.troubles[-5:]}, said {said}"
            raise AssertionError(f"{name} was last {seen}; {details}; {error}") from None

    async def until_condition(
        self, name: str, kind: str, status: str, reason: str = "", seconds: float = 90.0
    ) -> Json:
        async def reached() -> Json | None:
            found = condition_of(await self.workload(name), kind)
            return found if found.get("status") == status and reason in {"", found.get("reason")} else None

        return await self.until(reached, f"{name}: {kind}={status} {reason}", seconds)

    async def events(self, name: str) -> list[Json]:
        """Return the Events about a workload that is there, and none about former ones of its name."""
        uid = (await self.workload(name))["metadata"]["uid"]
        found = await collect(self.port, ports.EVENTS, self.namespace)
        return [one for one in found if (one.get("regarding") or {}).get("uid") == uid]


class FakeAgent:
    """Sends telemetry as the agent of a node does, with a token of a real ServiceAccount bound to a pod on the node."""

    def __init__(self, bench: Bench, operator: OperatorProcess, node: str) -> None:
        self.used: dict[str, int] = {}  # by UUID; 0 without an entry
        self.processes: dict[
            str, dict[str, int]
        ] = {}  # by UUID: memory by pod UID; not told without an entry
        self.statuses: list[int] = []
        self._bench = bench
        self._operator = operator
        self._node = node
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.token = await agent_token(self._bench.port, self._node)
        self._task = asyncio.create_task(self._run())
        await self._bench.until(self._heard, f"telemetry of {self._node} is taken")

    def report_to(self, operator: OperatorProcess) -> None:
        """Report to another operator from now on."""
        self._operator = operator

    async def _heard(self) -> bool:
        return 204 in self.statuses

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        sequence = 0
        async with ClientSession(headers={"Authorization": f"Bearer {self.token}"}) as session:
            while True:
                sequence += 1
                with suppress(OSError, IndexError, ClientError, LlmosError):  # an agent goes on
                    await self._send(session, sequence)
                await asyncio.sleep(0.3)

    async def _send(self, session: ClientSession, sequence: int) -> None:
        found = await self._bench.port.get(ports.GPU_NODES, self._node)
        devices = [
            {
                "uuid": one["uuid"],
                "index": one["index"],
                "memoryTotalBytes": GIB,
                "memoryUsedBytes": self.used.get(one["uuid"], 0),
                "verdict": "Healthy",
            }
            for one in found["status"]["devices"]
        ]
        for one in devices:
            told = self.processes.get(one["uuid"])
            if told is not None:
                one["processes"] = [
                    {"pid": pid, "memoryBytes": used, "podUid": pod}
                    for pid, (pod, used) in enumerate(told.items(), 2)
                ]
        body = {"node": self._node, "epoch": 1, "sequence": sequence, "devices": devices}
        url = f"http://127.0.0.1:{self._operator.port_of('ingest')}/v1/telemetry"
        async with session.post(url, json=body) as answer:
            self.statuses.append(answer.status)


def _allocation(index: int, given: dict[int, str] | None) -> Json:
    """Return what an agent writes of the kubelet's word on a device."""
    if given is None:
        return {}
    holders = [{"pod": given[index], "resource": "nvidia.com/gpu"}] if index in given else []
    return {"resource": "nvidia.com/gpu", "holders": holders}


async def agent_token(port: Transport, node: str, account: str = "llmos-agent") -> str:
    """Return a ServiceAccount token that is bound to a pod of ``node``."""
    await port.apply(SERVICE_ACCOUNTS, {"metadata": {"name": account}}, manager="test", namespace=SYSTEM)
    name = f"{account}-{node}"
    spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "agent", "image": "i"}]}
    made = await port.create(ports.PODS, {"metadata": {"name": name}, "spec": spec}, namespace=SYSTEM)
    bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": made["metadata"]["uid"]}
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"boundObjectRef": bound},
    }
    path = SERVICE_ACCOUNTS.path(SYSTEM, account, "token")
    return (await port.request("POST", path, body=body))["status"]["token"]


def condition_of(workload: Json, kind: str) -> Json:
    """Return a condition by type, {} if there is none."""
    conditions = (workload.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind), {})


async def collect(port: Transport, kind: ports.Kind, namespace: str = "", **selection: str) -> list[Json]:
    """Return all objects of a kind."""
    return [
        item async for page in port.list_pages(kind, namespace=namespace, **selection) for item in page.items
    ]


async def _wipe(port: Transport) -> None:
    for kind in (ports.MODEL_WORKLOADS, ports.SERVICES, ports.PODS, ports.POD_DISRUPTION_BUDGETS):
        for item in await collect(port, kind):
            meta = item["metadata"]
            if kind == ports.SERVICES and meta["namespace"] == "default":
                continue
            await _delete(port, kind, meta["name"], meta["namespace"])
    await _wipe_volumes(port)
    for kind in (
        ports.GPU_NODES,
        ports.NODES,
        ports.WORKLOAD_QUEUES,
        ports.MODEL_PROFILES,
        ports.PRIORITY_CLASSES,
    ):
        for item in await collect(port, kind):
            if not item["metadata"]["name"].startswith("system-"):
                await _delete(port, kind, item["metadata"]["name"], "")
    for kind in (ports.LEASES, ports.JOBS):
        for item in await collect(port, kind, SYSTEM):
            await _delete(port, kind, item["metadata"]["name"], SYSTEM)


async def _delete(port: Transport, kind: ports.Kind, name: str, namespace: str) -> None:
    try:
        await port.delete(kind, name, namespace=namespace, grace_seconds=0)
    except NotFound:
        return


async def _wipe_volumes(port: Transport) -> None:
    for kind in (ports.VOLUME_CLAIMS, ports.VOLUMES):
        for item in await collect(port, kind):
            await delete_protected(
                port, kind, item["metadata"]["name"], item["metadata"].get("namespace", "")
            )


async def delete_protected(port: Transport, kind: ports.Kind, name: str, namespace: str = "") -> None:
    """Delete a claim or a volume: the controller that takes its finalizer away does not run."""
    await _delete(port, kind, name, namespace)
    try:
        await port.merge_patch(kind, name, {"metadata": {"finalizers": None}}, namespace=namespace)
    except NotFound:
        return


async def _namespace(port: Transport, name: str) -> None:
    await port.apply(ports.NAMESPACES, {"metadata": {"name": name}}, manager="test")


@asynccontextmanager
async def bench(plane: ControlPlane, folder: Path) -> AsyncIterator[Bench]:
    """Yield a bench on ``plane``: an empty cluster with a default queue, a hub, a proxy and a kubelet."""
    install_crds(plane)
    (folder / "master.key").write_bytes(b"0123456789abcdef0123456789abcdef")
    port = await connect(str(plane.kubeconfig), process="test")
    for name in (SYSTEM, "team"):
        await _namespace(port, name)
    await _wipe(port)
    await port.apply(ports.WORKLOAD_QUEUES, {"metadata": {"name": "default"}, "spec": {}}, manager="test")
    hub = folder / "hub"
    hub.mkdir()
    runner = web.AppRunner(HubServer(HubStore(hub)).app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy, kubelet = ApiProxy(str(plane.kubeconfig)), FakeKubelet(port)
    await proxy.start()
    await kubelet.start()
    made = Bench(plane, port, proxy, kubelet, folder, hub, f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield made
    finally:
        for agent in made.agents:
            await agent.close()
        for one in made.operators:
            one.kill()
        await kubelet.close()
        await proxy.close()
        await _wipe(port)
        await runner.cleanup()
        await port.close()

"""Telemetry: what samples of 1,000 GPUs once a second cost the operator, and what of them reaches etcd.

A real `llmos operator` on a real etcd and kube-apiserver with 125 nodes of 8 GPUs, a quarter of them held by models that
serve. First nobody reports: that is the baseline. Then every node is sampled once a second and reports as its agent does,
by the agent's own rule of what is told when, over a connection and with a token of its own, and writes the GPUNode once a minute.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, TCPConnector

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.transport import connect
from llmos_operator.telemetry.telling import Telling
from tests.bench.load import TEAM, WIDTH, Writes, each, furnish, settled, submit, usage, writes
from tests.bench.report import Table
from tests.support.cluster import api_only
from tests.support.crds import install_crds
from tests.support.operator_process import GIB, OperatorProcess, agent_token, collect

if TYPE_CHECKING:
    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.operator_process import Bench

NODES, DEVICES, HELD = 125, 8, 250
SECONDS = 120.0  # of each of the two measurements
WARM = 15.0  # until every token has been reviewed once and the first samples are taken in
GOAL = 0.05  # of a core
LISTED_EVERY = 10  # batches between two process lists of one device
STATUS_SECONDS = 60.0
MIB = 1 << 20
JUMP = 0.01  # of a second in which a device at work takes or frees more memory than its band
Tenants = dict[str, str]  # device UUID -> pod UID
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What some time cost: `cpu` in cores, `memory` the peak in bytes, `revisions` of etcd, batches that were taken."""

    seconds: float
    cpu: float
    memory: int
    revisions: int
    writes: Writes
    taken: int = 0


class Agent:
    """Reports for one node. Values of devices at work wander, those of the others hardly."""

    def __init__(self, cluster: Bench, node: str, number: int, tenants: Tenants) -> None:
        self.taken = self.refused = 0
        self._cluster, self._node, self._number, self._tenants = cluster, node, number, tenants
        self._rng = random.Random(number)
        self._memory = {self._uuid(n): GIB for n in range(DEVICES) if self._uuid(n) in tenants}
        self._energy = [0] * DEVICES
        self._sequence = 0
        self._telling = Telling(1.0)

    def _uuid(self, index: int) -> str:
        return f"GPU-sim-{self._node}-{index}"

    async def run(self, url: str) -> None:
        """Report until cancelled; agents do not begin at the same moment."""
        token = await agent_token(self._cluster.port, self._node)
        # Each from an address of its own, as nodes have: reviews of unknown tokens are bounded by sender.
        connector = TCPConnector(local_addr=(f"127.1.0.{self._number + 1}", 0))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        loop = asyncio.get_running_loop()
        due = loop.time() + self._rng.random()
        written = loop.time() - self._rng.random() * STATUS_SECONDS
        async with ClientSession(headers=headers, connector=connector) as session:
            while True:
                await asyncio.sleep(max(0.0, due - loop.time()))
                due += 1.0
                batch, told = self._telling.take(self._batch())
                if told:
                    await self._post(session, url, batch)
                if loop.time() - written >= STATUS_SECONDS:
                    written = loop.time()
                    body = {"metadata": {"name": self._node}}
                    await self._cluster.port.apply(ports.GPU_NODES, body, manager="test-agent")
                    await self._cluster.devices(self._node, DEVICES, "8Gi")

    async def _post(self, session: ClientSession, url: str, batch: Json) -> None:
        body = json.dumps(batch, separators=(",", ":")).encode()
        async with session.post(f"{url}/v1/telemetry", data=body) as answer:
            if answer.status == HTTPStatus.NO_CONTENT:
                self.taken += 1
                self._telling.taken(batch)
            else:
                self.refused += 1

    def _batch(self) -> Json:
        self._sequence += 1
        devices = [self._sample(index) for index in range(DEVICES)]
        return {"node": self._node, "epoch": 1, "sequence": self._sequence, "devices": devices}

    def _sample(self, index: int) -> Json:
        uuid, rng = self._uuid(index), self._rng
        pod = self._tenants.get(uuid)
        watts = rng.randint(250_000, 600_000) if pod else rng.randint(60_000, 75_000)
        self._energy[index] += watts
        found: Json = {
            "uuid": uuid,
            "index": index,
            "verdict": "Healthy",
            "reason": "AsExpected",
            "memoryTotalBytes": 8 * GIB,
            "memoryUsedBytes": self._used(uuid) if pod else 4 * MIB,
            "utilizationPercent": rng.randint(30, 100) if pod else 0,
            "temperatureCelsius": rng.randint(50, 75) if pod else rng.randint(30, 33),
            "powerMilliwatts": watts,
            "energyMillijoules": self._energy[index],
            "throttledMilli": rng.randint(0, 30),
            "riskMilli": 0,
            "smActiveMilli": rng.randint(200, 900) if pod else 0,
            "dramActiveMilli": rng.randint(100, 600) if pod else 0,
        }
        if (self._sequence + self._number) % LISTED_EVERY == index:
            found["processes"] = (
                [{"pid": 4242, "memoryBytes": found["memoryUsedBytes"], "podUid": pod}] if pod else []
            )
        return found

    def _used(self, uuid: str) -> int:
        step = 128 if self._rng.random() < JUMP else 4
        wanders = self._memory[uuid] + self._rng.choice((-step, step)) * MIB
        self._memory[uuid] = min(max(wanders, 256 * MIB), 768 * MIB)  # of the 880 MiB it was given
        return self._memory[uuid]


def run() -> list[Table]:
    """Measure on one control plane."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder)) as plane:
        install_crds(plane)
        idle, told = asyncio.run(_measure(plane, Path(folder)))
    return [_table(idle, told)]


async def _measure(plane: ControlPlane, folder: Path) -> tuple[Stretch, Stretch]:
    port = await connect(str(plane.kubeconfig), process="bench", connections=WIDTH)
    process = OperatorProcess(plane.kubeconfig, folder, "operator", {"LLMOS_LOG__LEVEL": "info"})
    cluster = await furnish(plane, port, folder, nodes=NODES, devices=DEVICES)
    tasks: list[asyncio.Task[None]] = []
    try:
        await cluster.kubelet.start()
        await each(range(HELD), lambda n: submit(port, f"model-{n:04}", TEAM))
        process.start()
        tenants = await _tenants(cluster)
        await settled(process)
        print("   all serve", flush=True)
        idle = await _stretch(port, process, [])
        print(f"   idle: {idle}", flush=True)
        agents = [Agent(cluster, f"node-{n:04}", n, tenants) for n in range(NODES)]
        url = f"http://127.0.0.1:{process.port_of('ingest')}"
        tasks = [asyncio.create_task(one.run(url)) for one in agents]
        await asyncio.sleep(WARM)
        told = await _stretch(port, process, agents)
        assert not any(task.done() for task in tasks), "an agent gave up"
        print(f"   told: {told}", flush=True)
    except BaseException:
        print(process.text()[-4000:], flush=True)
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        process.kill()
        await cluster.kubelet.close()
        await port.close()
    return idle, told


async def _tenants(cluster: Bench) -> Tenants:
    """Return who holds which device once all models serve."""

    async def serving() -> list[Json]:
        found = await collect(cluster.port, ports.PODS, TEAM)
        ready = [one for one in found if (one.get("status") or {}).get("phase") == "Running"]
        return ready if len(ready) == HELD else []

    pods = await cluster.until(serving, f"{HELD} pods run", 240.0)
    found: Tenants = {}
    for pod in pods:
        for entry in pod["spec"]["containers"][0]["env"]:
            if entry["name"] == "NVIDIA_VISIBLE_DEVICES":
                found |= dict.fromkeys(entry["value"].split(","), pod["metadata"]["uid"])
    return found


async def _stretch(port: Transport, process: OperatorProcess, agents: list[Agent]) -> Stretch:
    assert process.process is not None
    pid = process.process.pid
    async with ClientSession(f"http://127.0.0.1:{process.port_of('health')}") as session:
        wrote, revision = await writes(session), await _revision(port)
        taken, started, before = sum(one.taken for one in agents), time.perf_counter(), usage(pid)
        await asyncio.sleep(SECONDS)
        after, seconds = usage(pid), time.perf_counter() - started
        taken = sum(one.taken for one in agents) - taken
        grown = await _revision(port) - revision
        more = {key: count - wrote.get(key, 0) for key, count in (await writes(session)).items()}
    assert not sum(one.refused for one in agents), "the operator takes every batch"
    cpu = (after.cpu - before.cpu) / seconds
    return Stretch(seconds, cpu, after.peak, grown, {key: n for key, n in more.items() if n}, taken)


async def _revision(port: Transport) -> int:
    """Return etcd's revision: that of a consistent list."""
    async for page in port.list_pages(ports.NAMESPACES):
        return int(page.resource_version)
    raise AssertionError("no page")


def _table(idle: Stretch, told: Stretch) -> Table:
    cost = told.cpu - idle.cpu
    per_batch = cost * told.seconds / told.taken
    rows = [
        [
            "CPU of the operator, of a core",
            f"{idle.cpu:.2%}",
            f"{told.cpu:.2%}",
            f"{cost:.2%}",
            f"{GOAL:.0%}",
        ],
        [
            "largest resident memory",
            f"{idle.memory / MIB:.0f} MiB",
            f"{told.memory / MIB:.0f} MiB",
            f"{(told.memory - idle.memory) / MIB:.0f} MiB",
            "",
        ],
        ["revisions of etcd, all writers", str(idle.revisions), str(told.revisions), "", ""],
        [
            "of them the operator's, but for its Lease",
            str(sum(idle.writes.values())),
            str(sum(told.writes.values())),
            f"{sum(told.writes.values()) - sum(idle.writes.values())}",
            "0",
        ],
        ["samples of a node", "0", f"{NODES * told.seconds:.0f}", "", ""],
        ["batches taken", "0", str(told.taken), f"{per_batch * 1e6:.0f} µs of CPU each", ""],
    ]
    note = (
        f"{NODES} nodes of {DEVICES} GPUs, {HELD} models of one GPU that serve; {SECONDS:.0f} s each way after "
        f"{WARM:.0f} s of getting used to it. A device at work changes all its values every second and jumps beyond its "
        f"band once in {1 / JUMP if JUMP else 0:.0f} s, so about {HELD * JUMP:.1f} a second are told at once and ask for a plan. "
        "A write of the operator, where there is one, is a ModelProfile that learned what its model draws."
    )
    return Table(
        "1,000 GPUs at 1 Hz", ["what", "nobody reports", "all report", "difference", "goal"], rows, note
    )

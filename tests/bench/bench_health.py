"""Health: from a sick device to the end of what ran on it, and to its replacement's place.

A real `llmos operator` on a real etcd and kube-apiserver, twice. First with ten nodes of one device: each round the device under
the one replica is reported to have fallen off the bus, as its agent does. Then with four nodes of eight GPUs of the NVML double and
a real `llmos agent` on each: each round the driver reports an XID about the GPU under the replica. The breaker is open (`share: 1`), so
that no round waits.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.bench.report import Table
from tests.support.agent_process import AgentProcess, give_rights, write_kubeconfig
from tests.support.cluster import api_only
from tests.support.nvml import Double
from tests.support.operator_process import SYSTEM, agent_token, bench
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.operator_process import Bench

NODES, ROUNDS = 10, 40
MACHINES, GPUS, EVENTS = 4, 8, 30  # nodes with agents, their GPUs, and rounds: each leaves one GPU sick
XID = 95  # uncontained memory error: what runs there computes something wrong, the rest of the node goes on
DEADLINE = 60.0
LOOK = 0.02  # seconds between two looks
ACCOUNT = "llmos-agent"
Json = dict[str, Any]


@dataclass(slots=True)
class Times:
    """Seconds from the driver's event, one entry a round."""

    told: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    placed: list[float] = field(default_factory=list)


def run() -> list[Table]:
    """Measure and return two tables."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder) / "cluster") as plane:
        ended, placed = asyncio.run(_measure(plane, Path(folder)))
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder) / "cluster") as plane:
        times = asyncio.run(_from_the_driver(plane, Path(folder)))
    note = (
        f"{ROUNDS} rounds, seconds of wall time from the write of the verdict to when a client that asks every 20 ms sees it. The plan "
        "that takes the replica away is the first that places nothing on the device any more."
    )
    event = (
        f"{EVENTS} rounds, seconds of wall time from the driver's event (XID {XID}, through the real pynvml over the test double) to "
        f"when a client that asks every 20 ms sees it; a real agent on each of {MACHINES} nodes of {GPUS} GPUs, every setting as it comes."
    )
    found = [
        ("the GPUNode says Unhealthy", "", times.told),
        ("the old pod is gone: nothing new is placed there", "2", times.ended),
        ("the replacement's pod has its node", "10", times.placed),
    ]
    return [
        Table(
            "A device falls off the bus",
            ["until", "median, s", "p99, s", "worst, s"],
            [
                ["the old pod is gone", *_figures(ended)],
                ["the replacement's pod has its node", *_figures(placed)],
            ],
            note,
        ),
        Table(
            "A driver reports an XID",
            ["until", "median, s", "p99, s", "worst, s", "goal of p99, s"],
            [[what, *_figures(seconds), goal] for what, goal, seconds in found],
            event,
        ),
    ]


def _figures(found: Sequence[float]) -> list[str]:
    worst = sorted(found)
    return [
        f"{statistics.median(worst):.2f}",
        f"{worst[round(0.99 * len(worst)) - 1]:.2f}",
        f"{worst[-1]:.2f}",
    ]


async def _from_the_driver(plane: ControlPlane, folder: Path) -> Times:
    times = Times()
    async with bench(plane, folder) as made:
        operator = made.operator(direct=True, LLMOS_HEALTH__SHARE="1")
        give_rights(plane, ACCOUNT, SYSTEM)

        async def listening() -> bool:
            return "ingest server listens" in operator.text()

        await made.until(listening, "the operator listens")
        url = f"http://127.0.0.1:{operator.port_of('ingest')}"
        with _machines(folder) as machines:
            for name, machine in machines.items():
                await machine.start(made, name, url)
            await made.apply("chat", write_model(made.hub, "acme/tiny"))
            for number in range(EVENTS):
                await made.until_phase("chat", "Running")
                (pod,) = await made.pods("chat")
                double = machines[pod["spec"]["nodeName"]].double
                started = time.monotonic()
                double.event(_device(pod), XID).write()
                await _watch(made, pod, started, times)
                assert len(times.placed) == number + 1
    return times


class Machine:
    """A node's GPUs and its agent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.double = Double(folder)
        self.agent: AgentProcess | None = None

    async def start(self, made: Bench, name: str, url: str) -> None:
        """Register the node and wait until its agent has told of its GPUs."""
        for index in range(GPUS):
            self.double.with_gpu(index, uuid=f"GPU-{name}-{index}", memory__used=0)
        self.double.write()
        await made.node(name, devices=GPUS)
        write_kubeconfig(made.plane, self.folder, await agent_token(made.port, name, ACCOUNT))
        environment = {
            **self.double.environment(),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "LLMOS_NODE": name,
            "LLMOS_HOST": "127.0.0.1",
            "LLMOS_HEALTH_PORT": "0",
            "LLMOS_OPERATOR_URL": url,
            "LLMOS_POD_RESOURCES_SOCKET": "",
        }
        self.agent = AgentProcess(self.folder / "agent.log", environment).start()

        async def told() -> bool:
            found = await made.port.get(ports.GPU_NODES, name)
            devices = (found.get("status") or {}).get("devices") or []
            return {one["uuid"] for one in devices} == {f"GPU-{name}-{n}" for n in range(GPUS)}

        await made.until(told, f"the agent of {name} tells its GPUs")


@contextmanager
def _machines(folder: Path) -> Iterator[dict[str, Machine]]:
    made = {f"g{n}": Machine(folder / f"g{n}") for n in range(MACHINES)}
    try:
        yield made
    finally:
        for one in made.values():
            if one.agent is not None:
                one.agent.kill()


def _device(pod: Json) -> str:
    (device,) = json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])["devices"]
    return str(device)


async def _watch(made: Bench, pod: Json, started: float, times: Times) -> None:
    """Note when the GPUNode tells of the event, and what became of the replica."""
    told = asyncio.create_task(_until_unhealthy(made, pod["spec"]["nodeName"], _device(pod), started))
    ended, placed = await _until_replaced(made, pod, started)
    times.told.append(await told)
    times.ended.append(ended)
    times.placed.append(placed)


async def _until_unhealthy(made: Bench, node: str, uuid: str, started: float) -> float:
    while time.monotonic() - started < DEADLINE:
        found = await made.port.get(ports.GPU_NODES, node)
        now = time.monotonic() - started
        devices = {one["uuid"]: one for one in found["status"]["devices"]}
        if devices[uuid]["health"]["verdict"] == "Unhealthy":
            return now
        await asyncio.sleep(LOOK)
    raise TimeoutError(f"the event about {uuid} is not told within {DEADLINE} s")


async def _measure(plane: ControlPlane, folder: Path) -> tuple[list[float], list[float]]:
    ended, placed = [], []
    async with bench(plane, folder) as made:
        nodes = [f"n{i}" for i in range(NODES)]
        for name in nodes:
            await made.node(name)
        made.operator(direct=True, LLMOS_HEALTH__SHARE="1")
        await made.apply("chat", write_model(made.hub, "acme/tiny"))
        await made.until_phase("chat", "Running")
        for _ in range(ROUNDS):
            (pod,) = await made.pods("chat")
            node = pod["spec"]["nodeName"]
            started = time.monotonic()
            await made.devices(node, 1, reason="FallenOffBus", d0="Unhealthy")
            gone, there = await _until_replaced(made, pod, started)
            ended.append(gone)
            placed.append(there)
            await made.until_phase("chat", "Running")
            await made.devices(node, 1)
    return ended, placed


async def _until_replaced(made: Bench, pod: Json, started: float) -> tuple[float, float]:
    uid, device, gone = pod["metadata"]["uid"], _device(pod), 0.0
    while time.monotonic() - started < DEADLINE:
        pods = await made.pods("chat")
        now = time.monotonic() - started
        if not gone and all(one["metadata"]["uid"] != uid for one in pods):
            gone = now
        if any(one["metadata"]["uid"] != uid and _device(one) != device for one in pods):
            return gone or now, now
        await asyncio.sleep(LOOK)
    raise TimeoutError(f"no replacement within {DEADLINE} s")

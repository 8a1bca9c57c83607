"""Health: from a sick device to the end of what ran on it, and to its replacement's place.

A real `llmos operator` on a real etcd and kube-apiserver with ten nodes of one device. Each round the device under the one
replica is reported to have fallen off the bus, as its agent does; the breaker is open (`share: 1`), so that no round waits.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.report import Table
from tests.support.cluster import api_only
from tests.support.operator_process import bench
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.operator_process import Bench

NODES, ROUNDS = 10, 40
DEADLINE = 60.0


def run() -> list[Table]:
    """Measure and return one table."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder) / "cluster") as plane:
        ended, placed = asyncio.run(_measure(plane, Path(folder)))
    rows = [
        [
            what,
            f"{statistics.median(found):.2f}",
            f"{sorted(found)[round(0.99 * len(found)) - 1]:.2f}",
            f"{max(found):.2f}",
        ]
        for what, found in (("the old pod is gone", ended), ("the replacement's pod has its node", placed))
    ]
    note = (
        f"{ROUNDS} rounds, seconds of wall time from the write of the verdict to when a client that asks every 20 ms sees it. The plan "
        "that takes the replica away is the first that places nothing on the device any more."
    )
    return [Table("A device falls off the bus", ["until", "median, s", "p99, s", "worst, s"], rows, note)]


async def _measure(plane: ControlPlane, folder: Path) -> tuple[list[float], list[float]]:
    ended, placed = [], []
    async with bench(plane, folder) as made:
        names = [f"n{i}" for i in range(NODES)]
        for name in names:
            await made.node(name)
        made.operator(direct=True, LLMOS_HEALTH__SHARE="1")
        await made.apply("chat", write_model(made.hub, "acme/tiny"))
        await made.until_phase("chat", "Running")
        for _ in range(ROUNDS):
            (pod,) = await made.pods("chat")
            node = pod["spec"]["nodeName"]
            started = time.monotonic()
            await made.devices(node, 1, reason="FallenOffBus", d0="Unhealthy")
            gone, there = await _until_replaced(made, pod["metadata"]["uid"], node, started)
            ended.append(gone)
            placed.append(there)
            await made.until_phase("chat", "Running")
            await made.devices(node, 1)
    return ended, placed


async def _until_replaced(made: Bench, uid: str, node: str, started: float) -> tuple[float, float]:
    gone = 0.0
    while time.monotonic() - started < DEADLINE:
        pods = await made.pods("chat")
        now = time.monotonic() - started
        if not gone and all(one["metadata"]["uid"] != uid for one in pods):
            gone = now
        if any(one["metadata"]["uid"] != uid and one["spec"]["nodeName"] != node for one in pods):
            return gone or now, now
        await asyncio.sleep(0.02)
    raise TimeoutError(f"no replacement within {DEADLINE} s")

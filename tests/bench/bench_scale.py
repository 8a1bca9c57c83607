"""Size: the operator's memory and the time of its plans on 1,000 nodes of 8 GPUs with 10,000 workloads.

A real `llmos operator` on a real etcd and kube-apiserver finds all of them waiting; 8,000 fit. When it has written all
there is to write, 40 more come one by one that find nothing free, and 40 of those that run are deleted one by one.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.transport import connect
from tests.bench.load import (
    MANY_SERVICES,
    TEAM,
    WIDTH,
    Watcher,
    each,
    furnish,
    metrics,
    settled,
    submit,
    usage,
)
from tests.bench.report import Table
from tests.support.cluster import api_only
from tests.support.crds import install_crds
from tests.support.operator_process import OperatorProcess, collect

if TYPE_CHECKING:
    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane

NODES, DEVICES, WORKLOADS = 1000, 8, 10_000
FIT = NODES * DEVICES
MORE = 40
DEADLINE = 1200.0
Buckets = list[tuple[float, float]]  # upper bound in seconds, cycles up to it


def run() -> list[Table]:
    """Measure on one control plane."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder), MANY_SERVICES) as plane:
        install_crds(plane)
        return asyncio.run(_measure(plane, Path(folder)))


async def _measure(plane: ControlPlane, folder: Path) -> list[Table]:
    port = await connect(str(plane.kubeconfig), process="bench", connections=WIDTH)
    process = OperatorProcess(plane.kubeconfig, folder, "operator", {"LLMOS_LOG__LEVEL": "info"})
    watcher = Watcher(port)
    try:
        await furnish(plane, port, folder, nodes=NODES, devices=DEVICES)
        await each(range(WORKLOADS), lambda n: submit(port, f"model-{n:05}", TEAM))
        print("   submitted", flush=True)
        watcher.start()
        started = time.perf_counter()
        process.start()
        await watcher.until(FIT, DEADLINE)
        bound = time.perf_counter() - started
        print(f"   bound after {bound:.0f} s", flush=True)
        _, last = await settled(process)
        assert process.process is not None
        filled = usage(process.process.pid)
        before = await _cycles(process)
        await _disturb(port, process)
        after = await _cycles(process)
        used = usage(process.process.pid)
    except BaseException:
        print(process.text()[-4000:], flush=True)
        raise
    finally:
        await watcher.close()
        process.kill()
        await port.close()
    filling = _quantiles([(bound, 0.0) for bound, _ in before], before)
    steady = _quantiles(before, after)
    rows = [
        ["largest resident memory", f"{used.peak / 2**20:.0f} MiB", "400 MiB"],
        ["resident memory at the end", f"{used.resident / 2**20:.0f} MiB", ""],
        [f"start of the process to {FIT:,} pods", f"{bound:.0f} s", ""],
        ["start of the process to the last write", f"{last - started:.0f} s", ""],
        ["CPU until then", f"{filled.cpu:.0f} s", ""],
        ["plans while filling: median / 99th percentile", filling, ""],
        ["plans for one change: median / 99th percentile", steady, "50 ms"],
    ]
    note = (
        f"{WORKLOADS:,} workloads of one GPU, {FIT:,} fit. One change: {MORE} more workloads and {MORE} that go, one after the "
        "other. Plans are wall time as the operator's own histogram counts them, so a quantile is the bound of a bucket."
    )
    return [Table("Memory and plans", ["what", "measured", "goal"], rows, note)]


async def _disturb(port: Transport, process: OperatorProcess) -> None:
    for number in range(MORE):
        await submit(port, f"more-{number:02}", TEAM)
        await asyncio.sleep(0.5)
    await settled(process)
    pods = (await collect(port, ports.PODS, TEAM))[:MORE]
    for pod in pods:
        await port.delete(
            ports.MODEL_WORKLOADS, pod["metadata"]["labels"]["llmos.dev/workload"], namespace=TEAM
        )
        await port.delete(ports.PODS, pod["metadata"]["name"], namespace=TEAM, grace_seconds=0)
        await asyncio.sleep(0.5)
    await settled(process)


async def _cycles(process: OperatorProcess) -> Buckets:
    """Return the operator's histogram of planning times."""
    async with ClientSession(f"http://127.0.0.1:{process.port_of('health')}") as session:
        text = await metrics(session)
    return [
        (float(sample.labels["le"]), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "llmos_operator_cycle_seconds_bucket"
    ]


def _quantiles(before: Buckets, after: Buckets) -> str:
    """Return the buckets in which median and 99th percentile of the cycles in between lie."""
    counts = [(bound, there - here) for (bound, here), (_, there) in zip(before, after, strict=True)]
    total = counts[-1][1]
    edges = dict(pairwise((0.0, *(bound for bound, _ in counts))))
    lower = {upper: low for low, upper in edges.items()}
    found = [next(bound for bound, count in counts if count >= part * total) for part in (0.5, 0.99)]
    texts = [f"{lower[bound] * 1000:.0f} to {bound * 1000:.0f} ms" for bound in found]
    return f"{texts[0]} / {texts[1]} of {total:.0f}"

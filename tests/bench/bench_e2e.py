"""End to end on 500 nodes of 8 GPUs: one workload at rest, 4,000 at once, one GPU taken back, against others.

A real `llmos operator` on a real etcd and kube-apiserver. `make bench-e2e` runs this one and `scale`; it takes minutes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.transport import connect
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.table import NodeTable
from tests.bench.decisions import carry_out, cluster_of, timed
from tests.bench.load import (
    MANY_SERVICES,
    RAW,
    TEAM,
    Usage,
    Watcher,
    Writes,
    again,
    copied,
    each,
    furnish,
    settled,
    submit,
    usage,
)
from tests.bench.report import Table
from tests.bench.stand_ins import ending, reporting
from tests.support.builders import NOW, a_workload
from tests.support.cluster import api_only, with_scheduler
from tests.support.crds import install_crds
from tests.support.fakekubelet import FakeKubelet
from tests.support.operator_process import OperatorProcess, collect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane

NODES, DEVICES = 500, 8
WORKLOADS = NODES * DEVICES
CREATES = 32  # creates in flight
SINGLES, RECLAIMS = 40, 23
DEADLINE = 600.0
TELEMETRY_SECONDS = 5.0
HIGH = "urgent"
BACKGROUND = {"scheduling": {"disruption": {"order": ["Evict"], "minRuntime": "0s"}}}
RAISED = ("--kube-api-qps=5000", "--kube-api-burst=5000")
GANG_PODS = 250  # of 8 GPUs each


@dataclass(frozen=True, slots=True)
class Filled:
    """What it took to bind everything. Seconds are from the first create of a workload."""

    pods: float
    everything: float
    writes: Writes
    operator: Usage


def run() -> list[Table]:
    """Measure everything, one control plane after the other."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder), MANY_SERVICES) as plane:
        install_crds(plane)
        tables = asyncio.run(_ours(plane, Path(folder)))
    peers = []
    for name, flags in (("API limits raised", RAISED), ("as shipped", ())):
        with tempfile.TemporaryDirectory() as folder, with_scheduler(Path(folder), *flags) as plane:
            install_crds(plane)
            peers.append([f"kube-scheduler, {name}", *asyncio.run(_kube_scheduler(plane, Path(folder)))])
        print(f"   {peers[-1]}", flush=True)
    tables[1] = Table(tables[1].title, tables[1].columns, [*tables[1].rows, *peers], tables[1].note)
    return [*tables, _gang()]


async def _ours(plane: ControlPlane, folder: Path) -> list[Table]:
    load = os.getloadavg()[0]
    port = await connect(str(plane.kubeconfig), process="bench", connections=CREATES + 8)
    try:
        await furnish(plane, port, folder, nodes=NODES, devices=DEVICES)
        high = {"metadata": {"name": HIGH}, "value": 1000}
        await port.apply(ports.PRIORITY_CLASSES, high, manager="bench")
        async with _operator(plane, folder) as process:
            watcher = Watcher(port)
            watcher.start()
            try:
                singles = _shown(await _singles(port, process, watcher))
                await _clear(port)
                async with reporting(port, process, NODES, TELEMETRY_SECONDS), ending(port):
                    filled = await _fill(port, process, watcher)
                    costs = _shown(_costs(filled))
                    taken = _shown(await _reclaims(port, process, watcher))
            finally:
                await watcher.close()
        raw = await _bare(port)
    finally:
        await port.close()
    return [singles, _shown(_rates(filled, raw, load)), taken, costs]


def _shown(table: Table) -> Table:
    """Print a table as soon as it is measured: the whole takes minutes, and a later part may fail."""
    print(table.markdown(), flush=True)
    return table


@asynccontextmanager
async def _operator(plane: ControlPlane, folder: Path) -> AsyncIterator[OperatorProcess]:
    env = {
        "LLMOS_LOG__LEVEL": "info",
        "LLMOS_SCHEDULING__TELEMETRY_INTERVAL": str(TELEMETRY_SECONDS),
    }
    process = OperatorProcess(plane.kubeconfig, folder, "operator", env)
    process.start()
    try:
        async with asyncio.timeout(60):
            while await process.probe("/readyz") != 200:
                await asyncio.sleep(0.2)
        await settled(process)
        yield process
    except BaseException:
        print(process.text()[-4000:], flush=True)
        raise
    finally:
        process.kill()


# -- one at a time --------------------------------------------------------------------------------------------


async def _singles(port: Transport, process: OperatorProcess, watcher: Watcher) -> Table:
    """Apply workloads one after the other to a cluster at rest; pods become ready as the kubelet stand-in makes them."""
    kubelet = FakeKubelet(port)
    await kubelet.start()
    before, _ = await settled(process)
    bound = []
    try:
        for number in range(SINGLES):
            started = time.perf_counter()
            await submit(port, f"single-{number:02}", TEAM)
            await watcher.until(number + 1, DEADLINE)
            bound.append(max(watcher.placed.values()) - started)
            await asyncio.sleep(0.5)
        await _all_ready(port, SINGLES)
        after, _ = await settled(process)
    finally:
        await kubelet.close()
    writes = {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}
    detail = ", ".join(f"{count} {verb} {what}" for (verb, what), count in sorted(writes.items()))
    theirs = sum(count for (_, what), count in writes.items() if what != ports.GPU_NODES.plural)
    rows = [
        ["apply to pod bound, median", f"{statistics.median(bound) * 1000:.0f} ms"],
        ["apply to pod bound, worst", f"{max(bound) * 1000:.0f} ms"],
        ["operator's writes per workload until Ready, goal 5", f"{theirs / SINGLES:.2f}"],
    ]
    note = (
        f"{SINGLES} workloads, one every half second or slower, as a watch sees their pods. Writes meanwhile: {detail}; "
        f"those to GPUNodes are each node's first ledger after the operator's start, {NODES} of them, and are not counted."
    )
    return Table("One workload on a cluster at rest", ["what", "measured"], rows, note)


async def _all_ready(port: Transport, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            found = await collect(port, ports.MODEL_WORKLOADS, TEAM)
            if sum(one.get("status", {}).get("phase") == "Running" for one in found) >= count:
                return
            await asyncio.sleep(0.5)


async def _clear(port: Transport) -> None:
    """Delete workloads and pods: nobody collects garbage on this control plane."""
    for kind in (ports.MODEL_WORKLOADS, ports.PODS, ports.SERVICES):
        names = [one["metadata"]["name"] for one in await collect(port, kind, TEAM)]
        await each(names, lambda name, kind=kind: port.delete(kind, name, namespace=TEAM, grace_seconds=0))


# -- all at once ----------------------------------------------------------------------------------------------


async def _fill(port: Transport, process: OperatorProcess, watcher: Watcher) -> Filled:
    before, _ = await settled(process)
    assert process.process is not None
    cpu = usage(process.process.pid).cpu
    watcher.placed.clear()
    watcher.leaving.clear()
    started = time.perf_counter()
    await each(range(WORKLOADS), lambda n: submit(port, f"model-{n:04}", TEAM, **BACKGROUND), CREATES)
    print(f"   created after {time.perf_counter() - started:.0f} s", flush=True)
    await watcher.until(WORKLOADS, DEADLINE)
    pods = max(watcher.placed.values()) - started
    print(f"   bound after {pods:.0f} s", flush=True)
    after, last = await settled(process)
    writes = {key: count - before.get(key, 0) for key, count in after.items()}
    now = usage(process.process.pid)
    return Filled(pods, last - started, writes, Usage(now.cpu - cpu, now.peak))


async def _bare(port: Transport) -> tuple[float, float]:
    """Write again what was written for the 4,000, workloads included; return seconds for pods and for everything."""
    pods = {
        one["metadata"]["name"]: copied(one)
        for one in await collect(port, ports.PODS, TEAM)
        if one["metadata"]["name"].startswith("model-")
    }
    kinds = (ports.SERVICES, ports.MODEL_WORKLOADS, ports.EVENTS)
    rest = [(kind, copied(one)) for kind in kinds for one in await collect(port, kind, TEAM)]
    names = [f"model-{n:04}" for n in range(len(pods))]  # victims have no pod any more
    rest = [
        (kind, one) for kind, one in rest if kind is ports.EVENTS or one["metadata"]["name"] in set(names)
    ]
    started = time.perf_counter()

    async def workload_and_pod(item: tuple[str, Any]) -> None:
        name, pod = item
        await submit(port, name, RAW, **BACKGROUND)
        await port.create(ports.PODS, pod, namespace=RAW)

    await each(zip(names, pods.values(), strict=True), workload_and_pod, CREATES)
    after_pods = time.perf_counter() - started
    await each(rest, lambda item: again(port, *item), CREATES)
    scale = WORKLOADS / len(names)
    return after_pods * scale, (time.perf_counter() - started) * scale


async def _kube_scheduler(plane: ControlPlane, folder: Path) -> list[str]:
    """Let kube-scheduler place as many plain pods of one GPU on the same nodes."""
    port = await connect(str(plane.kubeconfig), process="bench", connections=CREATES + 8)
    try:
        await furnish(plane, port, folder, nodes=NODES, devices=DEVICES)
        await asyncio.sleep(3.0)  # its caches
        watcher, pid = Watcher(port), plane.process("kube-scheduler").pid
        watcher.start()
        cpu, started = usage(pid).cpu, time.perf_counter()
        limits = {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "100m"}}
        container = {"name": "c", "image": "i", "resources": limits}
        spec = {"containers": [container]}

        async def create(number: int) -> None:
            body = {"metadata": {"name": f"plain-{number:04}"}, "spec": spec}
            await port.create(ports.PODS, body, namespace=TEAM)

        await each(range(WORKLOADS), create, CREATES)
        await watcher.until(WORKLOADS, DEADLINE)
        seconds = max(watcher.placed.values()) - started
        await watcher.close()
        used = usage(pid)
    finally:
        await port.close()
    return [f"{WORKLOADS / seconds:.0f}", "", "2", f"{used.cpu - cpu:.0f} s", f"{used.peak / 2**20:.0f} MiB"]


# -- one back -------------------------------------------------------------------------------------------------


async def _reclaims(port: Transport, process: OperatorProcess, watcher: Watcher) -> Table:
    """Ask for one GPU of the full cluster with a higher priority, again and again."""
    asked, bound = [], []
    for number in range(RECLAIMS):
        await settled(process)
        name, gone = f"urgent-{number:02}", set(watcher.leaving)
        scheduling = {"priorityClassName": HIGH, **BACKGROUND["scheduling"]}
        started = time.perf_counter()
        await submit(port, name, TEAM, scheduling=scheduling)
        async with asyncio.timeout(60):
            while not any(pod.startswith(name) for pod in watcher.placed):
                await asyncio.sleep(0.005)
        victims = [at for pod, at in watcher.leaving.items() if pod not in gone]
        asked.append(min(victims) - started)
        bound.append(next(at for pod, at in watcher.placed.items() if pod.startswith(name)) - started)
    rows = [
        ["apply to the victim's deletion, median", f"{statistics.median(asked):.2f} s", "0.3 s"],
        ["apply to the victim's deletion, worst", f"{max(asked):.2f} s", ""],
        ["apply to the claimant bound, median", f"{statistics.median(bound):.2f} s", "1.0 s"],
        ["apply to the claimant bound, worst", f"{max(bound):.2f} s", ""],
    ]
    note = (
        f"{RECLAIMS} claimants, each on a quiet operator; victims end as soon as they are asked to. Telemetry of every node "
        f"every {TELEMETRY_SECONDS:.0f} s."
    )
    return Table(f"One GPU back, {WORKLOADS:,} running", ["what", "measured", "goal"], rows, note)


def _gang() -> Table:
    """Plan the displacement of half of a full cluster for one gang."""
    cluster, table = cluster_of(NODES), NodeTable()
    for number in range(WORKLOADS):
        cluster.add(a_workload(f"low-{number:04}"))
    carry_out(cluster, plan(cluster.snapshot(), Policy(), NOW, table=table))
    cluster.add(a_workload("gang").of_pods(GANG_PODS).gpus(DEVICES).priority("high"))
    snapshot = cluster.snapshot()
    milliseconds, made = timed(lambda: plan(snapshot, Policy(), NOW, table=table))
    row = [f"{GANG_PODS * DEVICES:,} GPUs in {GANG_PODS} pods", f"{milliseconds / 1000:.2f} s", "5 s"]
    note = f"CPU time of one plan that displaces {len(made.evictions):,} of {WORKLOADS:,} workloads."
    return Table("A gang takes half of the cluster", ["gang", "planned in", "goal"], [row], note)


# -- tables ---------------------------------------------------------------------------------------------------


def _rates(filled: Filled, raw: tuple[float, float], load: float) -> Table:
    writes = sum(filled.writes.values())
    rows = [
        [
            "operator",
            f"{WORKLOADS / filled.pods:.0f}",
            f"{WORKLOADS / filled.everything:.0f}",
            f"{writes / WORKLOADS:.2f}",
            f"{filled.operator.cpu:.0f} s",
            f"{filled.operator.peak / 2**20:.0f} MiB",
        ],
        [
            "bare client, the same writes",
            f"{WORKLOADS / raw[0]:.0f}",
            f"{WORKLOADS / raw[1]:.0f}",
            f"{writes / WORKLOADS:.2f}",
            "",
            "",
        ],
        ["ratio", f"{raw[0] / filled.pods:.0%}", f"{raw[1] / filled.everything:.0%}", "", "", ""],
    ]
    note = (
        f"{WORKLOADS:,} workloads of one GPU (plain pods for kube-scheduler) created with {CREATES} in flight while the "
        "scheduler runs; per second from the first create until all are bound, and until all is written. The bare client creates "
        "workload and pod together, already bound, then writes the rest. "
        f"Load average before: {load:.1f}."
    )
    columns = ["who", "bound, 1/s", "everything, 1/s", "writes each", "CPU", "peak memory"]
    return Table(f"{WORKLOADS:,} at once", columns, rows, note)


def _costs(filled: Filled) -> Table:
    rows = [[verb, what, str(count)] for (verb, what), count in sorted(filled.writes.items()) if count]
    return Table("The operator's writes for them", ["verb", "resource", "count"], rows)

"""Binding: workloads bound per second on 100 nodes of 8 GPUs, against a bare client.

A real `llmos operator` on a real etcd and kube-apiserver finds 1,000 workloads of one whole GPU waiting; 800 fit. What
it has written is then written again, object by object, by a bare client of the same width: that is the baseline.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.transport import connect
from tests.bench.load import (
    RAW,
    TEAM,
    WIDTH,
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
from tests.support.cluster import api_only
from tests.support.crds import install_crds
from tests.support.operator_process import OperatorProcess, collect

if TYPE_CHECKING:
    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane

NODES, DEVICES, WORKLOADS = 100, 8, 1000
FIT = NODES * DEVICES
DEADLINE = 240.0
# What the bare client writes after the pods, in the operator's order of ranks.
KINDS = (ports.SERVICES, ports.MODEL_WORKLOADS, ports.EVENTS)


@dataclass(frozen=True, slots=True)
class Bound:
    """What the operator did. Seconds are from its first pod."""

    first: float  # seconds from the start of the process to its first pod
    pods: float  # to the last pod
    everything: float  # to the last write
    writes: Writes
    operator: Usage
    api_cpu: float


def run() -> list[Table]:
    """Measure the operator, then the bare client, on one control plane."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder)) as plane:
        install_crds(plane)
        return asyncio.run(_measure(plane, Path(folder)))


async def _measure(plane: ControlPlane, folder: Path) -> list[Table]:
    load = os.getloadavg()[0]
    port = await connect(str(plane.kubeconfig), process="bench", connections=WIDTH)
    try:
        await furnish(plane, port, folder, nodes=NODES, devices=DEVICES)
        await each(range(WORKLOADS), lambda n: submit(port, f"model-{n:04}", TEAM))
        bound = await _operator(plane, port, folder)
        raw = await _bare(plane, port)
    finally:
        await port.close()
    return [_rates(bound, raw, load), _costs(bound), _written(bound)]


async def _operator(plane: ControlPlane, port: Transport, folder: Path) -> Bound:
    process = OperatorProcess(plane.kubeconfig, folder, "operator", {"LLMOS_LOG__LEVEL": "info"})
    server, watcher = plane.process("kube-apiserver").pid, Watcher(port)
    watcher.start()
    api_before, started = usage(server).cpu, time.perf_counter()
    process.start()
    try:
        await watcher.until(FIT, DEADLINE)
        written, last = await settled(process)
        assert process.process is not None
        operator = usage(process.process.pid)
    except TimeoutError as error:
        raise TimeoutError(f"{len(watcher.placed)} of {FIT} pods; {process.text()[-4000:]}") from error
    finally:
        await watcher.close()
        process.kill()
    seen = sorted(watcher.placed.values())
    first = seen[0]
    return Bound(
        first - started,
        seen[FIT - 1] - first,
        max(last, seen[-1]) - first,
        written,
        operator,
        usage(server).cpu - api_before,
    )


async def _bare(plane: ControlPlane, port: Transport) -> tuple[float, float, float]:
    """Write again what the operator wrote; return seconds for the pods and for everything, and the server's CPU."""
    pods = [copied(body) for body in await collect(port, ports.PODS, TEAM)]
    rest = [(kind, copied(body)) for kind in KINDS for body in await collect(port, kind, TEAM)]
    await each(range(WORKLOADS), lambda n: submit(port, f"model-{n:04}", RAW))
    server = plane.process("kube-apiserver").pid
    cpu, started = usage(server).cpu, time.perf_counter()
    await each(pods, lambda body: port.create(ports.PODS, body, namespace=RAW))
    after_pods = time.perf_counter() - started
    await each(rest, lambda item: again(port, *item))
    return after_pods, time.perf_counter() - started, usage(server).cpu - cpu


# -- tables ---------------------------------------------------------------------------------------------------


def _rates(bound: Bound, raw: tuple[float, float, float], load: float) -> Table:
    pods, everything = raw[:2]
    rows = [
        ["pods created", *_pair(FIT, bound.pods, pods)],
        ["everything written", *_pair(FIT, bound.everything, everything)],
    ]
    note = (
        f"Bound workloads per second, {FIT} of {WORKLOADS} (the others find no free device and get a status); from the "
        f"first pod on, {WIDTH} writes in flight in both. The first pod came {bound.first:.1f} s after the start of the "
        f"process. The API server used {bound.api_cpu:.1f} s of CPU for the operator (its lists and watches included) and "
        f"{raw[2]:.1f} s for the bare client. The passes follow each other, so on a shared machine they do not see the same "
        "load: a ratio above 100 % says only that. "
        f"Load average before: {load:.1f}, after: {os.getloadavg()[0]:.1f}."
    )
    return Table("Rate", ["until", "operator, 1/s", "bare client, 1/s", "ratio"], rows, note)


def _pair(count: int, ours: float, theirs: float) -> list[str]:
    return [f"{count / ours:.0f}", f"{count / theirs:.0f}", f"{theirs / ours:.0%}"]


def _costs(bound: Bound) -> Table:
    total = sum(bound.writes.values())
    rows = [
        ["writes per workload", f"{total / WORKLOADS:.2f}"],
        ["CPU from start to the last write", f"{bound.operator.cpu:.1f} s"],
        ["CPU per workload", f"{bound.operator.cpu / WORKLOADS * 1000:.1f} ms"],
        ["largest resident memory", f"{bound.operator.peak / 2**20:.0f} MiB"],
    ]
    return Table("What the operator needs", ["what", "amount"], rows)


def _written(bound: Bound) -> Table:
    rows = [[verb, resource, str(count)] for (verb, resource), count in sorted(bound.writes.items())]
    return Table("Its writes", ["verb", "resource", "count"], rows, "Without renewals of its Lease.")

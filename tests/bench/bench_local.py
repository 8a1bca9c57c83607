"""Local cluster: time to come up, memory, start of pods.

Coming up is measured against the control plane alone, a pod's start and end against one write to the API server.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from llmos_operator.cluster import port
from llmos_operator.cluster.credentials import from_kubeconfig
from llmos_operator.cluster.transport import Transport
from llmos_operator.local.kubelet.objects import CONFIG_MAPS
from llmos_operator.local.processes import resident_bytes
from tests.bench.report import Table
from tests.support.cluster import RunningCluster, api_only, local_cluster

REPEATS = 3
PODS = 20
MIB = 1 << 20
PROGRAM = ["sleep", "600"]


def run() -> list[Table]:
    """Measure all of it."""
    alone, whole, down = [], [], []
    tables: list[Table] = []
    for number in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with api_only(Path(folder)):
                alone.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with local_cluster(Path(folder)) as cluster:
                whole.append(time.perf_counter() - began)
                if number == REPEATS - 1:
                    tables = [_memory(cluster), _pods(cluster)]
                began = time.perf_counter()
            down.append(time.perf_counter() - began)
    base = statistics.median(alone)
    rows = [
        ["etcd and kube-apiserver", f"{base:.1f} s", f"{max(alone):.1f} s", "1.0"],
        _row("cluster with two nodes, up", whole, base),
        _row("the same, down", down, base),
    ]
    note = f"Programs and file cache warm; {REPEATS} repeats, interleaved."
    return [Table("Coming up", ["what", "median", "worst", "ratio"], rows, note), *tables]


def _row(what: str, seconds: list[float], base: float) -> list[str]:
    median = statistics.median(seconds)
    return [what, f"{median:.1f} s", f"{max(seconds):.1f} s", f"{median / base:.1f}"]


def _memory(cluster: RunningCluster) -> Table:
    state = cluster.state()
    assert state is not None
    found = {part.name: resident_bytes(part.pid) or 0 for part in (state.supervisor, *state.processes)}
    total = sum(found.values())
    rows = [[name, f"{size / MIB:.0f} MiB", f"{size / total:.0%}"] for name, size in found.items()]
    rows.append(["together", f"{total / MIB:.0f} MiB", ""])
    return Table("Memory right after coming up", ["part", "resident", "share"], rows, "No pods yet.")


def _pods(cluster: RunningCluster) -> Table:
    write, running, gone = asyncio.run(_start_pods(cluster))
    base = statistics.median(write)
    rows = [
        _pod_row("one write", write, base),
        _pod_row("create to Ready", running, base),
        _pod_row("delete to gone", gone, base),
    ]
    note = f"{PODS} pods one after the other; Ready and gone as a watch reports them. The pod has a ServiceAccount token."
    return Table("A pod's start and end", ["what", "median", "worst", "ratio"], rows, note)


def _pod_row(what: str, seconds: list[float], base: float) -> list[str]:
    median = statistics.median(seconds)
    return [what, f"{median * 1000:.0f} ms", f"{max(seconds) * 1000:.0f} ms", f"{median / base:.0f}"]


def _pod(name: str) -> dict[str, Any]:
    container = {"name": "main", "image": "host", "command": PROGRAM}
    spec = {"nodeName": "sim-0", "containers": [container], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


async def _start_pods(cluster: RunningCluster) -> tuple[list[float], list[float], list[float]]:
    transport = Transport(from_kubeconfig(str(cluster.kubeconfig)))
    write, running, gone = [], [], []
    try:
        for number in range(PODS):
            name = f"bench-{number}"
            began = time.perf_counter()
            config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
            await transport.create(CONFIG_MAPS, config, namespace="default")
            write.append(time.perf_counter() - began)
            began = time.perf_counter()
            body = await transport.create(port.PODS, _pod(name), namespace="default")
            version = await _until(transport, name, body["metadata"]["resourceVersion"], _is_ready)
            running.append(time.perf_counter() - began)
            began = time.perf_counter()
            await transport.delete(port.PODS, name, namespace="default")
            await _until(transport, name, version, lambda kind, _pod: kind == "DELETED")
            gone.append(time.perf_counter() - began)
    finally:
        await transport.close()
    return write, running, gone


async def _until(transport: Transport, name: str, version: str, check: Any) -> str:
    events = transport.watch(
        port.PODS, resource_version=version, namespace="default", field_selector=f"metadata.name={name}"
    )
    async for event in events:
        if check(event.type, event.object):
            return event.resource_version
    raise AssertionError(name)


def _is_ready(_kind: str, pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)

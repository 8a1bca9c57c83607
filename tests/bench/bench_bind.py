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
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.transport import connect
from tests.bench.report import Table
from tests.support.apiproxy import ApiProxy
from tests.support.cluster import api_only
from tests.support.crds import install_crds
from tests.support.fakekubelet import FakeKubelet
from tests.support.operator_process import SYSTEM, Bench, OperatorProcess, collect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane

Json = dict[str, Any]
NODES, DEVICES, WORKLOADS = 100, 8, 1000
FIT = NODES * DEVICES
WIDTH = 16  # writes in flight: the operator's default, and the bare client's
TEAM, RAW = "team", "raw"
URI = "hf://acme/model"
DEADLINE = 240.0
QUIET = 4.0  # seconds without a write after which the operator has done all
POLL = 0.2
WRITES = ("create", "apply", "patch", "update", "delete", "evict")
SHAPE = {
    "architecture": "LlamaForCausalLM",
    "linearParameters": 106_168_320,
    "embeddingParameters": 28_311_552,
    "otherParameters": 35_136,
    "layers": 30,
    "hidden": 576,
    "intermediate": 1536,
    "heads": 9,
    "kvHeads": 3,
    "headDim": 64,
    "vocab": 49_152,
    "maxPositions": 8192,
}
# What the bare client writes after the pods, in the operator's order of ranks.
KINDS = (ports.SERVICES, ports.MODEL_WORKLOADS, ports.EVENTS)


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and the largest resident memory, in bytes, of a process so far."""

    cpu: float
    peak: int


@dataclass(frozen=True, slots=True)
class Bound:
    """What the operator did. Seconds are from its first pod."""

    first: float  # seconds from the start of the process to its first pod
    pods: float  # to the last pod
    everything: float  # to the last write
    writes: dict[tuple[str, str], int]  # by verb and resource
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
        await _prepare(plane, port, folder)
        bound = await _operator(plane, port, folder)
        raw = await _bare(plane, port)
    finally:
        await port.close()
    return [_rates(bound, raw, load), _costs(bound), _written(bound)]


# -- the cluster ----------------------------------------------------------------------------------------------


async def _prepare(plane: ControlPlane, port: Transport, folder: Path) -> None:
    """Make namespaces, the queue, the model's profile, nodes and workloads."""
    (folder / "master.key").write_bytes(b"0123456789abcdef0123456789abcdef")
    for name in (SYSTEM, TEAM, RAW):
        await port.apply(ports.NAMESPACES, {"metadata": {"name": name}}, manager="bench")
    queue = {"metadata": {"name": "default"}, "spec": {}}
    await port.apply(ports.WORKLOAD_QUEUES, queue, manager="bench")
    profile: Json = {"metadata": {"name": profile_name(URI, "main")}}
    await port.apply(
        ports.MODEL_PROFILES, {**profile, "spec": {"uri": URI, "revision": "main"}}, manager="bench"
    )
    known = {"sourceFormat": "bf16", "shape": SHAPE}
    await port.patch_status(ports.MODEL_PROFILES, {**profile, "status": known}, manager="bench")
    cluster = Bench(plane, port, ApiProxy(str(plane.kubeconfig)), FakeKubelet(port), folder, folder, "")
    await _each(range(NODES), lambda n: cluster.node(f"node-{n:03}", devices=DEVICES, memory="8Gi"))
    await _each(range(WORKLOADS), lambda n: _workload(port, n, TEAM))


async def _workload(port: Transport, number: int, namespace: str) -> None:
    body = {
        "apiVersion": ports.MODEL_WORKLOADS.api_version,
        "kind": ports.MODEL_WORKLOADS.kind,
        "metadata": {"name": f"model-{number:04}"},
        "spec": {"model": {"uri": URI}, "context": {"maxModelLen": 2048, "maxNumSeqs": 8}},
    }
    await port.create(ports.MODEL_WORKLOADS, body, namespace=namespace)


async def _each(items: Iterable[Any], write: Callable[[Any], Awaitable[Any]]) -> None:
    """Do ``write`` for every item, WIDTH at a time."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await write(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(WIDTH):
            group.create_task(work())


# -- the operator ---------------------------------------------------------------------------------------------


async def _operator(plane: ControlPlane, port: Transport, folder: Path) -> Bound:
    process = OperatorProcess(plane.kubeconfig, folder, "operator", {"LLMOS_LOG__LEVEL": "info"})
    server = plane.process("kube-apiserver").pid
    seen: list[float] = []
    watcher = asyncio.create_task(_pods_seen(port, seen))
    api_before, started = _usage(server).cpu, time.perf_counter()
    process.start()
    try:
        async with asyncio.timeout(DEADLINE):
            while len(seen) < FIT:
                if watcher.done():
                    raise RuntimeError(
                        f"the watch of pods ended after {len(seen)} of {FIT}: {watcher.exception()}"
                    )
                await asyncio.sleep(POLL)
            writes, last = await _settled(process)
        assert process.process is not None
        operator = _usage(process.process.pid)
    except TimeoutError as error:
        raise TimeoutError(f"{len(seen)} of {FIT} pods; {process.text()[-4000:]}") from error
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        process.kill()
    first = seen[0]
    return Bound(
        first - started,
        seen[FIT - 1] - first,
        max(last, seen[-1]) - first,
        writes,
        operator,
        _usage(server).cpu - api_before,
    )


async def _pods_seen(port: Transport, seen: list[float]) -> None:
    """Note the time of every pod that appears on a node."""
    async for event in port.watch(ports.PODS, resource_version="0", namespace=TEAM):
        if event.type == "ADDED" and event.object["spec"].get("nodeName"):
            seen.append(time.perf_counter())  # noqa: PERF401 - the reader wants each as it comes


async def _settled(process: OperatorProcess) -> tuple[dict[tuple[str, str], int], float]:
    """Return the operator's writes once it makes no more, and the time the last of them was noticed."""
    writes: dict[tuple[str, str], int] = {}
    last = time.perf_counter()
    async with ClientSession(f"http://127.0.0.1:{process.port_of('health')}") as session:
        while time.perf_counter() - last < QUIET:
            now = time.perf_counter()
            found = await _writes(session)
            if found != writes:
                writes, last = found, now
            await asyncio.sleep(POLL)
    return writes, last


async def _writes(session: ClientSession) -> dict[tuple[str, str], int]:
    """Return the operator's successful writes by verb and resource, without those to its Lease."""
    async with session.get("/metrics") as answer:
        text = await answer.text()
    found: dict[tuple[str, str], int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name != "llmos_operator_api_request_seconds_count" or labels["verb"] not in WRITES:
                continue
            if labels["code"].startswith("2") and labels["resource"] != "leases":
                key = (labels["verb"], labels["resource"])
                found[key] = found.get(key, 0) + int(sample.value)
    return found


def _usage(pid: int) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    return Usage(cpu, peak)


# -- the bare client ------------------------------------------------------------------------------------------


async def _bare(plane: ControlPlane, port: Transport) -> tuple[float, float, float]:
    """Write again what the operator wrote; return seconds for the pods and for everything, and the server's CPU."""
    pods = [_copy(body) for body in await collect(port, ports.PODS, TEAM)]
    rest = [(kind, _copy(body)) for kind in KINDS for body in await collect(port, kind, TEAM)]
    await _each(range(WORKLOADS), lambda n: _workload(port, n, RAW))
    server = plane.process("kube-apiserver").pid
    cpu, started = _usage(server).cpu, time.perf_counter()
    await _each(pods, lambda body: port.create(ports.PODS, body, namespace=RAW))
    after_pods = time.perf_counter() - started
    await _each(rest, lambda item: _write(port, *item))
    return after_pods, time.perf_counter() - started, _usage(server).cpu - cpu


async def _write(port: Transport, kind: ports.Kind, body: Json) -> None:
    if kind is not ports.MODEL_WORKLOADS:
        await port.create(kind, body, namespace=RAW)
    elif body.get("status"):
        status = {"metadata": {"name": body["metadata"]["name"]}, "status": body["status"]}
        await port.patch_status(kind, status, manager="bench", namespace=RAW)


def _copy(body: Json) -> Json:
    """Return the object as a client would create it in the other namespace."""
    kept = {"name", "labels", "annotations", "ownerReferences"}
    copied = {key: value for key, value in body.items() if not key.startswith("deprecated")}
    copied["metadata"] = {key: value for key, value in body["metadata"].items() if key in kept}
    if "regarding" in body:
        copied["regarding"] = {**body["regarding"], "namespace": RAW}
    if "clusterIP" in body.get("spec", {}):
        copied["spec"] = {k: v for k, v in body["spec"].items() if k not in {"clusterIP", "clusterIPs"}}
    return copied


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

"""A cluster to load, a bare client beside the operator, and what an operator has written: shared by benchmarks."""

from __future__ import annotations

import asyncio
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession

from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.failures import AlreadyExists, Ambiguous
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.reflector import Reflector
from tests.support.apiproxy import ApiProxy
from tests.support.fakekubelet import FakeKubelet
from tests.support.operator_process import SYSTEM, Bench

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.operator_process import OperatorProcess

Json = dict[str, Any]
Writes = dict[tuple[str, str], int]  # by verb and resource
WIDTH = 16  # writes in flight: the operator's default, and the bare client's
TEAM, RAW = "team", "raw"  # the operator's namespace, and the bare client's
URI = "hf://acme/model"
QUIET = 4.0  # seconds without a write after which the operator has done all
POLL = 0.5
_REQUESTS = re.compile(r"llmos_operator_api_request_seconds_count\{(?P<labels>.*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# A Service for each workload wants an address: the local control plane's own range has two thousand.
MANY_SERVICES = "--service-cluster-ip-range=10.64.0.0/12"
UNCOUNTED = {"leases", "tokenreviews"}
VERBS = ("create", "apply", "patch", "update", "delete", "evict")
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


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and the largest resident memory, in bytes, of a process so far, and its resident memory now."""

    cpu: float
    peak: int
    resident: int = 0


def usage(pid: int) -> Usage:
    """Return what a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Vm")}
    return Usage(cpu, int(sizes["VmHWM"]) << 10, int(sizes["VmRSS"]) << 10)


async def each(items: Iterable[Any], write: Callable[[Any], Awaitable[Any]], width: int = WIDTH) -> None:
    """Do ``write`` for every item, ``width`` at a time."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await write(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())


async def furnish(plane: ControlPlane, port: Transport, folder: Path, *, nodes: int, devices: int) -> Bench:
    """Make namespaces, the queue, the model's profile and nodes, with the CRDs there already."""
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
    await each(range(nodes), lambda n: cluster.node(f"node-{n:04}", devices=devices, memory="8Gi"))
    return cluster


async def submit(port: Transport, name: str, namespace: str, **spec: Any) -> None:
    """Create a workload of one whole GPU; ``spec`` has further fields."""
    body = {
        "apiVersion": ports.MODEL_WORKLOADS.api_version,
        "kind": ports.MODEL_WORKLOADS.kind,
        "metadata": {"name": name},
        "spec": {"model": {"uri": URI}, "context": {"maxModelLen": 2048, "maxNumSeqs": 8}, **spec},
    }
    await port.create(ports.MODEL_WORKLOADS, body, namespace=namespace)


class Watcher:
    """Notes when the operator's pods are first seen on a node, and when they are asked to go."""

    def __init__(self, port: Transport) -> None:
        self.placed: dict[str, float] = {}  # pod -> seconds of the performance counter
        self.leaving: dict[str, float] = {}
        self._reflector = Reflector(
            port, Mirror(ports.PODS, self._take), field_selector=f"metadata.namespace={TEAM}"
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._reflector.run())

    async def close(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def until(self, count: int, seconds: float) -> None:
        """Return once ``count`` pods have been seen on nodes. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while len(self.placed) < count:
                await asyncio.sleep(POLL / 20)

    def _take(self, change: Change, pod: Json) -> None:
        meta, now = pod["metadata"], time.perf_counter()
        if change is Change.DELETED or meta.get("deletionTimestamp"):
            self.leaving.setdefault(meta["name"], now)
        elif pod["spec"].get("nodeName"):
            self.placed.setdefault(meta["name"], now)


async def settled(process: OperatorProcess) -> tuple[Writes, float]:
    """Return the operator's writes once it makes no more, and the time the last of them was noticed.

    What counts as quiet is between answers: an operator too busy to answer is not one that writes nothing.
    """
    found: Writes = {}
    last = asked = time.perf_counter()
    async with ClientSession(f"http://127.0.0.1:{process.port_of('health')}") as session:
        while asked - last < QUIET:
            asked = time.perf_counter()
            newest = await writes(session)
            if newest != found:
                found, last = newest, time.perf_counter()
            await asyncio.sleep(POLL)
    return found, last


async def writes(session: ClientSession) -> Writes:
    """Return the operator's successful writes, without its Lease and the tokens it has reviewed (nothing is stored of these)."""
    found: Writes = {}
    for line in (
        await metrics(session)
    ).splitlines():  # parsing all of it would take seconds with thousands of workloads
        if (sample := _REQUESTS.fullmatch(line)) is None:
            continue
        labels = dict(_LABEL.findall(sample["labels"]))
        if labels["verb"] in VERBS and labels["code"].startswith("2") and labels["resource"] not in UNCOUNTED:
            key = (labels["verb"], labels["resource"])
            found[key] = found.get(key, 0) + int(float(sample["value"]))
    return found


async def metrics(session: ClientSession) -> str:
    """Return the operator's metrics page."""
    async with session.get("/metrics") as answer:
        return await answer.text()


async def again(port: Transport, kind: ports.Kind, body: Json) -> None:
    """Write into the bare client's namespace what the operator has written: `body` comes from :func:`copied`."""
    if kind is not ports.MODEL_WORKLOADS:
        try:
            await port.create(kind, body, namespace=RAW)
        except Ambiguous:  # as the operator does: a server too busy to answer in time is asked again
            with suppress(AlreadyExists):
                await port.create(kind, body, namespace=RAW)
    elif body.get("status"):
        status = {"metadata": {"name": body["metadata"]["name"]}, "status": body["status"]}
        await port.patch_status(kind, status, manager="bench", namespace=RAW)


def copied(body: Json) -> Json:
    """Return the object as a client would create it in the bare client's namespace."""
    kept = {"name", "labels", "annotations", "ownerReferences"}
    made = {key: value for key, value in body.items() if not key.startswith("deprecated")}
    made["metadata"] = {key: value for key, value in body["metadata"].items() if key in kept}
    if "regarding" in body:
        made["regarding"] = {**body["regarding"], "namespace": RAW}
    if "clusterIP" in body.get("spec", {}):
        made["spec"] = {k: v for k, v in body["spec"].items() if k not in {"clusterIP", "clusterIPs"}}
    return made

"""A status write: CPU of the API server where the status's lists are merged by key, and where they are written as a whole.

Two kinds with the ModelWorkload's schema on one kube-apiserver, in turn; they differ in nothing but the lists of the
status. Each object gets two writes by server-side apply: the one when its workload has got a place, and the one when
it serves.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api import crd
from llmos_operator.api.conditions import Condition
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.transport import connect
from tests.bench.load import TEAM, URI
from tests.bench.report import Table
from tests.support.cluster import api_only
from tests.support.crds import await_established

if TYPE_CHECKING:
    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.controlplane import ControlPlane

Json = dict[str, Any]
ROUNDS, OBJECTS = 24, 15
KEYS: Final = {"conditions": "type", "placements": "pod", "rejected": "reason"}  # by which they were merged
BOUND, SERVING = "it has a place", "it serves"


@dataclass(slots=True)
class Way:
    """One kind, and what each of its writes cost: milliseconds of CPU."""

    title: str
    kind: ports.Kind
    cost: dict[str, list[float]] = field(default_factory=lambda: {BOUND: [], SERVING: []})
    size: int = 0  # bytes of an object after both writes
    managed: int = 0  # of them, bytes that say who owns which field


def run() -> list[Table]:
    """Measure both ways."""
    with tempfile.TemporaryDirectory() as folder, api_only(Path(folder)) as plane:
        return asyncio.run(_measure(plane))


async def _measure(plane: ControlPlane) -> list[Table]:
    ways = [_install(plane, "merged by key", "Keyed"), _install(plane, "as a whole", "Whole")]
    server = plane.process("kube-apiserver").pid
    port = await connect(str(plane.kubeconfig), process="bench", connections=1)
    try:
        await port.apply(ports.NAMESPACES, {"metadata": {"name": TEAM}}, manager="bench")
        for number in range(ROUNDS):
            for way in ways:
                await _make(port, way, number)
            for moment in (BOUND, SERVING):
                for place in range(OBJECTS):
                    for way in ways if place % 2 else reversed(ways):
                        before = _cpu(server)
                        await _write(port, way, _name(number, place), moment)
                        way.cost[moment].append((_cpu(server) - before) * 1000)
        for way in ways:
            made = await port.get(way.kind, _name(0, 0), namespace=TEAM)
            way.size, way.managed = _bytes(made), _bytes(made["metadata"]["managedFields"])
    finally:
        await port.close()
    return [_table(ways)]


def _install(plane: ControlPlane, title: str, name: str) -> Way:
    """Make a kind of its own with the ModelWorkload's schema."""
    (workload,) = (kind for kind in crd.KINDS if kind.plural == "modelworkloads")
    definition, plural, group = crd.definition(workload), name.lower() + "s", "bench.llmos.test"
    definition["metadata"] = {"name": f"{plural}.{group}"}
    definition["spec"] |= {"group": group, "names": {"kind": name, "plural": plural}}
    if name == "Keyed":
        _by_key(definition)
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(definition))
    await_established(plane, "crd", f"{plural}.{group}")
    return Way(title, ports.Kind(group, "v1alpha1", plural, name))


def _by_key(schema: Any) -> None:
    """Let the lists of a status be merged by key, as they were."""
    for name, inner in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if name in KEYS and isinstance(inner, dict) and inner.get("type") == "array":
            inner |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [KEYS[name]]}
        if isinstance(inner, dict | list):
            _by_key(inner)


async def _make(port: Transport, way: Way, number: int) -> None:
    spec = {"model": {"uri": URI}, "context": {"maxModelLen": 2048, "maxNumSeqs": 8}}
    head = {"apiVersion": way.kind.api_version, "kind": way.kind.kind, "spec": spec}
    for place in range(OBJECTS):
        body = {**head, "metadata": {"name": _name(number, place)}}
        await _served(port, way.kind, body)


async def _served(port: Transport, kind: ports.Kind, body: Json) -> None:
    """Create an object; a kind that has just been made is not served at once."""
    async with asyncio.timeout(90):
        while True:
            with suppress(NotFound):
                await port.create(kind, body, namespace=TEAM)
                return
            await asyncio.sleep(0.2)


async def _write(port: Transport, way: Way, name: str, moment: str) -> None:
    body = {"metadata": {"name": name}, "status": _status(name, serving=moment == SERVING)}
    await port.patch_status(way.kind, body, manager="bench", namespace=TEAM)


def _name(number: int, place: int) -> str:
    return f"model-{number}-{place}"


def _status(name: str, *, serving: bool) -> Json:
    """Return a status as the operator writes it: 13 conditions, one place."""
    told = "1 of 1 replicas serve." if serving else "The runtime is starting."
    conditions = [
        {
            "type": kind.value,
            "status": "True" if serving or number < 3 else "False",
            "reason": "Loaded" if serving else "Starting",
            "message": told,
            "lastTransitionTime": "2026-11-29T12:00:00Z",
            "observedGeneration": 1,
        }
        for number, kind in enumerate(kind for kind in Condition if kind is not Condition.FINISHED)
    ]
    placement = {
        "pod": f"{name}-0-abcde",
        "node": "node-0001",
        "deviceUUIDs": ["GPU-0123"],
        "reservedMemory": "1536Mi",
    }
    decision = {"reason": "Bound", "message": "It fits best there.", "candidates": 100, "scoredBy": "BestFit"}
    return {
        "observedGeneration": 1,
        "phase": "Running" if serving else "Loading",
        "summary": {"ready": f"{serving:d}/1", "queue": "default", "nodes": "node-0001", "devices": "1xA100"},
        "replicas": 1,
        "readyReplicas": int(serving),
        "url": f"http://{name}.{TEAM}.svc",
        "model": {"quantization": "bf16", "estimatedMemory": "1.2Gi"},
        "placements": [placement],
        "decision": decision,
        "conditions": conditions,
    }


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process's threads, to the nanosecond."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            spent += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return spent / 1e9


def _bytes(body: Any) -> int:
    return len(json.dumps(body, separators=(",", ":")))


def _table(ways: list[Way]) -> Table:
    former, now = ways
    rows = [
        _times(f"ms of CPU, when {moment}", former.cost[moment], now.cost[moment])
        for moment in (BOUND, SERVING)
    ]
    rows.append(_sizes("bytes of the object", former.size, now.size))
    rows.append(_sizes("of them, who owns what", former.managed, now.managed))
    note = (
        f"Medians of {ROUNDS * OBJECTS} writes each way, one of each in turn. What the server does after its answer counts for "
        "the next write, so the ratio is nearer to 100 % than it should be."
    )
    return Table(
        "What a status write costs the API server", ["what", former.title, now.title, "ratio"], rows, note
    )


def _times(what: str, former: list[float], now: list[float]) -> list[str]:
    before, after = statistics.median(former), statistics.median(now)
    return [what, f"{before:.1f}", f"{after:.1f}", f"{after / before:.0%}"]


def _sizes(what: str, former: int, now: int) -> list[str]:
    return [what, str(former), str(now), f"{now / former:.0%}"]

"""Status of ModelCaches: which nodes should have a copy, and what their agents tell of it.

Agents write what is on their disks into their GPUNodes; this adds it up. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.uris import model_key
from llmos_operator.clock import rfc3339
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import GPU_NODES, MODEL_CACHES
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort, Json, Kind
    from llmos_operator.state.store import Store

log = logger(__name__)

SECONDS = 2.0
_MOST_NODES = 5000


class Copies:
    """Keeps the status of every ModelCache."""

    def __init__(
        self, port: ClusterPort, store: Store, queue: WriteQueue, clock: Clock, *, may_act: Callable[[], bool]
    ) -> None:
        self._port = port
        self._store = store
        self._queue = queue
        self._clock = clock
        self._may_act = may_act
        self._caches: dict[str, Json] = {}
        self._models: dict[str, dict[str, Json]] = {}  # node -> key -> what its agent tells

    def note(self, kind: Kind, body: Json, *, exists: bool) -> None:
        """Take a ModelCache or a GPUNode as the watch shows it."""
        name = str(body["metadata"]["name"])
        if kind == MODEL_CACHES:
            self._caches.pop(name, None)
            if exists:
                self._caches[name] = body
        elif kind == GPU_NODES:
            told = (body.get("status") or {}).get("models") or () if exists else ()
            self._models.pop(name, None)
            if told:
                self._models[name] = {str(one.get("key")): one for one in told}

    async def run(self) -> None:
        """Write what changed, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            if self._may_act():
                self.look()

    def look(self) -> None:
        """Submit a write for each status that is not as it should be."""
        nodes = self._nodes()
        for name, body in self._caches.items():
            status = self._status(body, nodes)
            if status != _comparable(body.get("status") or {}):
                write = partial(self._write, name, status)
                self._queue.submit(Job(Rank.SUMMARY, f"copies {name}", write))

    def _nodes(self) -> dict[str, Mapping[str, str]]:
        """Return the labels of nodes with an agent."""
        states = self._store.snapshot().nodes
        return {
            name: state.node.labels
            for name, state in states.items()
            if state.node is not None and state.gpu is not None
        }

    def _status(self, body: Json, nodes: Mapping[str, Mapping[str, str]]) -> Json:
        spec, before = body.get("spec") or {}, body.get("status") or {}
        selector = spec.get("nodeSelector") or {}
        key = model_key(str(spec.get("uri")), str(spec.get("revision") or "main"))
        chosen = [name for name in sorted(nodes) if all(nodes[name].get(k) == v for k, v in selector.items())]
        copies = [copy_of(name, self._models.get(name, {}).get(key)) for name in chosen[:_MOST_NODES]]
        ready = sum(one["state"] == "Ready" for one in copies)
        generation = int(body["metadata"].get("generation") or 0)
        condition = condition_of(copies, ready, len(chosen))
        old: Json = next((one for one in before.get("conditions") or () if one.get("type") == "Ready"), {})
        same = old.get("status") == condition["status"]
        condition["lastTransitionTime"] = (
            old["lastTransitionTime"] if same and "lastTransitionTime" in old else rfc3339(self._clock.now())
        )
        return {
            "observedGeneration": generation,
            "copies": {"available": ready, "total": len(chosen)},
            "nodes": copies,
            "conditions": [{**condition, "observedGeneration": generation}],
        }

    async def _write(self, name: str, status: Json) -> None:
        body = {"metadata": {"name": name}, "status": status}
        try:
            written = await self._port.patch_status(MODEL_CACHES, body, manager=names.MANAGER_STATUS)
        except (NotFound, Conflict):
            return
        except LlmosError as error:
            log.warning("status of a model cache not written", cache=name, error=error)
            return
        if name in self._caches:
            self._caches[name] = written


def copy_of(node: str, told: Json | None) -> Json:
    """Return `status.nodes[]` from what a node's agent tells of the model."""
    if told is None:
        return {"name": node, "state": "Pending"}
    kept = ("state", "bytes", "bytesTotal", "etaSeconds", "reason", "message")
    return {"name": node, "state": "Pending"} | {field: told[field] for field in kept if field in told}


def condition_of(copies: Iterable[Json], ready: int, total: int) -> Json:
    """Return the condition Ready, without its time."""
    failed = [one for one in copies if one["state"] == "Failed"]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more nodes)" if len(failed) > 1 else ""
        message = f"{first['name']}{more}: {first.get('message', '')}"[:1024]
        reason = _reason(str(first.get("reason") or ""))
        return {"type": "Ready", "status": "False", "reason": reason, "message": message}
    if not total:
        text = "No node with an agent has the labels of spec.nodeSelector."
        return {"type": "Ready", "status": "False", "reason": Reason.PENDING.value, "message": text}
    if ready == total:
        text = f"All {total} nodes have a copy."
        return {"type": "Ready", "status": "True", "reason": Reason.CACHED.value, "message": text}
    text = f"{ready} of {total} nodes have a copy."
    coming = any(one["state"] == "Downloading" for one in copies)
    reason = (Reason.DOWNLOADING if coming else Reason.PENDING).value
    return {"type": "Ready", "status": "False", "reason": reason, "message": text}


def _reason(text: str) -> str:
    try:
        return Reason(text).value
    except ValueError:
        return Reason.DOWNLOAD_FAILED.value


def _comparable(status: Json) -> Json:
    """Return a status as it would have been written; the API server may have filled in defaults."""
    nodes = [
        copy_of(str(one.get("name")), {k: v for k, v in one.items() if v or k == "state"})
        for one in status.get("nodes") or ()
    ]
    kept: Json = {
        name: status[name] for name in ("observedGeneration", "copies", "conditions") if name in status
    }
    return {**kept, "nodes": nodes}

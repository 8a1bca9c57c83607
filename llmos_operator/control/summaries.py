"""Summaries for people: what is reserved on each device (GPUNode), how much of each queue is used (WorkloadQueue).

Nothing is decided from them, so they are written last, a few seconds late and only when they changed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.api.quantity import format_bytes, format_milli
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import GPU_NODES, WORKLOAD_QUEUES
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.observability.logging import logger
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.cluster.port import ClusterPort, Json, Kind
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store

log = logger(__name__)

SECONDS = 10.0


@dataclass(slots=True)
class _Use:
    """Use of one queue."""

    gpu_milli: int = 0
    memory_bytes: int = 0
    admitted: int = 0
    pending: int = 0


class Summaries:
    """Writes both kinds of summary."""

    def __init__(
        self, port: ClusterPort, store: Store, queue: WriteQueue, *, may_act: Callable[[], bool]
    ) -> None:
        self._port = port
        self._store = store
        self._queue = queue
        self._may_act = may_act
        self._written: dict[tuple[str, str], Json] = {}  # plural, name -> status part as written last
        self._version = -1

    def note(self, kind: Kind, body: Json, *, exists: bool) -> None:
        """Take the summary as it stands in the API, so that what stands there is not written again."""
        key = (kind.plural, str(body["metadata"]["name"]))
        if not exists:
            self._written.pop(key, None)
            return
        status = body.get("status") or {}
        parts = ("ledger",) if kind == GPU_NODES else ("usage", "pending", "admitted")
        self._written[key] = {part: status[part] for part in parts if part in status}

    async def run(self) -> None:
        """Write what changed, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            if self._may_act() and self._store.version != self._version:
                self._version = self._store.version
                snapshot = self._store.snapshot()
                self._submit(GPU_NODES, ledgers(snapshot))
                self._submit(WORKLOAD_QUEUES, queue_uses(snapshot))

    def _submit(self, kind: Kind, parts: dict[str, Json]) -> None:
        for name, part in parts.items():
            if self._written.get((kind.plural, name)) != part:
                write = partial(self._write, kind, name, part)
                self._queue.submit(Job(Rank.SUMMARY, f"summary {kind.plural} {name}", write))

    async def _write(self, kind: Kind, name: str, part: Json) -> None:
        body = {"metadata": {"name": name}, "status": part}
        try:
            await self._port.patch_status(kind, body, manager=names.MANAGER_OPERATOR)
        except (NotFound, Conflict):
            return
        except LlmosError as error:
            log.warning("summary not written", kind=kind.kind, name=name, error=error)
            return
        self._written[kind.plural, name] = part


def ledgers(snapshot: Snapshot) -> dict[str, Json]:
    """Return `status.ledger` of every GPUNode."""
    found: dict[str, Json] = {}
    for name, state in snapshot.nodes.items():
        if state.gpu is None:
            continue
        devices = [
            {"uuid": one.device.uuid, "reserved": format_bytes(one.reserved_bytes), "claims": one.claims}
            for one in state.devices
        ]
        found[name] = {"ledger": {"devices": devices}}
    return found


def queue_uses(snapshot: Snapshot) -> dict[str, Json]:
    """Return usage, pending and admitted of every queue."""
    uses: defaultdict[str, _Use] = defaultdict(_Use)
    for workload in snapshot.workloads.values():
        use = uses[workload.queue or names.DEFAULT_QUEUE]
        pods = [pod for pod in snapshot.pods_of.get(workload.uid, ()) if pod.phase is not PodPhase.FINISHED]
        for pod in pods:
            if pod.claim is not None:
                use.gpu_milli += pod.claim.gpu_milli
                use.memory_bytes += pod.claim.bytes_per_device * len(pod.claim.devices)
        wanted = 0 if workload.suspended or workload.finished else workload.replicas
        if pods:
            use.admitted += 1
        elif wanted:
            use.pending += 1
    return {
        name: {
            "usage": {
                "gpus": format_milli(uses[name].gpu_milli),
                "memory": format_bytes(uses[name].memory_bytes),
            },
            "pending": uses[name].pending,
            "admitted": uses[name].admitted,
        }
        for name in snapshot.queues
    }

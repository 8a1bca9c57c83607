"""Summaries for people: what is reserved on each device (GPUNode); use, share and readiness of each WorkloadQueue.

Nothing is decided from them, so they are written last, a few seconds late and only when they changed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import format_bytes, format_milli
from llmos_operator.clock import rfc3339
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import GPU_NODES, WORKLOAD_QUEUES
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.quota import Amount, QuotaTree, invalid_reason
from llmos_operator.state.types import FULL_MILLI, PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort, Json, Kind
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store

log = logger(__name__)

SECONDS = 10.0
_QUEUE_PARTS = ("usage", "borrowed", "shareMilli", "pending", "admitted", "conditions", "observedGeneration")


class Summaries:
    """Writes both kinds of summary."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        clock: Clock,
        *,
        may_act: Callable[[], bool],
    ) -> None:
        self._port = port
        self._clock = clock
        self._store = store
        self._queue = queue
        self._may_act = may_act
        self._written: dict[tuple[str, str], Json] = {}  # plural, name -> status part as written last
        self._generations: dict[tuple[str, str], int] = {}
        self._version = -1

    def note(self, kind: Kind, body: Json, *, exists: bool) -> None:
        """Take the summary as it stands in the API, so that what stands there is not written again."""
        key = (kind.plural, str(body["metadata"]["name"]))
        if not exists:
            self._written.pop(key, None)
            self._generations.pop(key, None)
            return
        status = body.get("status") or {}
        parts = ("ledger",) if kind == GPU_NODES else _QUEUE_PARTS
        self._written[key] = {part: status[part] for part in parts if part in status}
        self._generations[key] = int(body["metadata"].get("generation") or 0)

    async def run(self) -> None:
        """Write what changed, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            if self._may_act() and self._store.version != self._version:
                self._version = self._store.version
                snapshot = self._store.snapshot()
                self._submit(GPU_NODES, ledgers(snapshot))
                statuses = queue_statuses(snapshot)
                self._submit(
                    WORKLOAD_QUEUES, {name: self._stamped(name, one) for name, one in statuses.items()}
                )

    def _stamped(self, name: str, status: Json) -> Json:
        """Give the condition its generation and time; the time stays while the status of the condition does."""
        key = (WORKLOAD_QUEUES.plural, name)
        (condition,) = status["conditions"]
        before = (self._written.get(key, {}).get("conditions") or [{}])[0]
        same = before.get("status") == condition["status"]
        since = before["lastTransitionTime"] if same else rfc3339(self._clock.now())
        generation = self._generations.get(key, 0)
        condition = {**condition, "lastTransitionTime": since, "observedGeneration": generation}
        return {**status, "conditions": [condition], "observedGeneration": generation}

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
            | ({"strangers": format_bytes(one.strange_bytes)} if one.strange_bytes else {})
            for one in state.devices
        ]
        found[name] = {"ledger": {"devices": devices}}
    return found


def queue_statuses(snapshot: Snapshot) -> dict[str, Json]:
    """Return the status of every queue, its condition without a time: use, share, who waits, whether it can be used."""
    tree, total = QuotaTree.of(snapshot), _capacity(snapshot)
    counts = _counts(snapshot)
    found: dict[str, Json] = {}
    for name in snapshot.queues:
        milli, held = snapshot.charged.get(name, (0, 0))
        admitted, pending = counts[name]
        status = {
            "usage": _amount(Amount(milli, held)),
            "pending": pending,
            "admitted": admitted,
            "shareMilli": tree.share_micro(name, total) // 1000,
            "conditions": [_ready(invalid_reason(tree, name))],
        }
        borrowed = tree.borrowed(name)
        found[name] = status | ({"borrowed": _amount(borrowed)} if borrowed != Amount() else {})
    return found


def _ready(problem: tuple[Reason, str] | None) -> Json:
    if problem is None:
        return {
            "type": "Ready",
            "status": "True",
            "reason": str(Reason.READY),
            "message": "The queue takes work.",
        }
    reason, message = problem
    return {
        "type": "Ready",
        "status": "False",
        "reason": str(reason),
        "message": f"{message}; correct spec.parent",
    }


def _amount(amount: Amount) -> Json:
    return {"gpus": format_milli(amount.gpu_milli), "memory": format_bytes(amount.memory_bytes)}


def _capacity(snapshot: Snapshot) -> Amount:
    devices = [one.device for state in snapshot.nodes.values() for one in state.devices]
    return Amount(FULL_MILLI * len(devices), sum(device.memory_bytes for device in devices))


def _counts(snapshot: Snapshot) -> defaultdict[str, tuple[int, int]]:
    """Return by queue how many workloads have a place and how many wait for their first."""
    counts: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for workload in snapshot.workloads.values():
        queue = workload.queue or names.DEFAULT_QUEUE
        admitted, pending = counts[queue]
        pods = snapshot.pods_of.get(workload.uid, ())
        if any(pod.phase is not PodPhase.FINISHED for pod in pods):
            counts[queue] = (admitted + 1, pending)
        elif workload.replicas and not workload.suspended and not workload.finished:
            counts[queue] = (admitted, pending + 1)
    return counts

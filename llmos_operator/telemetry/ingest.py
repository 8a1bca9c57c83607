"""The operator's side of telemetry: from a request body to readings for the store. Pure: no HTTP, no clock.

Agents are trusted with their own node and nothing else, and only as far as sizes go: a batch that is too large, names
another node or contradicts itself is refused with a reason; one that is late or doubled is dropped without a word,
because networks do that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from llmos_operator.api.telemetry import TelemetryBatch
from llmos_operator.errors import Permanent
from llmos_operator.state.telemetry import Reading

if TYPE_CHECKING:
    from llmos_operator.api.telemetry import DeviceSample

MAX_BODY: Final = 1 << 20  # bytes; eight devices are 2 KB, the most processes a batch tells 200 KB
MAX_NODES: Final = 20_000
# An agent that started earlier than the last one heard (its clock was corrected) is believed when the other has been
# silent this long. Two agents on one node cannot take turns faster.
TAKEOVER_SECONDS: Final = 10.0


class BadBatch(Permanent):
    """A batch is refused. `reason`: TooLarge, Malformed, WrongNode, DuplicateDevice, ImpossibleValue, TooManyNodes."""


@dataclass(frozen=True, slots=True)
class PodUse:
    """Device memory of one pod's processes; `pod_uid` "" for processes nobody could attribute."""

    uuid: str
    pod_uid: str
    memory_bytes: int | None
    processes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a batch says, for `store.observe(node, readings, received_at)`.

    `uses` is None when the batch tells no process list; else it covers the devices in `listed`.
    """

    node: str
    readings: tuple[Reading, ...]
    received_at: float
    listed: frozenset[str] = frozenset()
    uses: tuple[PodUse, ...] | None = None
    missed: int = 0  # rounds of the same agent since the batch before that were not told, or were lost


@dataclass(frozen=True, slots=True)
class _Last:
    epoch: int
    sequence: int
    heard_at: float


@dataclass(slots=True)
class Counts:
    """Batches by what became of them, for metrics."""

    accepted: int = 0
    dropped: int = 0  # late or doubled
    refused: int = 0
    missed: int = 0


class Ingest:
    """Order and bounds of the batches of all nodes. One instance, one caller."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._last: dict[str, _Last] = {}

    def accept(self, body: bytes, node: str, received_at: float) -> Report | None:
        """Return what ``body`` says, or None if it is older than what was heard already.

        ``node`` is the node the sender has proved to be on; ``received_at`` is the receiver's monotonic time in
        seconds. Raises :class:`BadBatch`.
        """
        try:
            batch = self._parse(body, node)
            missed = self._order(batch, received_at)
        except BadBatch:
            self.counts.refused += 1
            raise
        if missed is None:
            self.counts.dropped += 1
            return None
        self.counts.accepted += 1
        self.counts.missed += missed
        listed = frozenset(device.uuid for device in batch.devices if device.processes is not None)
        return Report(
            node=node,
            readings=tuple(_reading(device) for device in batch.devices),
            received_at=received_at,
            listed=listed,
            uses=tuple(use for device in batch.devices for use in _uses(device)) if listed else None,
            missed=missed,
        )

    def forget(self, node: str) -> None:
        """Drop a node that is gone."""
        self._last.pop(node, None)

    @staticmethod
    def _parse(body: bytes, node: str) -> TelemetryBatch:
        if len(body) > MAX_BODY:
            raise BadBatch(f"batch has {len(body)} bytes; at most {MAX_BODY} are taken", reason="TooLarge")
        try:
            batch = TelemetryBatch.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise BadBatch(f"{where}: {first['msg']}", reason="Malformed") from None
        if batch.node != node:
            raise BadBatch(
                f"the batch is for node {batch.node!r}, the sender is on node {node!r}", reason="WrongNode"
            )
        seen: set[str] = set()
        for device in batch.devices:
            if device.uuid in seen:
                raise BadBatch(f"device {device.uuid!r} is in the batch twice", reason="DuplicateDevice")
            seen.add(device.uuid)
            _check(device)
        return batch

    def _order(self, batch: TelemetryBatch, now: float) -> int | None:
        """Note the batch as the newest and return how many were not told before it, or None if it is not new."""
        last = self._last.get(batch.node)
        if last is None and len(self._last) >= MAX_NODES:
            raise BadBatch(f"telemetry of {MAX_NODES} nodes is kept already", reason="TooManyNodes")
        missed = 0
        if last is not None and batch.epoch == last.epoch:
            if batch.sequence <= last.sequence:
                return None
            missed = batch.sequence - last.sequence - 1
        elif last is not None and batch.epoch < last.epoch and now - last.heard_at < TAKEOVER_SECONDS:
            return None
        self._last[batch.node] = _Last(batch.epoch, batch.sequence, now)
        return missed


def _check(device: DeviceSample) -> None:
    told = (
        ("memoryUsedBytes", device.memory_used_bytes, 1 << 63),
        ("memoryTotalBytes", device.memory_total_bytes, 1 << 63),
        ("energyMillijoules", device.energy_millijoules, 1 << 63),
        ("utilizationPercent", device.utilization_percent, 101),
        ("throttledMilli", device.throttled_milli, 1001),
        ("riskMilli", device.risk_milli, 1001),
        ("smActiveMilli", device.sm_active_milli, 1001),
        ("dramActiveMilli", device.dram_active_milli, 1001),
        ("powerMilliwatts", device.power_milliwatts, 1 << 63),
    )
    for name, value, end in told:
        if value is not None and not 0 <= value < end:
            raise BadBatch(f"device {device.uuid!r}: {name} = {value} cannot be", reason="ImpossibleValue")


def _reading(device: DeviceSample) -> Reading:
    return Reading(
        uuid=device.uuid,
        used_bytes=device.memory_used_bytes,
        total_bytes=device.memory_total_bytes,
        verdict=device.verdict,
        reason=device.reason,
        busy_percent=device.utilization_percent,
        energy_millijoules=device.energy_millijoules,
        throttled_milli=device.throttled_milli,
        risk_milli=device.risk_milli,
        power_milliwatts=device.power_milliwatts,
        sm_active_milli=device.sm_active_milli,
        dram_active_milli=device.dram_active_milli,
    )


def _uses(device: DeviceSample) -> list[PodUse]:
    """Return the memory by pod, pods in order of their UID."""
    memory: dict[str, int | None] = {}
    counts: dict[str, int] = {}
    for process in device.processes or ():
        before = memory.get(process.pod_uid, 0)
        # A pod with one process that does not tell its memory has an unknown use, not the sum of the others.
        memory[process.pod_uid] = (
            None if before is None or process.memory_bytes is None else before + process.memory_bytes
        )
        counts[process.pod_uid] = counts.get(process.pod_uid, 0) + 1
    return [PodUse(device.uuid, uid, memory[uid], counts[uid]) for uid in sorted(memory)]

"""What the agent writes, as plain JSON values: the operator's batch and the GPUNode. Pure.

Built without the wire's pydantic types: once a second for eight devices, validation of our own values would be a third
of the agent's CPU. A test holds both to the wire types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmos_operator.api.quantity import format_bytes
from llmos_operator.api.telemetry import MAX_DEVICES, MAX_HOLDERS, MAX_PROCESSES, Verdict
from llmos_operator.clock import rfc3339
from llmos_operator.telemetry.policy import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.telemetry.health import DeviceHealth
    from llmos_operator.telemetry.kubelet.pod_resources import Allocations, Holder
    from llmos_operator.telemetry.metrics import DeviceView
    from llmos_operator.telemetry.sample import Capability, DeviceInfo, DriverInfo, Link, ProcessUse, Sample

    Json = dict[str, Any]

_LINK_TYPES: Final = {
    "internal": "PCIeSwitch",
    "single": "PCIeSwitch",
    "multiple": "PCIeSwitch",
    "hostbridge": "PCIeHost",
    "node": "NUMA",
    "system": "System",
}
PROCESS_LIMIT: Final = 2048  # processes told with one batch, all devices together
_PRODUCT_LIMIT: Final = 128
_MESSAGE_DEVICES: Final = 8
_WATT: Final = 1000  # milliwatts
_MILLI: Final = 1000  # thousandths of a GPU
_NONE: Final[frozenset[Capability]] = frozenset()


def batch(
    node: str, epoch: int, sequence: int, views: Iterable[DeviceView], listed: frozenset[str] = frozenset()
) -> Json:
    """Return a TelemetryBatch. ``listed`` are the devices whose process list is told with this batch."""
    devices = []
    room = PROCESS_LIMIT
    for view in _published(views):
        processes = view.processes if view.info.uuid in listed else None
        if processes is not None:
            processes = processes[: min(room, MAX_PROCESSES)]
            room -= len(processes)
        devices.append(_sample(view, processes))
    return {"node": node, "epoch": epoch, "sequence": sequence, "devices": devices}


def _published(views: Iterable[DeviceView]) -> list[DeviceView]:
    """Return what can be given to workloads: not a GPU that is cut into instances, at most what the wire takes."""
    return [view for view in views if view.info.allocatable][:MAX_DEVICES]


def _sample(view: DeviceView, processes: tuple[ProcessUse, ...] | None) -> Json:
    entry: Json = {
        "uuid": view.info.uuid,
        "index": view.info.index,
        "verdict": view.health.verdict.value,
        "reason": view.health.reason.value,
    }
    sample = view.sample
    if sample is not None:
        counters = sample.counters
        told = (
            ("memoryTotalBytes", sample.memory_total_bytes),
            ("memoryUsedBytes", sample.memory_used_bytes),
            ("utilizationPercent", sample.utilization_percent),
            ("temperatureCelsius", sample.temperature_celsius),
            ("powerMilliwatts", sample.power_milliwatts),
            ("energyMillijoules", sample.energy_millijoules),
            ("throttledMilli", view.throttled_milli),
            ("riskMilli", view.risk_milli),
            ("smActiveMilli", _milli(counters.sm_active_ratio if counters else None)),
            ("dramActiveMilli", _milli(counters.dram_active_ratio if counters else None)),
        )
        for name, value in told:
            if value is not None:
                entry[name] = value
    if processes is not None:
        entry["processes"] = [_process(use) for use in processes]
    return entry


def _milli(ratio: float | None) -> int | None:
    return None if ratio is None else min(_MILLI, max(0, round(ratio * _MILLI)))


def _process(use: ProcessUse) -> Json:
    entry: Json = {"pid": use.pid}
    if use.memory_bytes is not None:
        entry["memoryBytes"] = use.memory_bytes
    if use.pod_uid:
        entry["podUid"] = use.pod_uid
    return entry


# -- GPUNode


class Facts(NamedTuple):
    """All that a GPUNode tells of a device: equal facts are worded alike, so nothing need be worded anew for them."""

    info: DeviceInfo
    verdict: Verdict
    reason: Reason
    since: float
    power_limit_milliwatts: int | None
    capabilities: frozenset[Capability]


def facts(views: Iterable[DeviceView]) -> tuple[Facts, ...]:
    """Return what a GPUNode tells of each device."""
    return tuple(_facts(view.info, view.health, view.sample) for view in views)


def _facts(info: DeviceInfo, health: DeviceHealth, sample: Sample | None) -> Facts:
    limit = health.counters.power_limit_milliwatts if health.counters is not None else None
    capabilities = sample.capabilities if sample is not None else _NONE
    return Facts(info, health.verdict, health.reason, health.since, limit, capabilities)


def status(
    mode: str,
    driver: DriverInfo,
    devices: Sequence[Facts],
    conditions: Sequence[Json],
    allocations: Allocations | None = None,
) -> Json:
    """Return the agent's part of a GPUNode's status."""
    published = [one for one in devices if one.info.allocatable][:MAX_DEVICES]
    return {
        "mode": mode,
        "driver": driver.version,
        "devices": [
            _device(one)
            | _partition(one.info, devices)
            | _power_limit(one, devices)
            | _allocation(one.info.uuid, allocations)
            for one in published
        ],
        "conditions": list(conditions),
    }


def _partition(info: DeviceInfo, devices: Sequence[Facts]) -> Json:
    """Return what a MIG instance is of its GPU; nothing for a whole one.

    Its part is the larger of those of compute slices and of memory: the rest of the GPU has no use for more than is left of both.
    """
    if not info.is_mig:
        return {}
    found: Json = {"parent": info.parent}
    parts = []
    profile = info.mig_profile
    if profile is not None:
        found["migProfile"] = str(profile)
        if info.gpu_slices:
            parts.append(profile.slices * _MILLI // info.gpu_slices)
    parent = _parent(info, devices)
    if parent is not None and parent.info.memory_bytes and info.memory_bytes:
        parts.append(info.memory_bytes * _MILLI // parent.info.memory_bytes)
    return {**found, "partMilli": max(1, min(_MILLI, max(parts)))} if parts else found


def _parent(info: DeviceInfo, devices: Sequence[Facts]) -> Facts | None:
    return next((one for one in devices if one.info.uuid == info.parent), None)


def _power_limit(told: Facts, devices: Sequence[Facts]) -> Json:
    """Return the limit in force, in whole watts so that it does not change for nothing; nothing where nobody tells.

    The driver limits GPUs. A MIG instance is given the part of it that it has of the memory.
    """
    info, whole, part = told.info, told, 1.0
    if info.is_mig:
        parent = _parent(info, devices)
        if parent is None or not parent.info.memory_bytes or not info.memory_bytes:
            return {}
        whole, part = parent, info.memory_bytes / parent.info.memory_bytes
    limit = whole.power_limit_milliwatts
    return {"powerLimitMilliwatts": round(limit * part / _WATT) * _WATT} if limit else {}


def _allocation(uuid: str, allocations: Allocations | None) -> Json:
    """Return what the kubelet says of a device; nothing where it says nothing."""
    if allocations is None:
        return {}
    found: Json = {}
    if uuid in allocations.offered:
        found["resource"] = allocations.offered[uuid]
    if uuid in allocations.holders:
        found["holders"] = [_holder(one) for one in allocations.holders[uuid][:MAX_HOLDERS]]
    return found


def _holder(holder: Holder) -> Json:
    return {"pod": holder.pod, "container": holder.container, "resource": holder.resource}


def _device(told: Facts) -> Json:
    info = told.info
    return {
        "uuid": info.uuid,
        "index": info.index,
        "product": info.product[:_PRODUCT_LIMIT],
        "memory": format_bytes(info.memory_bytes or 0),
        "computeCapability": info.compute_capability,
        "mig": info.is_mig,
        "health": {
            "verdict": told.verdict.value,
            "reason": told.reason.value,
            "since": rfc3339(told.since),
        },
        "links": [_link(link) for link in info.links],
        "capabilities": sorted(told.capabilities),
    }


def _link(link: Link) -> Json:
    kind = "NVLink" if link.nvlinks else _LINK_TYPES.get(link.level, "System")
    return {"uuid": link.uuid, "type": kind, "lanes": link.nvlinks}


def health_condition(views: Sequence[DeviceView]) -> Json:
    """Return condition DevicesHealthy without its transition time: the sick ones, why, and what to do."""
    sick = [view for view in views if view.health.verdict in {Verdict.UNHEALTHY, Verdict.DEGRADED}]
    unknown = [view for view in views if view.health.verdict is Verdict.UNKNOWN]
    if not views:
        return _condition("DevicesHealthy", "Unknown", "NoDevices", "no device was found on this node")
    if not sick and unknown:
        return _condition(
            "DevicesHealthy", "Unknown", "NoSamples", f"{len(unknown)} devices are not measured"
        )
    if not sick:
        return _condition("DevicesHealthy", "True", "AsExpected", f"{len(views)} devices measured")
    sick.sort(
        key=lambda view: (view.health.verdict is not Verdict.UNHEALTHY, view.info.index, view.info.uuid)
    )
    told = "; ".join(
        f"GPU {view.info.index} ({view.info.uuid}) {view.health.verdict}: {view.health.detail}; action: {view.health.action}"
        for view in sick[:_MESSAGE_DEVICES]
    )
    rest = f"; and {len(sick) - _MESSAGE_DEVICES} more" if len(sick) > _MESSAGE_DEVICES else ""
    return _condition("DevicesHealthy", "False", sick[0].health.reason.value, told + rest)


def ready_condition(problem: str) -> Json:
    """Return condition Ready without its transition time; ``problem`` is "" when the agent measures."""
    if problem:
        return _condition("Ready", "False", "DriverTrouble", problem)
    return _condition("Ready", "True", "AgentReady", "the agent measures this node")


def allocation_condition(allocations: Allocations | None, trouble: str) -> list[Json]:
    """Return condition AllocationsKnown without its transition time; none where nobody is to ask the kubelet."""
    if not trouble and allocations is None:
        return []
    if trouble:
        return [_condition("AllocationsKnown", "False", "KubeletSilent", trouble)]
    return [_condition("AllocationsKnown", "True", "AsExpected", "the kubelet tells which pods hold devices")]


def _condition(kind: str, state: str, reason: str, message: str) -> Json:
    return {"type": kind, "status": state, "reason": reason, "message": message[:4096]}


def lost(before: Json, why: str, now: float) -> Json:
    """Return the status of a GPUNode whose driver cannot be used: the devices it had, none of them usable."""
    old = before.get("status") or {}
    health = {"verdict": Verdict.UNHEALTHY.value, "reason": Reason.DRIVER_LOST.value, "since": rfc3339(now)}
    devices = []
    for device in old.get("devices") or []:
        known = device.get("health") or {}
        same = known.get("reason") == health["reason"]
        devices.append({**device, "health": known if same else health})
    transitions = Transitions()
    transitions.restore(old.get("conditions") or [])
    conditions = [
        transitions.stamp(_condition("Ready", "False", "DriverLost", why), now),
        transitions.stamp(_condition("DevicesHealthy", "False", "DriverLost", why), now),
    ]
    return {
        **{key: old.get(key, "") for key in ("mode", "driver")},
        "devices": devices,
        "conditions": conditions,
    }


class Transitions:
    """Times at which conditions changed their status, kept over reports."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}

    def restore(self, conditions: Iterable[Json]) -> None:
        """Take up the conditions an earlier agent wrote."""
        for condition in conditions:
            self._known[str(condition.get("type"))] = (
                str(condition.get("status")),
                str(condition.get("lastTransitionTime")),
            )

    def stamp(self, condition: Json, now: float) -> Json:
        """Return ``condition`` with the time its status changed last."""
        known = self._known.get(condition["type"])
        if known is None or known[0] != condition["status"]:
            known = (condition["status"], rfc3339(now))
            self._known[condition["type"]] = known
        return {**condition, "lastTransitionTime": known[1]}

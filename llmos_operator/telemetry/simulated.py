"""Devices that do not exist, under processes that do: the agent's backend for demo, tests and CI.

The node's annotation `llmos.dev/simulated-gpus` says which devices there are. Their memory is what the processes on
them really use, their utilisation is the CPU time of these processes, and temperature, power and energy follow from it
through a small thermal model; noise is seeded, so the same load reads the same. The annotation
`llmos.dev/simulated-faults` breaks them on purpose.
"""

from __future__ import annotations

import json
import math
import queue
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from llmos_operator import __version__
from llmos_operator.telemetry.attribution import PROC
from llmos_operator.telemetry.backend import EVENT_WAIT_SECONDS, BackendUnavailable
from llmos_operator.telemetry.processes import ProcessScan, Tenant
from llmos_operator.telemetry.sample import (
    Capability,
    ClockReason,
    Counters,
    DeviceEvent,
    DeviceInfo,
    DriverInfo,
    EventKind,
    Fault,
    FaultKind,
    ProcessUse,
    Sample,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MAX_DEVICES: Final = 64
AMBIENT_CELSIUS: Final = 30.0
LOAD_CELSIUS: Final = 42.0  # warmer than ambient at full load
THERMAL_SECONDS: Final = 20.0  # time constant of warming and cooling
IDLE_SHARE: Final = 0.12  # of the power limit
DEFAULT_POWER_MILLIWATTS: Final = 300_000
CAPABILITIES: Final = frozenset(
    {
        Capability.MEMORY,
        Capability.UTILIZATION,
        Capability.TEMPERATURE,
        Capability.POWER,
        Capability.POWER_LIMIT,
        Capability.CLOCK_REASONS,
        Capability.ENERGY,
        Capability.PROCESSES,
        Capability.EVENTS,
    }
)


class BadAnnouncement(BackendUnavailable):
    """An annotation that describes simulated devices or faults cannot be used; names field, value and fix."""


@dataclass(slots=True)
class _Device:
    """One simulated device and its state between samples."""

    info: DeviceInfo
    power_limit: int
    random: random.Random
    cpu: dict[int, float] = field(default_factory=dict)  # CPU seconds of each process at the last sample
    at: float = -1.0
    celsius: float = AMBIENT_CELSIUS
    millijoules: float = 0.0


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault somebody ordered. An XID is an event and happens once; a fault lasts while it is announced."""

    uuid: str
    xid: int = 0
    fault: FaultKind | None = None
    id: str = ""
    clocks: ClockReason | None = None  # what holds its clocks down


class SimulatedBackend:
    """:class:`~llmos_operator.telemetry.backend.Backend` over processes."""

    mode = "simulated"

    def __init__(
        self,
        node: str,
        announcement: str,
        *,
        faults: str = "",
        seed: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
        proc: Path = PROC,
    ) -> None:
        """``announcement`` and ``faults`` are the annotations' texts. Raises :class:`BadAnnouncement`."""
        self._seed = seed
        self._monotonic = monotonic
        self._scan = ProcessScan(node, proc)
        self._tenants: tuple[Tenant, ...] = ()
        self._devices: dict[str, _Device] = {}
        self._faults: tuple[InjectedFault, ...] = ()
        self._events: queue.SimpleQueue[DeviceEvent] = queue.SimpleQueue()
        self.announce(announcement, faults)

    def announce(self, announcement: str, faults: str = "") -> None:
        """Take new annotations. Devices no longer named are gone, as if pulled out. May be called from any thread."""
        infos, ordered = parse_devices(announcement), parse_faults(faults)
        devices = {info.uuid: self._devices.get(info.uuid) or self._new(info, limit) for info, limit in infos}
        for uuid, device in devices.items():
            device.info = next(info for info, _ in infos if info.uuid == uuid)
        self._devices = devices
        for fault in ordered:
            if fault.xid and fault not in self._faults:
                self._events.put(DeviceEvent(fault.uuid, EventKind.XID, fault.xid))
        self._faults = ordered

    def _new(self, info: DeviceInfo, power_limit: int) -> _Device:
        return _Device(info, power_limit, random.Random(f"{self._seed}/{info.uuid}"))  # noqa: S311 - noise

    def open(self) -> DriverInfo:
        """There is nothing to connect to."""
        return DriverInfo(version=f"simulated-{__version__}")

    def close(self) -> None:
        """There is nothing to disconnect from."""

    def self_test(self) -> str:
        """Return "": the simulation always answers."""
        return ""

    def refresh(self, uuid: str) -> None:
        """Nothing is read at a slower rate here."""

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Return the announced devices by index, and look who is on them."""
        self._tenants = self._scan.scan(self._monotonic())
        return tuple(
            sorted((d.info for d in self._devices.values()), key=lambda info: (info.index, info.uuid))
        )

    def sample(self, device: DeviceInfo) -> Sample:
        """Measure the device's processes."""
        now = self._monotonic()
        state = self._devices.get(device.uuid)
        if state is None:
            return Sample(uuid=device.uuid, at=now)
        injected = tuple(
            Fault(fault.fault, "simulated")
            for fault in self._faults
            if fault.uuid == device.uuid and fault.fault
        )
        if any(fault.kind is FaultKind.LOST for fault in injected):
            return Sample(uuid=device.uuid, at=now, capabilities=CAPABILITIES, faults=injected)
        tenants = self._on(device.uuid)
        load = _load(state, tenants, now)
        power = _warm(state, load, now)
        return Sample(
            uuid=device.uuid,
            at=now,
            memory_total_bytes=state.info.memory_bytes,
            memory_used_bytes=sum(_share(tenant, tenant.memory_bytes) for tenant in tenants),
            utilization_percent=round(100 * load),
            temperature_celsius=round(state.celsius + state.random.uniform(-0.5, 0.5)),
            power_milliwatts=power,
            energy_millijoules=int(state.millijoules),
            clock_reasons=frozenset(
                one.clocks for one in self._faults if one.clocks and one.uuid == device.uuid
            ),
            counters=Counters(at=now, power_limit_milliwatts=state.power_limit),
            capabilities=CAPABILITIES,
            faults=injected,
        )

    def processes(self, device: DeviceInfo) -> tuple[ProcessUse, ...] | None:
        """Return the processes on the device as the last scan saw them."""
        return tuple(
            ProcessUse(t.pid, _share(t, t.memory_bytes), t.owner.pod_uid, t.owner.workload)
            for t in self._on(device.uuid)
        )

    def events(self, timeout: float) -> tuple[DeviceEvent, ...]:
        """Wait for ordered faults."""
        try:
            found = [self._events.get(timeout=min(timeout, EVENT_WAIT_SECONDS))]
            while not self._events.empty():
                found.append(self._events.get_nowait())
        except queue.Empty:
            return ()
        return tuple(found)

    def _on(self, uuid: str) -> list[Tenant]:
        return [tenant for tenant in self._tenants if uuid in tenant.devices]


def _share(tenant: Tenant, memory: int) -> int:
    """Return a device's part: a process on several devices is split evenly between them."""
    return memory // len(tenant.devices)


def _load(state: _Device, tenants: Iterable[Tenant], now: float) -> float:
    """Return the load (0 to 1): one busy core is a busy device."""
    cpu = {tenant.pid: tenant.cpu_seconds / len(tenant.devices) for tenant in tenants}
    spent = sum(max(0.0, seconds - state.cpu.get(pid, seconds)) for pid, seconds in cpu.items())
    elapsed = now - state.at if state.at >= 0 else 0.0
    state.cpu = cpu
    return min(1.0, spent / elapsed) if elapsed > 0 else 0.0


def _warm(state: _Device, load: float, now: float) -> int:
    """Let the device warm, cool and draw power since the last sample; return milliwatts."""
    elapsed = now - state.at if state.at >= 0 else 0.0
    state.at = now
    target = AMBIENT_CELSIUS + LOAD_CELSIUS * load
    state.celsius += (target - state.celsius) * (1 - math.exp(-elapsed / THERMAL_SECONDS))
    share = IDLE_SHARE + (1 - IDLE_SHARE) * math.pow(load, 0.8)
    power = round(state.power_limit * min(1.0, share * state.random.uniform(0.98, 1.02)))
    state.millijoules += power * elapsed
    return power


def parse_devices(text: str) -> tuple[tuple[DeviceInfo, int], ...]:
    """Return the devices of an announcement with their power limits in milliwatts; none for "".

    Raises :class:`BadAnnouncement` naming the entry, the field and what is expected.
    """
    entries = _entries(text, "llmos.dev/simulated-gpus")
    if len(entries) > MAX_DEVICES:
        raise BadAnnouncement(
            f"llmos.dev/simulated-gpus names {len(entries)} devices; at most {MAX_DEVICES} are possible"
        )
    devices = tuple(_device(entry, f"llmos.dev/simulated-gpus[{at}]") for at, entry in enumerate(entries))
    uuids = [info.uuid for info, _ in devices]
    double = next((uuid for uuid in uuids if uuids.count(uuid) > 1), None)
    if double:
        raise BadAnnouncement(
            f"llmos.dev/simulated-gpus names uuid {double!r} twice; every device needs its own"
        )
    return devices


def _device(entry: dict[str, Any], where: str) -> tuple[DeviceInfo, int]:
    uuid, memory = entry.get("uuid"), entry.get("memoryBytes")
    index, watts = entry.get("index", 0), entry.get("powerLimitWatts", DEFAULT_POWER_MILLIWATTS // 1000)
    if not isinstance(uuid, str) or not uuid or "," in uuid:
        raise BadAnnouncement(
            f"{where}.uuid = {uuid!r}; write a unique text without commas, such as GPU-sim-n1-0"
        )
    if not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0:
        raise BadAnnouncement(f"{where}.memoryBytes = {memory!r}; write a whole number of bytes above 0")
    if not isinstance(index, int) or not 0 <= index <= 255:  # noqa: PLR2004 - the wire's bound
        raise BadAnnouncement(f"{where}.index = {index!r}; write a whole number from 0 to 255")
    if not isinstance(watts, int) or watts <= 0:
        raise BadAnnouncement(f"{where}.powerLimitWatts = {watts!r}; write a whole number of watts above 0")
    info = DeviceInfo(
        uuid=uuid,
        index=index,
        product=str(entry.get("product", "SIM")),
        memory_bytes=memory,
        compute_capability=str(entry.get("computeCapability", "8.0")),
    )
    return info, watts * 1000


def parse_faults(text: str) -> tuple[InjectedFault, ...]:
    """Return the ordered faults; none for "". Raises :class:`BadAnnouncement`."""
    return tuple(
        _fault(entry, f"llmos.dev/simulated-faults[{at}]")
        for at, entry in enumerate(_entries(text, "llmos.dev/simulated-faults"))
    )


def _fault(entry: dict[str, Any], where: str) -> InjectedFault:
    xid, word = entry.get("xid", 0), entry.get("fault", "")
    if not isinstance(xid, int) or xid < 0:
        raise BadAnnouncement(f"{where}.xid = {xid!r}; write an XID number")
    if word and word not in set(FaultKind):
        raise BadAnnouncement(f"{where}.fault = {word!r}; write one of {', '.join(FaultKind)}")
    clocks = entry.get("clocks", "")
    if clocks and clocks not in set(ClockReason):
        raise BadAnnouncement(f"{where}.clocks = {clocks!r}; write one of {', '.join(ClockReason)}")
    return InjectedFault(
        str(entry.get("uuid", "")),
        xid,
        FaultKind(word) if word else None,
        str(entry.get("id", "")),
        ClockReason(clocks) if clocks else None,
    )


def _entries(text: str, where: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(text) if text else []
    except ValueError as error:
        raise BadAnnouncement(f"annotation {where} is not JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadAnnouncement(f"annotation {where} must be a JSON list of objects")
    return entries

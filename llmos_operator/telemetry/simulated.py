"""Devices that do not exist, under processes that do: the agent's backend for demo, tests and CI.

The node's annotation `llmos.dev/simulated-gpus` says which devices there are (`announced`). Their memory is what the processes on
them really use, their utilisation is the CPU time of these processes, and temperature, power and energy follow from it
through a small thermal model; noise is seeded, so the same load reads the same. The annotation
`llmos.dev/simulated-faults` breaks them on purpose. MIG instances tell their memory; utilisation, heat and power are
their GPU's, as with the driver.
"""

from __future__ import annotations

import math
import queue
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llmos_operator import __version__
from llmos_operator.telemetry.announced import parse_devices, parse_faults
from llmos_operator.telemetry.attribution import PROC
from llmos_operator.telemetry.backend import EVENT_WAIT_SECONDS
from llmos_operator.telemetry.processes import ProcessScan, Tenant
from llmos_operator.telemetry.sample import (
    Capability,
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

    from llmos_operator.telemetry.announced import InjectedFault

AMBIENT_CELSIUS: Final = 30.0
LOAD_CELSIUS: Final = 42.0  # warmer than ambient at full load
THERMAL_SECONDS: Final = 20.0  # time constant of warming and cooling
IDLE_SHARE: Final = 0.12  # of the power limit
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
_OF_INSTANCES: Final = frozenset({Capability.MEMORY, Capability.PROCESSES, Capability.EVENTS})


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
        cluster: str = "",
    ) -> None:
        """``announcement`` and ``faults`` are the annotations' texts, ``cluster`` is as for `ProcessScan`.

        Raises :class:`BadAnnouncement`.
        """
        self._seed = seed
        self._monotonic = monotonic
        self._scan = ProcessScan(node, proc, cluster)
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
            sorted(
                (d.info for d in self._devices.values()),
                key=lambda info: (info.index, info.is_mig, info.gpu_instance or 0, info.uuid),
            )
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
        if state.info.is_mig:
            return self._instance(state.info, now, injected)
        tenants = self._on(*self._parts(state.info))
        load = _load(state, tenants, now)
        power = _warm(state, load, now)
        return Sample(
            uuid=device.uuid,
            at=now,
            memory_total_bytes=state.info.memory_bytes,
            memory_used_bytes=sum(_share(tenant, tenant.memory_bytes) for tenant in tenants),
            utilization_percent=None if state.info.mig_enabled else round(100 * load),
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

    def _instance(self, info: DeviceInfo, now: float, injected: tuple[Fault, ...]) -> Sample:
        used = sum(_share(tenant, tenant.memory_bytes) for tenant in self._on(info.uuid))
        return Sample(
            uuid=info.uuid,
            at=now,
            memory_total_bytes=info.memory_bytes,
            memory_used_bytes=used,
            counters=Counters(at=now),
            capabilities=_OF_INSTANCES,
            faults=injected,
        )

    def _parts(self, gpu: DeviceInfo) -> tuple[str, ...]:
        """Return under which UUIDs processes use a GPU: its own, or those of its instances."""
        return (gpu.uuid, *(one.info.uuid for one in self._devices.values() if one.info.parent == gpu.uuid))

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

    def _on(self, *uuids: str) -> list[Tenant]:
        return [tenant for tenant in self._tenants if not set(uuids).isdisjoint(tenant.devices)]


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

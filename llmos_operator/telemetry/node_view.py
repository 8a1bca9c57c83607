"""What the agent knows about its node now: folds rounds of measuring into views, and words them for each reader.

No I/O and no clock; `agent` feeds it and passes on what it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.telemetry import report
from llmos_operator.telemetry.metrics import DeviceView
from llmos_operator.telemetry.node_health import STALE_INTERVALS, NodeHealth
from llmos_operator.telemetry.strain import Strains

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.telemetry.collector import Round
    from llmos_operator.telemetry.kubelet.pod_resources import Allocations
    from llmos_operator.telemetry.report import Json
    from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo, DriverInfo, Hang, ProcessUse, Sample


class NodeView:
    """The node's devices over time. Times are seconds on the agent's own axis."""

    def __init__(self, node: str, *, interval: float, mode: str, driver: DriverInfo, epoch: int) -> None:
        """``epoch`` is the agent's start in epoch seconds: it orders batches of different agents."""
        self.devices: tuple[DeviceView, ...] = ()
        self._node = node
        self._mode = mode
        self._driver = driver
        self._epoch = epoch
        self._sequence = 0
        self._keep = STALE_INTERVALS * interval
        self._health = NodeHealth(interval)
        self._strains = Strains()
        self._transitions = report.Transitions()
        self._samples: dict[str, tuple[float, Sample]] = {}
        self._told: dict[str, tuple[ProcessUse, ...]] = {}
        self._hangs: tuple[Hang, ...] = ()
        self._allocations: Allocations | None = None
        self._kubelet_trouble = ""
        self._worded: tuple[object, report.Json] | None = None  # the last status and what it was made from

    def restore(self, memory: str, conditions: list[Json], now: float) -> int:
        """Take up what an earlier agent wrote; return the number of devices with a history."""
        self._transitions.restore(conditions)
        return self._health.restore(memory, now)

    def forget(self, uuid: str, now: float) -> None:
        """Drop a device's causes and history ("*": of all): a person says it is repaired."""
        self._health.forget(uuid, now)

    def fold(
        self, seen: Round, now: float, note: Callable[[DeviceEvent, DeviceInfo | None], None] | None = None
    ) -> None:
        """Take what was found since the last fold. ``note`` is called with each event and its device."""
        by_uuid = {device.uuid: device for device in seen.devices}
        for event in seen.events:
            if note is not None:
                note(event, by_uuid.get(event.uuid))
        # Who is on a device matters only to what happened on it.
        owners = {
            uuid: frozenset(use.workload or use.pod_uid for use in uses if use.pod_uid)
            for uuid, uses in (seen.processes.items() if seen.events else ())
        }
        self._hangs = seen.hangs
        self._health.observe(seen.devices, seen.samples, seen.events, seen.hangs, owners, now)
        self._strains.observe(seen.devices, seen.samples, now)
        self._samples.update((uuid, (now, sample)) for uuid, sample in seen.samples.items())
        self._samples = {
            uuid: (at, sample)
            for uuid, (at, sample) in self._samples.items()
            if uuid in by_uuid and now - at <= self._keep
        }
        self.devices = tuple(
            DeviceView(
                device,
                self._health.of(device.uuid),
                self._samples[device.uuid][1] if device.uuid in self._samples else None,
                seen.processes.get(device.uuid),
                *self._strains.of(device.uuid),
            )
            for device in seen.devices
        )

    def allocated(self, allocations: Allocations | None, trouble: str) -> None:
        """Take what the kubelet said last of who holds devices, None if it never did, and what is wrong with it now."""
        self._allocations, self._kubelet_trouble = allocations, trouble

    # -- what the readers are told

    def batch(self) -> Json:
        """Return the next batch for the operator; process lists only where they are new."""
        fresh = {
            view.info.uuid: view.processes
            for view in self.devices
            if view.processes is not None and self._told.get(view.info.uuid) is not view.processes
        }
        self._told.update(fresh)
        self._sequence += 1
        return report.batch(self._node, self._epoch, self._sequence, self.devices, frozenset(fresh))

    def status(self, now: float) -> Json:
        """Return the agent's part of the GPUNode's status: the same object again while nothing in it changed."""
        conditions = (
            report.ready_condition(self.problem()),
            report.health_condition(self.devices),
            *report.allocation_condition(self._allocations, self._kubelet_trouble),
        )
        stamped = [self._transitions.stamp(condition, now) for condition in conditions]
        facts = report.facts(self.devices)
        source = (facts, stamped, self._allocations)
        if self._worded is None or self._worded[0] != source:
            status = report.status(self._mode, self._driver, facts, stamped, self._allocations)
            self._worded = (source, status)
        return self._worded[1]

    def memory(self) -> str:
        """Return what of the health history must outlive this process."""
        return self._health.dump()

    def problem(self) -> str:
        """Return "" or why the node is not measured as it should be."""
        if not self._hangs:
            return ""
        worst = self._hangs[0]
        where = f"device {worst.device}" if worst.device else "the driver"
        return f"{worst.call} does not return: {where} hangs ({len(self._hangs)} calls)"

"""The agents of a fleet that fails: each sick device with the real verdict, folded from XIDs and clean samples.

A device that fails reports its XIDs again at every look until it is mended. Mending begins when somebody can: at once where
nothing has to be emptied, else when its treatment has emptied it. A card that has to be exchanged takes its swap time, after which
a person says that it is repaired.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.state.care import NODE, Phase
from llmos_operator.telemetry.health import DeviceHealth, Observation, fold, forget
from llmos_operator.telemetry.policy import Action
from llmos_operator.telemetry.sample import DeviceEvent, EventKind, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.sim.failures import Fault
    from llmos_operator.state.care import Care


@dataclass(slots=True)
class Patient:
    """A device with a history. `mended` is when its fault will be over; None: nobody has begun."""

    health: DeviceHealth
    fault: Fault | None = None
    mended: float | None = None


class Ward:
    """All devices that are or were sick, by UUID."""

    def __init__(self) -> None:
        self.patients: dict[str, Patient] = {}
        self.swaps = 0

    def struck(self, uuid: str, fault: Fault, now: float) -> None:
        """Let a device fail; a failing one fails no second time."""
        patient = self._patient(uuid, now)
        if patient.fault is None:
            patient.fault, patient.mended = fault, None
        self.look(uuid, now)

    def noise(self, uuid: str, xid: int, owner: str, now: float) -> None:
        """Let an application on a device fail."""
        patient = self._patient(uuid, now)
        events = (DeviceEvent(uuid, EventKind.XID, xid),)
        owners = frozenset({owner}) if owner else frozenset[str]()
        patient.health = fold(patient.health, Observation(_clean(uuid, now), events, owners=owners), now)

    def look(self, uuid: str, now: float) -> DeviceHealth:
        """Fold what the agent sees of a device now; return its health."""
        patient = self.patients[uuid]
        if patient.mended is not None and now >= patient.mended:
            patient.fault = patient.mended = None
            if patient.health.action is Action.REPLACE:
                patient.health = forget(patient.health, now)
        events: Iterable[DeviceEvent] = ()
        if patient.fault is not None:
            events = (DeviceEvent(uuid, EventKind.XID, xid) for xid in patient.fault.kind.xids)
        sample = _clean(uuid, now) if patient.fault is None else None
        patient.health = fold(patient.health, Observation(sample, tuple(events)), now)
        return patient.health

    def mend(self, uuid: str, care: Care, now: float) -> None:
        """Begin to mend a device whose treatment has emptied it, or one that is mended in passing."""
        patient = self.patients[uuid]
        if patient.fault is None or patient.mended is not None:
            return
        treated = care.of(uuid) or care.of(NODE)
        open_to_work = treated is None or treated.phase in {Phase.RELEASED, Phase.PROBATION}
        if treated is not None and treated.phase is Phase.DRAINING:
            return
        if open_to_work and patient.health.action in {
            Action.EVICT_AND_RESET,
            Action.DRAIN_AND_RESET,
            Action.REBOOT_NODE,
        }:
            return  # not begun yet
        swap = patient.health.action is Action.REPLACE
        self.swaps += swap
        patient.mended = now + (patient.fault.swap if swap else patient.fault.seconds)

    def active(self) -> list[str]:
        """Return the devices to look at: failing, or with a finding that is not over."""
        return [
            uuid
            for uuid, one in self.patients.items()
            if one.fault is not None or any(cause.active for cause in one.health.causes)
        ]

    def _patient(self, uuid: str, now: float) -> Patient:
        if uuid not in self.patients:
            healthy = fold(DeviceHealth(since=now), Observation(_clean(uuid, now)), now)
            self.patients[uuid] = Patient(healthy)
        return self.patients[uuid]


def _clean(uuid: str, now: float) -> Sample:
    return Sample(uuid, now, memory_total_bytes=1 << 36, memory_used_bytes=0)

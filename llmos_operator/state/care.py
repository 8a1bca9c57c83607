"""What the operator does about sick devices of a node: kept in `GPUNode.status.care`, so that a restart changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NODE: Final = "node"  # the target of a treatment that concerns the whole node


class Phase(StrEnum):
    """Where a treatment stands. In all but RELEASED its target takes no new work."""

    DRAINING = "Draining"  # work is taken away through the Eviction API
    RESETTING = "Resetting"  # empty; the Job that resets it has been made
    WAITING = "Waiting"  # empty; not healthy yet
    PROBATION = "Probation"  # healthy, not for long enough
    RELEASED = "Released"  # takes work; kept for a day, because falling ill again means a longer quarantine


@dataclass(frozen=True, slots=True)
class Treatment:
    """One target: a device's UUID, for MIG instances that of their GPU, or `NODE`. `times` is how often it fell ill again within a day of its release."""

    target: str
    action: str
    reason: str  # the finding it began with
    phase: Phase
    since: float  # epoch seconds, of the phase
    times: int = 0

    @property
    def quarantined(self) -> bool:
        """Whether the target takes no new work."""
        return self.phase is not Phase.RELEASED


@dataclass(frozen=True, slots=True)
class Care:
    """All that is done on one node."""

    disturbed_at: float = 0.0  # epoch seconds when it was acted on last, for the circuit breaker; 0: never
    cordoned: bool = False  # by us, so that we may lift it
    treatments: tuple[Treatment, ...] = ()  # by target

    def of(self, target: str) -> Treatment | None:
        """Return the treatment of a device, or of the node."""
        return next((one for one in self.treatments if one.target == target), None)

    def holding(self, uuid: str, gpu: str = "") -> Treatment | None:
        """Return the treatment that keeps new work off a device: its own, that of the ``gpu`` it is cut from, or its node's."""
        targets = {uuid, gpu, NODE}
        return next((one for one in self.treatments if one.quarantined and one.target in targets), None)

    def draining(self, uuid: str, gpu: str = "") -> Treatment | None:
        """Return the treatment that asks what is on a device to leave; ``gpu`` as above."""
        found = (one for one in self.treatments if one.phase is Phase.DRAINING)
        return next((one for one in found if one.target in {uuid, gpu, NODE}), None)


NO_CARE: Final = Care()

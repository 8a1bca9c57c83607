"""Claims that one node mounts at a time, and none has yet: in one plan one replica chooses the node, others follow later.

Where pods are is known to a snapshot, not to the plan made on it; what follows a bind is planned on the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.failure import Failure

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload

_PLACE_HELD: Final = frozenset({Reason.WAITING_FOR_PREEMPTION, Reason.WAITING_FOR_STARTUP})


class Mounting:
    """What the replicas placed in this plan have chosen."""

    def __init__(self) -> None:
        self._chosen: set[str] = set()  # claims, as namespace/name

    def wait(self, workload: Workload) -> Failure | None:
        """Return why a replica is not placed in this plan, None if it may be."""
        taken = next((key for key in _open(workload) if key in self._chosen), None)
        if taken is None:
            return None
        name = taken.partition("/")[2]
        return Failure(
            Reason.CLAIM_IN_USE,
            f"PersistentVolumeClaim {name} is ReadWriteOnce: it is placed next, on the node that mounts the claim first",
        )

    def note(self, workload: Workload, waits: Failure | None) -> None:
        """Take what became of a replica. One that was placed, or waits for a place that is held for it, has chosen the node."""
        if waits is None or waits.reason in _PLACE_HELD:
            self._chosen.update(_open(workload))


def _open(workload: Workload) -> list[str]:
    return [f"{workload.namespace}/{one.claim}" for one in workload.mounts if one.one_node and not one.places]

"""What finished FineTune and Batch work received: all that is known of how long such work takes.

One entry per workload UID, the newest `KEPT` of a queue. The record is made of what the API shows (condition Finished,
`status.run.deviceSeconds`), so after a restart it is made again from the finished workloads that still exist; those
deleted before are forgotten then. Work whose use was never measured teaches nothing: its time since creation would
count waiting as service.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.state.types import Workload

KEPT: Final = 512  # of a queue


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished workload: its devices in use together, and for how long, in seconds of service."""

    uid: str
    queue: str  # as the workload names it, "" for the default queue
    devices: int
    seconds: float


class FinishedLog:
    """The newest finished workloads by queue, oldest first."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._queues: dict[str, OrderedDict[str, Finished]] = {}

    def note(self, workload: Workload) -> bool:
        """Take a workload as applied; say whether anything was learned from it."""
        found = finished(workload)
        if found is None:
            return False
        queue = self._queues.setdefault(found.queue, OrderedDict())
        if queue.get(found.uid) == found:
            return False
        queue[found.uid] = found
        if len(queue) > self._kept:
            queue.popitem(last=False)
        return True

    def restore(self, entries: Iterable[Finished]) -> None:
        """Take entries as `all` returned them."""
        for one in entries:
            self._queues.setdefault(one.queue, OrderedDict())[one.uid] = one

    def all(self) -> tuple[Finished, ...]:
        """Return every entry, by queue name and then oldest first."""
        return tuple(one for name in sorted(self._queues) for one in self._queues[name].values())


def finished(workload: Workload) -> Finished | None:
    """Return what a workload teaches, None while it runs, for serving, and where its use is not known."""
    if not workload.finished or workload.kind is WorkloadKind.INFERENCE or not workload.gpu_seconds:
        return None
    devices = devices_of(workload)
    return Finished(workload.uid, workload.queue, devices, workload.gpu_seconds / devices)


def devices_of(workload: Workload) -> int:
    """Return how many devices a workload uses together, at least 1."""
    return max(1, workload.accelerators * workload.members * max(1, workload.replicas))

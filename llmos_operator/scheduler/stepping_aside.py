"""Which replica of an older spec has to go before one of the present spec can start, where an update finds no room beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.state.snapshot import ordinals_of, outdated

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Pod, PodKey, Workload

# Waiting for victims or for a start nearby ends by itself.
_NO_ROOM: Final = frozenset({Reason.NO_CAPACITY, Reason.EXCEEDS_QUOTA})


def candidates(snapshot: Snapshot, workload: Workload) -> list[Pod]:
    """Return the replicas of an older spec of which one may go for one of the present spec; none while one starts beside them."""
    pods = snapshot.pods_of.get(workload.uid, ()) if workload.surge and not workload.canary else ()
    if not pods or len(ordinals_of(pods)) > workload.replicas:
        return []
    return sorted(outdated(workload, pods), key=lambda pod: (pod.claim.ordinal if pod.claim else 0, pod.key))


def makes_room(attempts: Attempts, pending: Pending, shape: Shape, reason: Reason) -> PodKey:
    """Return the replica without which one of the present spec could start now, "" if there is none; nothing has changed then."""
    if reason not in _NO_ROOM or not pending.ordinals:
        return ""
    old = candidates(attempts.snapshot, pending.workload)
    return next((pod.key for pod in old if attempts.starts_without(pod, pending, shape)), "")


def gives_back(snapshot: Snapshot, workload: Workload, reason: Reason) -> PodKey:
    """Return the replica that has a claim the workload waits for, "" if there is none."""
    if reason is not Reason.CLAIM_IN_USE:
        return ""
    asked = {one.claim for one in workload.claims}
    return next((pod.key for pod in candidates(snapshot, workload) if asked & set(pod.mounts)), "")

"""What runs together ends together: gangs with a part missing, or that do not come up in time. Pure.

A replica of several pods is of no use without one of them, so when one is lost the others are given back, after a
grace, and the replica is placed anew as a whole. So are all replicas of a workload that has been left with fewer than
start together; until the grace is over the scheduler tries to place those that are missing. A gang of which not every
container runs within the time limit is given back, too, and tried again after a back-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.actuators.outcomes import Retire
from llmos_operator.api.conditions import Reason
from llmos_operator.manifests.observed import Failure
from llmos_operator.state.snapshot import complete, ordinals_of
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from llmos_operator.state.replicas import Replica
    from llmos_operator.state.types import Pod, Workload

TOO_FEW = -1  # the key in `gaps` that stands for the workload as a whole, beside ordinals
_THERE = frozenset({PodPhase.ASSUMED, PodPhase.BOUND})


@dataclass(frozen=True, slots=True)
class GangLimits:
    """Seconds a gang may have a part missing, and may take until every container of it runs."""

    grace: float = 15.0
    start: float = 300.0


def gaps(workload: Workload, pods: Iterable[Pod]) -> frozenset[int]:
    """Return the ordinals of which a member is missing, and TOO_FEW if fewer replicas are left than start together."""
    if workload.members == 1 and workload.together == 1:
        return frozenset()
    found: set[int] = set()
    whole = leaving = 0
    for ordinal, mates in _by_ordinal(pods).items():
        staying = [pod for pod in mates if pod.phase in _THERE]
        if staying and complete(workload, staying):
            whole += 1
        elif staying and workload.members > 1:
            found.add(ordinal)
        else:
            leaving += any(pod.phase is PodPhase.TERMINATING for pod in mates)
    least = min(workload.together, workload.replicas)
    # A replica that is on its way out keeps its place in the count: what replaces it can only start when it is gone.
    if workload.together > 1 and whole and whole + leaving + len(found) < least:
        found.add(TOO_FEW)
    return frozenset(found)


def given_back(
    workload: Workload, live: Sequence[Pod], gone: Sequence[Pod], overdue: Collection[int]
) -> list[Retire]:
    """Return the pods that have to go because others of their gang do or are missing.

    `live` are the pods that run, `gone` those that are taken away for another reason, `overdue` the :func:`gaps` whose
    grace is over.
    """
    if workload.members == 1 and workload.together == 1:
        return []
    keys = {pod.key for pod in gone}
    if TOO_FEW in overdue:
        text = f"Fewer than the {workload.together} replicas are left that run together; all are placed anew."
        return [_retire(workload, pod, text) for pod in live if pod.key not in keys]
    text = "A pod of its replica is gone; the replica is placed anew as a whole."
    broken = {*overdue, *ordinals_of(gone)} if workload.members > 1 else set()
    return [
        _retire(workload, pod, text)
        for pod in live
        if pod.claim is not None and pod.claim.ordinal in broken and pod.key not in keys
    ]


def late(
    workload: Workload,
    pods: Sequence[Pod],
    replicas: Mapping[str, Replica],
    now: float,
    start: float,
) -> dict[str, tuple[Failure, tuple[Pod, ...]]]:
    """Return the attempts that did not come up in time, by name: (failure, their pods).

    `pods` are those that exist or whose creation is under way. Only the containers have to run: how long a model takes to
    load is bounded by the startup probe.
    """
    found = {}
    for ordinal, mates in _by_ordinal(pods).items() if workload.members > 1 else ():
        began = max(pod.claim.bound_at for pod in mates if pod.claim is not None)
        up = [pod for pod in mates if pod.ready or _runs(replicas.get(pod.key))]
        if now - began < start or len(up) == len(mates) or len(mates) < workload.members:
            continue
        waiting = next(pod for pod in mates if pod not in up)
        text = (
            f"{len(up)} of {workload.members} pods of replica {ordinal} came up within {start:.0f} s, {waiting.name} did "
            f"not{_why(replicas.get(waiting.key))}; all of them are given back and tried again."
        )
        failure = Failure(str(Reason.GANG_INCOMPLETE), text, now, None, workload.generation)
        found[f"{workload.uid}/{ordinal}/{began:.3f}"] = (failure, tuple(pod for pod in mates if pod.uid))
    return found


def next_look(
    workload: Workload, pods: Iterable[Pod], replicas: Mapping[str, Replica], start: float
) -> float | None:
    """Return when (epoch seconds) an attempt under way would be late, None if none is under way."""
    if workload.members == 1:
        return None
    waits = [
        pod for pod in pods if pod.phase in _THERE and not pod.ready and not _runs(replicas.get(pod.key))
    ]
    return min((pod.claim.bound_at + start for pod in waits if pod.claim is not None), default=None)


def _runs(replica: Replica | None) -> bool:
    return replica is not None and replica.running


def _why(replica: Replica | None) -> str:
    if replica is None or not replica.waiting:
        return ""
    return f" ({': '.join(part for part in (replica.waiting, replica.waiting_message) if part)})"


def _by_ordinal(pods: Iterable[Pod]) -> dict[int, list[Pod]]:
    found: dict[int, list[Pod]] = {}
    for pod in pods:
        if pod.claim is not None:
            found.setdefault(pod.claim.ordinal, []).append(pod)
    return found


def _retire(workload: Workload, pod: Pod, message: str) -> Retire:
    return Retire(pod.key, pod.uid, workload.key, workload.uid, str(Reason.GANG_INCOMPLETE), message)

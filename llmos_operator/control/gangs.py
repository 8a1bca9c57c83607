"""What runs together ends together: gangs with a part missing, or that do not come up in time. Pure.

A replica of several pods is of no use without one of them, so when one is lost the others are given back, after a
grace, and the replica is placed anew as a whole. So are all replicas of a workload that has been left with fewer than
start together; until the grace is over the scheduler tries to place those that are missing. A gang of which not every
container runs within the time limit is given back, too, and tried again after a back-off; a container that has run and
ended, which the kubelet starts again in place, has that time from its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
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


class GangState(StrEnum):
    """How far a replica of several pods is."""

    READY = "ready"  # every pod of it is
    STARTING = "starting"  # every pod of it has a place
    INCOMPLETE = "incomplete"  # a pod of it is missing or on its way out
    WAITING = "waiting"  # wanted, and none of its pods has a place


def states(workload: Workload, pods: Iterable[Pod]) -> Counter[GangState]:
    """Return how many replicas of a workload are in which state; empty where a replica is one pod."""
    found: Counter[GangState] = Counter()
    if workload.members == 1:
        return found
    for mates in _by_ordinal(pods).values():
        if not any(pod.phase in _THERE for pod in mates):
            continue  # gone or going as a whole
        if not complete(workload, mates):
            found[GangState.INCOMPLETE] += 1
        else:
            found[GangState.READY if all(pod.ready for pod in mates) else GangState.STARTING] += 1
    idle = workload.suspended or workload.finished or workload.deleting
    found[GangState.WAITING] = 0 if idle else max(0, workload.replicas - found.total())
    return found


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


def serving(workload: Workload, pods: Sequence[Pod]) -> int:
    """Return how many replicas have all of their members among `pods`."""
    if workload.members == 1:
        return len(pods)
    members = Counter(pod.claim.ordinal for pod in pods if pod.claim is not None)
    return sum(count == workload.members for count in members.values())


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
    """Return the attempts that did not come up, or not again, in time, by name: (failure, their pods).

    `pods` are those that exist or whose creation is under way. Only the containers have to run: how long a model takes to
    load is bounded by the startup probe.
    """
    found = {}
    for ordinal, mates in _by_ordinal(pods).items() if workload.members > 1 else ():
        if len(mates) < workload.members:
            continue
        began = max(pod.claim.bound_at for pod in mates if pod.claim is not None)
        down = [(_down_since(replicas.get(pod.key), began), pod) for pod in mates if not _up(pod, replicas)]
        since, pod = min(down, key=lambda one: one[0], default=(now, None))
        if pod is None or now - since < start:
            continue
        text = _text(workload, ordinal, len(mates) - len(down), pod, replicas.get(pod.key), start)
        failure = Failure(str(Reason.GANG_INCOMPLETE), text, now, None, workload.generation)
        found[f"{workload.uid}/{ordinal}/{since:.3f}"] = (failure, tuple(pod for pod in mates if pod.uid))
    return found


def next_look(
    workload: Workload, pods: Iterable[Pod], replicas: Mapping[str, Replica], start: float
) -> float | None:
    """Return when (epoch seconds) an attempt under way would be late, None if none is under way."""
    if workload.members == 1:
        return None
    waits = (
        _down_since(replicas.get(pod.key), pod.claim.bound_at)
        for pod in pods
        if pod.phase in _THERE and pod.claim is not None and not _up(pod, replicas)
    )
    return min((since + start for since in waits), default=None)


def _up(pod: Pod, replicas: Mapping[str, Replica]) -> bool:
    replica = replicas.get(pod.key)
    return pod.ready or (replica is not None and replica.running)


def _down_since(replica: Replica | None, began: float) -> float:
    """Return since when a container that does not run has had time to: the start of its gang, or its own last end."""
    end = replica.latest_exit if replica is not None else None
    return max(began, end.finished_at) if end is not None else began


def _text(workload: Workload, ordinal: int, up: int, down: Pod, replica: Replica | None, start: float) -> str:
    end = replica.latest_exit if replica is not None else None
    if end is None:
        what = f"{up} of {workload.members} pods of replica {ordinal} came up within {start:.0f} s, {down.name} did not"
    else:
        what = (
            f"{up} of {workload.members} pods of replica {ordinal} run; {down.name} ended with exit code {end.exit_code} "
            f"and did not run again within {start:.0f} s"
        )
    return f"{what}{_why(replica)}; all of them are given back and tried again."


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

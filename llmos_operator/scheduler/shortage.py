"""Why the pods of a unit have to wait, in one reason and one sentence with counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import wording
from llmos_operator.scheduler.failure import Failure, impossible, quota
from llmos_operator.scheduler.plan import Rejection
from llmos_operator.scheduler.room import room_if_empty, room_now
from llmos_operator.scheduler.topology import INSIDE, NODE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmos_operator.scheduler.gang import Gangs
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.room import Room
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.topology import Domain
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.types import Pod

_SHOWN: Final = 3


def leaving(pods: Mapping[str, Pod], nodes: Sequence[str], size: Size) -> Failure:
    """Return the wait for pods that are on their way out."""
    here = [key for key, pod in pods.items() if pod.node in nodes] or list(pods)
    names = ", ".join(sorted(here)[:_SHOWN])
    return Failure(
        Reason.WAITING_FOR_PREEMPTION, f"waits for {names} to leave, then starts on {_on(nodes)}", size=size
    )


def unmeasured(nodes: Sequence[str], size: Size) -> Failure:
    """Return the wait for memory that nobody holds any more but that is still seen in use."""
    text = f"starts on {_on(nodes)} as soon as the memory freed there is measured to be free"
    return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=size)


def displacing(victims: Sequence[Victim], nodes: Sequence[str], size: Size) -> Failure:
    """Return the wait for pods that are displaced by this plan."""
    names = ", ".join(v.pod.key for v in victims[:_SHOWN])
    text = f"displaces {len(victims)} of lower standing ({names}), then starts on {_on(nodes)}"
    return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=size)


def diagnose(
    gangs: Gangs, pending: Pending, options: Sequence[tuple[Size, Request]], replicas: int
) -> Failure:
    """Return why nothing could be done for `replicas` that start together, at the smallest size allowed."""
    attempts, members = gangs.attempts, pending.workload.members
    size, request = min(options, key=lambda option: option[0].bytes_per_device)
    never = impossible(attempts, pending, size, request) or _too_large(gangs, pending, request, replicas)
    found = quota(attempts, pending, size, request, replicas * members) if never is None else None
    if found is not None:
        return found
    rejected, candidates = attempts.feasibility.rejections(request)
    room = room_now(attempts.scene, attempts.feasibility, attempts.worlds, request)
    domains = gangs.map.domains(pending.workload.topology.required)
    text = _fit(room, domains, pending, replicas)
    if candidates:
        rejected = (*rejected, Rejection("NotAllPodsFit", candidates, text))
    kept = tuple(sorted(rejected, key=lambda r: (-r.nodes, r.reason)))[: attempts.policy.keep_rejections]
    if never is not None:
        return Failure(*never, kept, 0, size)
    others = wording.rejections(r for r in kept if r.reason != "NotAllPodsFit")
    message = f"{text}, each with {wording.size_text(size)}" + (f": {others}" if others else "")
    if _replicas(room, domains, members) >= replicas:
        waiting = attempts.reservations.names()
        why = f"kept for {', '.join(waiting)}" if waiting else "being made for work of higher standing"
        message = f"there is room for all {replicas * members} pods, but it is {why}"
    return Failure(Reason.NO_CAPACITY, message, kept, 0, size)


def _too_large(gangs: Gangs, pending: Pending, request: Request, replicas: int) -> tuple[Reason, str] | None:
    """Return why a unit could never be placed, even if nothing else ran; None if it could."""
    level, members = pending.workload.topology.required, pending.workload.members
    domains = gangs.map.domains(level)
    pods = f"{members} pods" if members > 1 else "a pod"
    of = f" of {request.devices} devices" if request.devices else ""
    if not domains:
        key = gangs.attempts.policy.topology_labels.get(level, "")
        why = f"no node has the label {key}" if key else f"no label of nodes is set for level {level}"
        return Reason.LARGER_THAN_CLUSTER, f"needs {pods}{of} in one {level}, but {why}"
    room = room_if_empty(gangs.attempts.scene, request)
    if _replicas(room, domains, members) >= replicas:
        return None
    best = max(room.total(domain) for domain in domains)
    if replicas > 1:
        count = _replicas(room, domains, members)
        text = (
            f"{replicas} replicas start together; the cluster could hold {count} of them if nothing else ran"
        )
    elif level:
        text = (
            f"needs {pods}{of} in one {_name(level)}; the largest of {len(domains)} could hold {best} of them if "
            "nothing else ran"
        )
    else:
        text = f"needs {pods}{of}; the cluster could hold {best} of them if nothing else ran"
    return Reason.LARGER_THAN_CLUSTER, text


def _fit(room: Room, domains: Sequence[Domain], pending: Pending, replicas: int) -> str:
    """Return how many pods (or replicas) fit now, in words."""
    level, members = pending.workload.topology.required, pending.workload.members
    if replicas > 1:
        count = _replicas(room, domains, members)
        return f"{count} of {replicas} replicas that start together fit now"
    best = min(members, max((room.total(domain) for domain in domains), default=0))
    if level and len(domains) > 1:
        return f"in {len(domains)} {_name(level)}s at most {best} of {members} pods fit"
    return f"{best} of {members} pods fit at once"


def _replicas(room: Room, domains: Sequence[Domain], members: int) -> int:
    return sum(room.total(domain) // members for domain in domains)


def _name(level: str) -> str:
    return f"{level} domain" if level in INSIDE else "node" if level == NODE else level


def _on(nodes: Sequence[str]) -> str:
    names = list(dict.fromkeys(nodes))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ("node " if len(names) == 1 else "nodes ") + ", ".join(names[:_SHOWN]) + more

"""Why a replica has to wait, in one reason and one sentence with numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import format_milli, human_bytes
from llmos_operator.scheduler import wording
from llmos_operator.scheduler.advice import would_fit
from llmos_operator.scheduler.feasibility import matching_devices
from llmos_operator.scheduler.instances import being_cut_for, no_instance, profiles
from llmos_operator.scheduler.table import CAPACITY, PART
from llmos_operator.state.types import FULL_MILLI, Sharing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.plan import Rejection
    from llmos_operator.scheduler.preemption import Proposal
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.relocation import Mover
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.startups import Awaited
    from llmos_operator.scheduler.world import Worlds
    from llmos_operator.state.types import Claim, Pod

_SHOWN_PODS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason, the sentence, and what filters and sizing said."""

    reason: Reason
    message: str
    rejected: tuple[Rejection, ...] = ()
    candidates: int = 0
    size: Size | None = None


def former_pods(pending: Pending) -> Failure:
    """Return the wait for pods that still hold the names of the replicas."""
    names = ", ".join(pod.key for pod in pending.blocked[:_SHOWN_PODS])
    return Failure(Reason.PENDING, f"waits until {names} is gone, which holds the replica's name")


def leaving(worlds: Worlds, node: str, size: Size) -> Failure:
    """Return the wait for pods that are on their way out, or come down."""
    gone, lower, doze = (_on(pods, node) for pods in (worlds.leaving, worlds.lowering, worlds.dozing))
    if not gone and not lower and not doze:  # what is missing is quota, which others leave elsewhere
        gone = sorted(worlds.leaving)
    parts = []
    if gone:
        parts.append(f"{', '.join(gone[:_SHOWN_PODS])} to leave")
    if lower:
        parts.append(f"{', '.join(lower[:_SHOWN_PODS])} to give up memory")
    if doze:
        parts.append(f"{', '.join(doze[:_SHOWN_PODS])} to sleep")
    text = f"waits for {' and '.join(parts) or 'room'}, then starts on node {node}"
    return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=size)


def _on(pods: Mapping[str, Pod], node: str) -> list[str]:
    return sorted(key for key, pod in pods.items() if pod.node == node)


def lent(lender: str, node: str, size: Size) -> Failure:
    """Return the wait for memory that a replica which idles lends."""
    text = f"waits for {lender}, which idles, to lend it memory, then starts on node {node} until that works again"
    return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=size)


def unmeasured(node: str, size: Size) -> Failure:
    """Return the wait for memory that nobody holds any more but that is still seen in use."""
    return Failure(
        Reason.WAITING_FOR_PREEMPTION,
        f"starts on node {node} as soon as the memory freed there is measured to be free",
        size=size,
    )


def loading(awaited: Awaited, seconds: float, size: Size) -> Failure:
    """Return the wait for another replica that loads on the device."""
    return Failure(
        Reason.WAITING_FOR_STARTUP,
        f"waits for {awaited.pod} to load on device {awaited.index} of node {awaited.node}, because what it needs is not "
        f"known before, for at most {seconds:.0f} s from its bind; then starts there",
        size=size,
    )


def displacing(proposal: Proposal) -> Failure:
    """Return the wait for pods that are displaced by this plan."""
    ends = [v.pod.key for v in proposal.victims if v.ends and not v.fewer]
    fewer = [v.pod.key for v in proposal.victims if v.fewer]
    asleep = [v.pod.key for v in proposal.victims if v.sleeping is not None]
    lower = [v.pod.key for v in proposal.victims if v.asked_bytes and not v.asked_format]
    narrower = [v.pod.key for v in proposal.victims if v.asked_format]
    parts = []
    if ends:
        parts.append(f"displaces {len(ends)} of lower standing ({', '.join(ends[:_SHOWN_PODS])})")
    if fewer:
        parts.append(
            f"takes {len(fewer)} of the replicas others can do without ({', '.join(fewer[:_SHOWN_PODS])})"
        )
    if lower:
        parts.append(f"takes memory of {len(lower)} of lower standing ({', '.join(lower[:_SHOWN_PODS])})")
    if narrower:
        parts.append(
            f"takes precision of {len(narrower)} of lower standing ({', '.join(narrower[:_SHOWN_PODS])})"
        )
    if asleep:
        parts.append(f"puts {len(asleep)} of lower standing to sleep ({', '.join(asleep[:_SHOWN_PODS])})")
    text = f"{' and '.join(parts)}, then starts on node {proposal.node}"
    return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=proposal.size)


def moving(moves: Sequence[tuple[Mover, Claim]], nodes: Sequence[str], size: Size) -> Failure:
    """Return the wait for replicas that are moved by this plan."""
    shown = ", ".join(f"{mover.pod.key} to node {claim.node}" for mover, claim in moves[:_SHOWN_PODS])
    more = f" and {len(moves) - _SHOWN_PODS} more" if len(moves) > _SHOWN_PODS else ""
    text = f"moves {shown}{more}, then starts on node {', '.join(nodes)}"
    return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=size)


def diagnose(attempts: Attempts, pending: Pending, options: Sequence[tuple[Size, Request]]) -> Failure:
    """Return why nothing could be done for a replica; amounts are those of the smallest size allowed."""
    size, request = min(options, key=lambda option: option[0].bytes_per_device)
    cut = being_cut_for(attempts.scene.table.states, request)
    if cut:
        return Failure(Reason.WAITING_FOR_PARTITION, cut, size=size)
    never = impossible(attempts, pending, size, request)
    beyond = quota(attempts, pending, size, request) if never is None else None
    if beyond is not None:
        return beyond
    rejected, candidates = attempts.feasibility.rejections(request)
    kept = rejected[: attempts.policy.keep_rejections]
    if never is not None:
        return Failure(never[0], never[1], kept, candidates, size)
    nodes = len(attempts.scene.table)
    if candidates:
        others = attempts.reservations.names()
        why = f"kept for {', '.join(others)}" if others else "being made for work of higher standing"
        message = f"{candidates} of {nodes} nodes have room, but it is {why}"
    else:
        message = (
            f"0 of {nodes} nodes fit {wording.size_text(size)}: {wording.rejections(kept) or 'no nodes'}"
        )
    return Failure(Reason.NO_CAPACITY, message, kept, candidates, size)


def quota(
    attempts: Attempts, pending: Pending, size: Size, request: Request, pods: int = 1
) -> Failure | None:
    """Return why the queue does not let so many pods start together, None if it does."""
    worlds, needed = attempts.worlds, least_milli(attempts, request) * pods
    tree = worlds.now.tree
    room, use = tree.room(pending.queue).gpu_milli, tree.use(pending.queue).gpu_milli
    kept = worlds.later.tree.room(pending.queue).gpu_milli
    if not needed or needed <= min(room, kept):
        return None
    message = f"what is left of queue {pending.queue} is kept for work of higher standing"
    if room < needed:
        message = (
            f"queue {pending.queue} has {format_milli(max(0, room))} of the {format_milli(needed)} GPUs needed left "
            f"(in use: {format_milli(use)})"
        )
    return Failure(Reason.EXCEEDS_QUOTA, message, size=size)


def least_milli(attempts: Attempts, request: Request) -> int:
    """Return the least thousandths of a device the request can be charged."""
    table = attempts.scene.table
    if request.constraints.sharing is Sharing.MIG and request.devices:
        large = matching_devices(attempts.scene, request) & (
            table.fixed[CAPACITY] >= request.bytes_per_device
        )
        return int(table.fixed[PART][large].min(initial=FULL_MILLI))
    if request.whole or not request.devices:
        return request.devices * FULL_MILLI
    largest = int(table.fixed[CAPACITY][matching_devices(attempts.scene, request)].max(initial=1))
    return max(request.compute_milli, -(-request.bytes_per_device * FULL_MILLI // largest)) * request.devices


def impossible(
    attempts: Attempts, pending: Pending, size: Size, request: Request
) -> tuple[Reason, str] | None:
    """Return why no node could ever take the request, even empty; None if one could."""
    table = attempts.scene.table
    if not request.devices:
        largest = max((s.node.memory_bytes for s in table.states if s.node is not None), default=0)
        if request.memory_bytes <= largest or not largest:
            return None
        short = human_bytes(request.memory_bytes - largest)
        text = f"needs {human_bytes(request.memory_bytes)} of host memory, the largest node has {human_bytes(largest)}: short by {short}"
        return Reason.LARGER_THAN_ANY_DEVICE, text
    devices = matching_devices(attempts.scene, request)
    most = int(devices.sum(axis=1).max(initial=0))
    if most == 0:
        return Reason.NO_MATCHING_DEVICE, _no_match(attempts, request)
    if most < request.devices:
        return (
            Reason.NO_MATCHING_DEVICE,
            f"needs {request.devices} matching devices on one node; no node has more than {most}",
        )
    largest = int(table.fixed[CAPACITY][devices].max())
    if request.bytes_per_device <= largest:
        return None
    text = (
        f"needs {wording.size_text(size)} per device, the smallest size allowed; the largest matching device has "
        f"{human_bytes(largest)}: short by {human_bytes(request.bytes_per_device - largest)}"
    )
    if request.constraints.sharing is Sharing.MIG:
        text += f" ({profiles(attempts.scene.table.states)})"
    fixes = would_fit(pending.workload, attempts.profile(pending.workload), attempts.policy, largest, most)
    return Reason.LARGER_THAN_ANY_DEVICE, f"{text}. {fixes}"


def _no_match(attempts: Attempts, request: Request) -> str:
    products = ", ".join(sorted(attempts.scene.table.products)[:5])
    wanted = ", ".join(request.constraints.selector.products) or request.constraints.sharing
    if not attempts.scene.table.exists.any():
        return "no node has devices: does the agent run, and has it written GPUNode objects?"
    if request.constraints.sharing is Sharing.MIG:
        return no_instance(attempts.scene.table.states, request)
    return f"no device matches {wanted} with spec.resources.selector; products in the cluster: {products}"

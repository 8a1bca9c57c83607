"""Answers to "why does it wait, what would make it start": `explain(snapshot, policy, now, key) -> Explanation`.

It asks the same functions a cycle asks, on a private view, and changes nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import format_milli, human_bytes
from llmos_operator.api.runtime.memory import FORMAT_BITS
from llmos_operator.scheduler import failure, wording
from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.claims import request_of, sharing_domain
from llmos_operator.scheduler.cycle import plan, prepare
from llmos_operator.scheduler.gang import concerns
from llmos_operator.scheduler.queueing import Pending, capped, response_ratio
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.state import loans
from llmos_operator.state.snapshot import lacking, missing, wanted_ordinals
from llmos_operator.state.types import AUTO, PreemptionPolicy, Quantization, QuantizationMode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.plan import Decision, Evict, Move, Plan, Rejection, Shrink, Sleep
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Pod, Workload, WorkloadKey

_LEAST_CONTEXT: Final = 512
_SHOWN_VICTIMS: Final = 3
_MILLISECONDS: Final = 1000
_HARSHEST: Final = (
    "takes memory of",
    "takes precision of",
    "takes a replica of",
    "puts to sleep",
    "displaces",
)  # by the depth of the harshest step


@dataclass(frozen=True, slots=True)
class SizeOption:
    """One precision the workload may run at, and where it stands."""

    format: str
    bytes_per_device: int
    max_model_len: int
    nodes: int  # nodes that could take a replica now
    note: str  # "fits on 3 nodes", "3 InsufficientDeviceMemory (short by 1.2 GiB on n3)"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything `kubectl llmos explain` shows of one workload."""

    workload: WorkloadKey
    reason: Reason
    message: str
    queue: str
    queue_position: int | None  # 1 is next
    order: str  # why it stands there: priority, share, waiting time; "" when nothing of it waits
    priority: int
    replicas_wanted: int
    replicas_placed: int
    options: tuple[SizeOption, ...] = ()  # precisions, best first
    rejected: tuple[Rejection, ...] = ()
    victims: tuple[
        Evict | Shrink | Sleep, ...
    ] = ()  # who would have to go, sleep or give up memory for it to start
    moves: tuple[Move, ...] = ()  # who would have to move for it to start
    would_help: tuple[str, ...] = ()  # changes that would make it start
    expected_start: float | None = None  # epoch seconds; None: not known


def explain(snapshot: Snapshot, policy: Policy, now: float, workload: WorkloadKey) -> Explanation:
    """Explain one workload on a snapshot, changing nothing. KeyError: there is no such workload.

    Raises NotSynced before every list is complete.
    """
    wanted = snapshot.workloads[workload]
    made = plan(snapshot, policy, now)
    attempts = prepare(snapshot, policy, now, UNLIMITED, None)
    queue = wanted.queue or policy.default_queue
    priority = capped(snapshot, queue, snapshot.priority_of(wanted))
    pods = snapshot.pods_of.get(wanted.uid, ())
    free, blocked = missing(wanted, pods)
    pending = Pending(wanted, queue, priority, response_ratio(policy, wanted, now), free, blocked)
    pending.core = lacking(wanted, len(free), blocked)
    decision = made.decisions.get(workload)
    waits = decision is not None and decision.pending > 0
    return Explanation(
        workload=workload,
        reason=decision.reason if decision is not None else _resting(wanted),
        message=decision.message if decision is not None else _place(snapshot, wanted),
        queue=queue,
        queue_position=decision.queue_position if decision is not None else None,
        order=_order(made, pending, now),
        priority=priority,
        replicas_wanted=wanted.replicas,
        replicas_placed=min(wanted.replicas, len(wanted_ordinals(wanted, pods)) - pending.replicas),
        options=_options(attempts, wanted),
        rejected=decision.rejected if decision is not None else (),
        victims=tuple(e for e in made.displacements if e.preemptor == workload),
        moves=tuple(one for one in made.moves if one.beneficiary == workload),
        would_help=_would_help(attempts, pending, decision) if waits and decision is not None else (),
        expected_start=_expected_start(attempts, decision),
    )


def _place(snapshot: Snapshot, workload: Workload) -> str:
    """Return what is to be said of a workload of which nothing waits."""
    claims = _claims(snapshot.lowered, workload)
    lowered = [
        f"{claim.pod}{f' at {claim.asked_format}' if claim.asked_format else ''} with {human_bytes(claim.asked_bytes)} of {human_bytes(claim.bytes_per_device)} per device"
        for claim in claims
        if not claim.lent
    ]
    lent = [_lent(snapshot, claim) for claim in claims if claim.lent]
    asleep = [_asleep(claim) for claim in _claims(snapshot.sleeping, workload)]
    parts = ["every replica has its place"]
    if lowered:
        parts.append(
            f"to make room for others goes on {', '.join(lowered)}, until its devices have room again and nobody waits for it"
        )
    return "; ".join((*parts, *lent, *_borrowed(snapshot, workload), *_held(workload), *asleep))


def _lent(snapshot: Snapshot, claim: Claim) -> str:
    """Return what is to be said of a replica that has lent memory, or is asked to."""
    given = human_bytes(claim.bytes_per_device - claim.asked_bytes)
    if not claim.yielded:
        return f"{claim.pod} idles and is asked to lend {given} per device"
    names = ", ".join(pod.key for pod in loans.borrowers(snapshot.nodes[claim.node], claim.pod))
    if snapshot.calls_back(claim.workload):
        return f"{claim.pod} calls back the {given} per device it has lent{f' to {names}' if names else ''}"
    whom = (
        f"to {names}, which {'goes' if ',' not in names else 'go'} when it works again"
        if names
        else "to nobody yet"
    )
    return f"{claim.pod} idles and lends {given} per device {whom}"


def _borrowed(snapshot: Snapshot, workload: Workload) -> list[str]:
    """Return what is to be said of replicas that stand in lent memory."""
    pods = snapshot.pods_of.get(workload.uid, ())
    found = ((pod, pod.claim.lender) for pod in pods if pod.claim is not None and pod.claim.lender)
    return [
        f"{pod.key} stands in memory that {lender} lends, and is evicted when that works again"
        for pod, lender in found
        if pod.node in snapshot.nodes and loans.lends(snapshot.nodes[pod.node], lender)
    ]


def _held(workload: Workload) -> list[str]:
    """Return what is to be said of replicas that were given up."""
    ceiling = workload.ceiling
    if ceiling is None or ceiling.replicas is None:
        return []
    word = "replica" if ceiling.replicas == 1 else "replicas"
    by = ceiling.beneficiary or "others"
    return [
        f"it does with {ceiling.replicas} {word} to make room for {by}, until there is room that nobody waits for"
    ]


def _claims(pods: Iterable[Pod], workload: Workload) -> list[Claim]:
    return [pod.claim for pod in pods if pod.claim and pod.claim.workload_uid == workload.uid]


def _asleep(claim: Claim) -> str:
    """Return what is to be said of a replica that sleeps, or is going to."""
    sleeping = claim.sleeping
    verb = "sleeps" if claim.asleep else "goes to sleep"
    if sleeping is None or not sleeping.beneficiary:
        return f"{claim.pod} {verb} because nobody asked anything of it; a request wakes it"
    return (
        f"{claim.pod} {verb} to make room for {sleeping.beneficiary}; it wakes when its devices have "
        f"{human_bytes(claim.awake_bytes)} for it again, before others of its priority"
    )


def _resting(workload: Workload) -> Reason:
    if workload.gate is not None and workload.gate.closed:
        return Reason.WAITING_FOR_KUEUE
    return Reason.SUSPENDED if workload.suspended else Reason.BOUND


def _order(made: Plan, pending: Pending, now: float) -> str:
    ahead = [
        d
        for d in made.decisions.values()
        if d.queue == pending.queue and d.queue_position is not None and d.pending
    ]
    if not pending.replicas:
        return ""  # it stands in no queue
    own = made.decisions.get(pending.workload.key)
    position = own.queue_position if own is not None else None
    waited = max(0.0, now - pending.workload.created_at)
    text = f"priority {pending.priority}, waiting for {waited:.0f} s (response ratio {pending.ratio:.2f})"
    if position is None:
        return text
    return f"{text}, {position - 1} ahead and {len(ahead) - position} behind in queue {pending.queue}"


def _options(attempts: Attempts, workload: Workload) -> tuple[SizeOption, ...]:
    """Return one option per format: the largest context that fits somewhere now, else the smallest there is."""
    found: dict[str, SizeOption] = {}
    for size, request in attempts.shape(workload).options:
        known = found.get(size.format)
        if known is None or not known.nodes:
            found[size.format] = _option(attempts, size, request)
    return tuple(found.values())


def _option(attempts: Attempts, size: Size, request: Request) -> SizeOption:
    nodes = attempts.placer.count(request)
    if nodes:
        note = f"fits on {nodes} nodes now" if nodes > 1 else "fits on 1 node now"
    else:
        rejected, _ = attempts.feasibility.rejections(request)
        note = wording.rejections(rejected[:2])
    return SizeOption(size.format, size.bytes_per_device, size.max_model_len, nodes, note)


def _would_help(attempts: Attempts, pending: Pending, decision: Decision) -> tuple[str, ...]:
    if decision.reason is Reason.EXCEEDS_QUOTA:
        room = attempts.worlds.now.tree.room(pending.queue).gpu_milli
        _, request = min(attempts.shape(pending.workload).options, key=lambda one: one[0].bytes_per_device)
        pods = pending.workload.members * max(1, pending.core)
        more = max(1, failure.least_milli(attempts, request) * pods - room)
        return (f"{format_milli(more)} more GPUs of quota for queue {pending.queue}",)
    if decision.reason is not Reason.NO_CAPACITY:
        return ()
    moves = _moves(attempts, pending)
    if concerns(pending.workload):
        return tuple(moves)  # what else would help one pod need not help all of them
    found = [*_narrower(attempts, pending.workload), *_shorter(attempts, pending.workload), *moves]
    return (*found, *_higher(attempts, pending))


def _moves(attempts: Attempts, pending: Pending) -> list[str]:
    """Return who could be moved so that it starts, and why nobody was."""
    shape, consolidation = attempts.shape(pending.workload), attempts.consolidation
    unit = pending.ordinals[: pending.core or 1]
    if not unit or not shape.options or not attempts.policy.preemption.enabled:
        return []
    found = consolidation.search(pending, shape, unit, sys.maxsize, attempts.policy.consolidation.replicas)
    if found is None:
        return []
    shown = ", ".join(
        f"{mover.pod.key} to node {claim.node}" for mover, claim in found.moves[:_SHOWN_VICTIMS]
    )
    left, worth = consolidation.left(), consolidation.worth(pending, shape, unit)
    if left < len(found.moves):
        why = f"{max(0, left)} moves are left of this hour's scheduling.migrationBudget"
    elif not attempts.snapshot.may_preempt(pending.workload):
        why = "its preemptionPolicy is Never"
    else:
        why = f"its waiting is worth {worth / _MILLISECONDS:.0f} s so far"
    return [f"moving {shown} at a loss of {found.cost / _MILLISECONDS:.0f} s of device time; {why}"]


def _fits_somewhere(attempts: Attempts, workload: Workload) -> Size | None:
    """Return the first size of a changed workload that some node could take now."""
    domain = sharing_domain(attempts.snapshot, attempts.policy, workload.namespace)
    for size in sizes(workload, attempts.profile(workload), attempts.policy).sizes:
        profile = attempts.profile(workload)
        if attempts.placer.count(request_of(workload, size, attempts.policy, domain, profile)):
            return size
    return None


def _narrower(attempts: Attempts, workload: Workload) -> list[str]:
    if workload.memory_bytes is not None:
        return []
    served = attempts.policy.engine_formats.get(workload.engine, tuple(FORMAT_BITS))
    for name in sorted(served, key=lambda f: (-FORMAT_BITS[f], f)):
        fixed = Quantization(QuantizationMode.FIXED, name, (name,), FORMAT_BITS[name])
        size = _fits_somewhere(attempts, replace(workload, quantization=fixed))
        if size is not None:
            return [f"format {name} ({human_bytes(size.bytes_per_device)} per device)"]
    return []


def _shorter(attempts: Attempts, workload: Workload) -> list[str]:
    if workload.memory_bytes is not None or workload.max_model_len == AUTO:
        return []
    length = workload.max_model_len // 2
    while length >= _LEAST_CONTEXT:
        size = _fits_somewhere(attempts, replace(workload, max_model_len=length))
        if size is not None:
            return [f"context.maxModelLen {length} ({human_bytes(size.bytes_per_device)} per device)"]
        length //= 2
    return []


def _higher(attempts: Attempts, pending: Pending) -> list[str]:
    """Return whom a priority above everybody would displace."""
    eager = replace(pending.workload, preemption=PreemptionPolicy.LOWER_PRIORITY)
    above = replace(pending, workload=eager, priority=sys.maxsize >> 24)
    proposal = attempts.preemption.find(above, attempts.shape(eager).options)
    if proposal is None:
        return []
    highest = max(v.priority for v in proposal.victims)
    shown = proposal.victims[:_SHOWN_VICTIMS]
    names = ", ".join(f"{v.claim.workload}{' (idle)' if v.idle_seconds else ''}" for v in shown)
    how = _HARSHEST[max((v.depth for v in proposal.victims), default=0)]
    loss = proposal.cost / _MILLISECONDS
    return [f"a priority above {highest}: {how} {names} on node {proposal.node} at a loss of {loss:.0f} s"]


def _expected_start(attempts: Attempts, decision: Decision | None) -> float | None:
    if decision is not None and decision.expected_start is not None:
        return decision.expected_start
    if decision is None or decision.reason is not Reason.WAITING_FOR_PREEMPTION:
        return None
    ends = [pod.deletion_at for pod in attempts.worlds.leaving.values()]
    return max(ends) if ends else None

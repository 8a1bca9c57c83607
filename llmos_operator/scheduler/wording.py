"""Sentences for people: why a place was chosen, why somebody had to go, what a size is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import human_bytes
from llmos_operator.scheduler.policy import ScoreKind
from llmos_operator.scheduler.power import watts
from llmos_operator.scheduler.scores.fragmentation import loss_of
from llmos_operator.state.power import NO_BUDGET

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.scheduler.plan import Rejection, Reservation
    from llmos_operator.scheduler.preemption import Proposal
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import Claim, Sleeping, Workload

_MILLISECONDS = 1000
_MINUTE = 60
_SHOWN = 3


def bound(
    claim: Claim,
    state: NodeState,
    options: Sequence[tuple[Size, Request]],
    place: int,
    chosen: str,
    beside: Sequence[tuple[str, int, int]] = (),
) -> str:
    """Return why a claim got this node (`chosen`) and this precision; `beside` is :meth:`Harm.told`."""
    if not claim.devices:
        return f"{claim.format} on the CPU of node {claim.node}, {chosen}: {human_bytes(claim.memory_bytes)} reserved"
    indexes = ",".join(_device(d) for d in state.devices if d.device.uuid in claim.devices)
    text = (
        f"{claim.format} on node {claim.node} device {indexes}, {chosen}: "
        f"{human_bytes(claim.bytes_per_device)} reserved per device"
    )
    text += _power(claim, state) + _strain(claim, state) + _harm(beside)
    better = [size_text(size) for size, _ in options[:place]]
    return f"{text}; no room now for {', '.join(better)}" if better else text


def _device(one: DeviceState) -> str:
    """Return a device in words: "0", "0 (MIG 1g.10gb)"."""
    profile = f" {one.device.profile}" if one.device.profile is not None else ""
    return f"{one.device.index} (MIG{profile})" if one.device.mig else str(one.device.index)


def _power(claim: Claim, state: NodeState) -> str:
    """Return what a claim draws of its node's power budget, "" where there is none; the claim counts there already."""
    room = state.power_room()
    if room == NO_BUDGET:
        return ""
    return f", expected to draw {watts(state.added_by(claim))} more ({watts(room)} of the node's power budget left)"


def _strain(claim: Claim, state: NodeState) -> str:
    """Return what speaks against the devices of a claim, "" where nothing does."""
    found = []
    for one in state.devices:
        if one.device.uuid in claim.devices and one.strain_milli:
            held = f"held down {one.throttled_milli // 10} % of its time" if one.throttled_milli else ""
            aged = f"memory risk {one.risk_milli // 10} %" if one.risk_milli else ""
            found.append(f"device {one.device.index} counts {one.strain_milli // 10} % less ({held or aged}")
            found[-1] += f", {aged})" if held and aged else ")"
    return f"; {', '.join(found)}" if found else ""


def _harm(beside: Sequence[tuple[str, int, int]]) -> str:
    """Return who slows whom down on the device, "" where nothing of that was seen."""
    found = []
    for workload, loses, takes in beside[:_SHOWN]:
        parts = [f"loses {loses // 10} % of its speed to it"] if loses else []
        parts += [f"takes {takes // 10} % of its speed"] if takes else []
        found.append(f"beside {workload}, by what was seen of their like, it {' and '.join(parts)}")
    return f"; {'; '.join(found)}" if found else ""


def chosen(by: ScoreKind, waste: int, candidates: int) -> str:
    """Return why a node was preferred to the others that could have taken it."""
    if candidates == 1:
        return "the only candidate"
    if by is ScoreKind.BEST_FIT:
        return f"best fit of {candidates} candidates"
    loss = loss_of(waste)
    if loss is None:
        return f"one of {candidates} candidates with room that nothing expected needs"
    return f"of {candidates} candidates the least loss of room for expected work ({loss:.3g} devices)"


def size_text(size: Size) -> str:
    """Return a size in words: "int8 with 4096 tokens (3.2 GiB)"."""
    tokens = f" with {size.max_model_len} tokens" if size.max_model_len else ""
    return f"{size.format}{tokens} ({human_bytes(size.bytes_per_device)})"


def _loss(victim: Victim) -> str:
    """Return what displacing a victim is expected to lose, and why that is little if it idles."""
    loss = f"expected loss {victim.cost / _MILLISECONDS:.1f} s of device time"
    if not victim.idle_seconds:
        return loss
    return f"{loss}: nobody has asked anything of it for {victim.idle_seconds / _MINUTE:.0f} min"


def displaced(pending: Pending, victim: Victim, proposal: Proposal, reason: Reason) -> str:
    """Return why a victim has to go."""
    loss = _loss(victim)
    claimant = f"{pending.workload.key} (priority {pending.priority})"
    if victim.fewer:
        loss = f"its workload does with one replica less until there is room again; {loss}"
    if reason is Reason.RECLAIMED:
        return (
            f"{claimant} takes back what queue {victim.claim.queue} borrowed from queue {pending.queue}, "
            f"to run on node {proposal.node}; {loss}"
        )
    return f"{claimant} displaces priority {victim.priority} to run on node {proposal.node}; {loss}"


def kept(place: Reservation) -> str:
    """Return what is kept for work that waits: "room on node n1 is kept for it, which is free once default/a-0 is gone"."""
    names = list(dict.fromkeys(place.nodes))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    text = f"room on {'nodes' if len(names) > 1 else 'node'} {', '.join(names[:_SHOWN])}{more} is kept for it"
    if not place.waits_for:
        return text
    others = f" and {len(place.waits_for) - _SHOWN} others" if len(place.waits_for) > _SHOWN else ""
    gone = (
        f"{', '.join(place.waits_for[:_SHOWN])}{others} {'is' if len(place.waits_for) == 1 else 'are'} gone"
    )
    return f"{text} until {gone}" + (
        "" if place.start is not None else ", and nobody knows when that will be"
    )


def shrunk(pending: Pending, victim: Victim, proposal: Proposal) -> str:
    """Return why a victim has to come down, and to what."""
    held, left = human_bytes(victim.claim.held_bytes), human_bytes(victim.asked_bytes)
    if victim.claim.lent:
        lent = human_bytes(victim.claim.lent_bytes)
        return (
            f"{pending.workload.key} (priority {pending.priority}) needs room on node {proposal.node}: the {lent} per device that "
            f"priority {victim.priority} has lent are taken from it, it keeps {left}; {_loss(victim)}"
        )
    if victim.asked_format:
        return (
            f"{pending.workload.key} (priority {pending.priority}) needs room on node {proposal.node}: the model of "
            f"priority {victim.priority} goes from {victim.claim.format} to {victim.asked_format} with one full context, from "
            f"{held} to {left} per device; {_loss(victim)}"
        )
    return (
        f"{pending.workload.key} (priority {pending.priority}) needs room on node {proposal.node}: the KV cache of "
        f"priority {victim.priority} comes down to one full context, from {held} to {left} per device; "
        f"{_loss(victim)}"
    )


def lent(pending: Pending, claim: Claim, left: int) -> str:
    """Return why a replica that idles comes down, and until when."""
    given = human_bytes(claim.bytes_per_device - left)
    return (
        f"it idles and lends {given} per device to {pending.workload.key} (priority {pending.priority}) and its like, "
        f"from {human_bytes(claim.bytes_per_device)} to {human_bytes(left)}, until it works again"
    )


def borrows(claim: Claim) -> str:
    """Return why a replica starts where it does, and when it has to go."""
    return f"in memory that {claim.lender}, which idles, lends it until it works again"


def sent_away(lender: Claim, claim: Claim) -> str:
    """Return why a borrower has to go."""
    return (
        f"{lender.workload} (priority {lender.priority}) works again and calls back the memory it lent priority "
        f"{claim.priority} on node {lender.node}"
    )


def called_back(claim: Claim) -> str:
    """Return why a lender gets its memory back."""
    lowered, whole = human_bytes(claim.held_bytes), human_bytes(claim.bytes_per_device)
    return f"it works again, and what it lent on node {claim.node} is free: back from {lowered} to {whole} per device"


def put_to_sleep(pending: Pending, victim: Victim, proposal: Proposal) -> str:
    """Return why a victim has to sleep, and what of it stays where."""
    host = human_bytes(victim.sleeping.host_bytes if victim.sleeping is not None else 0)
    held, left = human_bytes(victim.claim.held_bytes), human_bytes(victim.left_bytes)
    return (
        f"{pending.workload.key} (priority {pending.priority}) needs room on node {proposal.node}: priority "
        f"{victim.priority} sleeps, {host} of weights in the node's memory, from {held} to {left} per device; "
        f"{_loss(victim)}"
    )


def idle(claim: Claim, sleeping: Sleeping) -> str:
    """Return why a replica sleeps though nobody needs its room."""
    held, left = human_bytes(claim.held_bytes), human_bytes(sleeping.bytes_per_device)
    return (
        f"nobody has asked anything of it for idle.sleepAfter: {human_bytes(sleeping.host_bytes)} of weights wait in the "
        f"memory of node {claim.node}, from {held} to {left} per device; a request wakes it"
    )


def woken(claim: Claim, now: float) -> str:
    """Return why a replica that sleeps wakes."""
    sleeping = claim.sleeping
    slept = max(0.0, now - sleeping.at) if sleeping is not None else 0.0
    why = f"there is room on node {claim.node} again"
    if sleeping is not None and not sleeping.beneficiary:
        why = "somebody asks for it"
    return f"{why}: awake after {slept:.0f} s of sleep, with {human_bytes(claim.awake_bytes)} per device"


def sleeps_no_more(claim: Claim, now: float, place: str) -> str:
    """Return why a replica that sleeps ends: to start at a place, or ("") to stand in line like others."""
    sleeping = claim.sleeping
    if not place or sleeping is None:
        return f"somebody asks for it, and its room on node {claim.node} is taken: it is placed anew"
    return (
        f"it has slept for {now - sleeping.at:.0f} s without its room on node {claim.node} coming back, longer than "
        f"loading it again takes: it starts on node {place}"
    )


def moved(pending: Pending, victim: Victim, target: Claim) -> str:
    """Return why a replica is moved, and where to."""
    whereto = (
        f"to node {target.node}"
        if target.node != victim.pod.node
        else f"to another device of node {target.node}"
    )
    return (
        f"moved from node {victim.pod.node} {whereto} so that {pending.workload.key} (priority {pending.priority}) "
        f"can start; {_loss(victim)}"
    )


def grown(workload: Workload, replicas: int) -> str:
    """Return why a workload that gave up replicas may have more of them again."""
    wanted = workload.replicas if workload.wanted is None else workload.wanted
    return f"there is room again: up to {replicas} of {wanted} replicas, {workload.replicas} before"


def restored(claim: Claim) -> str:
    """Return why a replica that came down gets its memory back."""
    lowered, whole = human_bytes(claim.held_bytes), human_bytes(claim.bytes_per_device)
    return f"there is room on node {claim.node} again and nobody waits for it: back from {lowered} to {whole} per device"


def rejections(found: Iterable[Rejection]) -> str:
    """Return rejections in one line: "3 InsufficientDeviceMemory (short by 1.2 GiB on n3), 1 NodeNotReady"."""
    return ", ".join(f"{r.nodes} {r.reason}" + (f" ({r.nearest})" if r.nearest else "") for r in found)

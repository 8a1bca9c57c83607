"""The actions that a proposal of `preemption` comes to: who comes down, who sleeps, who goes, and by what right."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import wording
from llmos_operator.scheduler.plan import Evict, Shrink, Sleep

if TYPE_CHECKING:
    from llmos_operator.scheduler.preemption import Preemption, Proposal
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.victims import Replica


def shrinks(preemption: Preemption, pending: Pending, proposal: Proposal) -> list[Shrink]:
    """Let those victims of a proposal come down who need not go, and return their actions."""
    found = []
    for victim in proposal.victims:
        if not victim.asked_bytes:
            continue
        reason = preemption.right(pending, victim) or Reason.PREEMPTED
        preemption.displaced(victim)
        found.append(
            Shrink(
                pod=victim.pod.key,
                pod_uid=victim.pod.uid,
                node=victim.pod.node,
                victim=victim.claim.workload,
                victim_uid=victim.claim.workload_uid,
                bytes_per_device=victim.asked_bytes,
                format=victim.asked_format,
                cost=victim.cost,
                reason=reason,
                explanation=wording.shrunk(pending, victim, proposal),
                preemptor=pending.workload.key,
            )
        )
    return found


def sleeps(preemption: Preemption, pending: Pending, proposal: Proposal) -> list[Sleep]:
    """Let those victims of a proposal sleep for whom that is enough, and return their actions."""
    found = []
    for victim in proposal.victims:
        if victim.sleeping is None:
            continue
        reason = preemption.right(pending, victim) or Reason.PREEMPTED
        preemption.displaced(victim)
        found.append(
            Sleep(
                pod=victim.pod.key,
                pod_uid=victim.pod.uid,
                node=victim.pod.node,
                victim=victim.claim.workload,
                victim_uid=victim.claim.workload_uid,
                sleeping=replace(victim.sleeping, beneficiary=pending.workload.key),
                cost=victim.cost,
                reason=reason,
                explanation=wording.put_to_sleep(pending, victim, proposal),
                preemptor=pending.workload.key,
            )
        )
    return found


def evictions(preemption: Preemption, pending: Pending, proposal: Proposal) -> list[Evict]:
    """Let those victims of a proposal go who have to, and return their evictions."""
    found = []
    reasons: dict[Replica, Reason] = {}  # its members go by the right that the first of them went by
    for victim in proposal.victims:
        if not victim.ends:
            continue
        reason = reasons.get(victim.replica) or preemption.right(pending, victim) or Reason.PREEMPTED
        reasons[victim.replica] = reason
        preemption.displaced(victim)
        found.append(
            Evict(
                pod=victim.pod.key,
                pod_uid=victim.pod.uid,
                node=victim.pod.node,
                victim=victim.claim.workload,
                victim_uid=victim.claim.workload_uid,
                cost=victim.cost,
                reason=reason,
                explanation=wording.displaced(pending, victim, proposal, reason),
                preemptor=pending.workload.key,
                fewer=victim.fewer,
            )
        )
    return found

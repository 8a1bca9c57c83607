"""Gives memory back to replicas that came down, once it is free and nobody waits who could use it.

The most important one first. What is given back must be free now and must not be room that is held for somebody; the
replica must have done with less for a while, so that it is not asked, restored and asked again with every claimant
that comes and goes: at most once in `PreemptionLimits.restore_after` seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import wording
from llmos_operator.scheduler.plan import Restore

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim, Pod


def restores(attempts: Attempts) -> list[Restore]:
    """Return what is given back in this plan, and count it in both worlds. To be asked when everybody has been placed."""
    found = []
    for pod, claim in sorted(
        _candidates(attempts), key=lambda one: (-one[1].priority, one[1].asked_at, one[0].key)
    ):
        if not all(
            _room(world.node(pod.node), claim) for world in (attempts.worlds.now, attempts.worlds.later)
        ):
            continue
        attempts.restored(pod, claim)
        found.append(
            Restore(
                pod=pod.key,
                pod_uid=pod.uid,
                node=pod.node,
                workload=claim.workload,
                workload_uid=claim.workload_uid,
                bytes_per_device=claim.bytes_per_device,
                reason=Reason.RESTORED,
                explanation=wording.restored(claim),
            )
        )
    return found


def _candidates(attempts: Attempts) -> list[tuple[Pod, Claim]]:
    wait = attempts.policy.preemption.restore_after
    return [
        (pod, pod.claim)
        for pod in attempts.snapshot.lowered
        if pod.claim is not None
        and pod.claim.yielded
        and pod.claim.sleeping is None
        and pod.key not in attempts.worlds.dozing
        and pod.key not in attempts.worlds.leaving
        and attempts.now - pod.claim.asked_at >= wait
        and pod.claim.domain not in attempts.waiting_domains
        and attempts.scene.heard_lately(pod.node)
    ]


def _room(state: NodeState, claim: Claim) -> bool:
    """Return whether every device of a claim has what was given up, by reservations and as observed."""
    missing = claim.bytes_per_device - claim.held_bytes
    devices = [state.device(uuid) for uuid in claim.devices]
    return all(device is not None and device.headroom_bytes() >= missing for device in devices)

"""Gives memory back to replicas that came down, once it is free and nobody waits who could use it.

The most important one first. What is given back must be free now and must not be room that is held for somebody; the
replica must have done with less for a while, so that it is not asked, restored and asked again with every claimant
that comes and goes: at most once in `PreemptionLimits.restore_after` seconds. What was lent comes back so, too, when nobody
stands in it any more; what is called back does not wait for that (`lending`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler import wording
from llmos_operator.scheduler.lending import restore_of, room_for
from llmos_operator.state import loans

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.plan import Restore
    from llmos_operator.state.types import Claim, Pod


def restores(attempts: Attempts) -> list[Restore]:
    """Return what is given back in this plan, and count it in both worlds. To be asked when everybody has been placed."""
    found = []
    for pod, claim in sorted(
        _candidates(attempts), key=lambda one: (-one[1].priority, one[1].asked_at, one[0].key)
    ):
        if room_for(attempts, pod, claim):
            attempts.restored(pod, claim)
            found.append(restore_of(pod, claim, wording.restored(claim)))
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
        and not (pod.claim.lent and _lends_on(attempts, pod, pod.claim))
    ]


def _lends_on(attempts: Attempts, pod: Pod, claim: Claim) -> bool:
    """Return whether what a replica has lent is in use, was taken for good in this plan, or is called back by others."""
    state = attempts.worlds.later.node(pod.node)
    return (
        not attempts.snapshot.may_lend(claim.workload)
        or not loans.lends(state, pod.key)
        or bool(loans.borrowers(state, pod.key))
    )

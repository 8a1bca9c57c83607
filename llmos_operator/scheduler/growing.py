"""Gives replicas back to elastic workloads that did with fewer so that others could start.

When everybody who waits has been asked, the most important workload first: a replica that has a place now, within quota and
beside all that is held or reserved for others, is wanted again and bound in the same plan. It displaces nobody. A workload has
done with fewer for `PreemptionLimits.restore_after` seconds before, so that it is not asked, restored and asked again with
every claimant that comes and goes, and gets none back in a plan in which its like was displaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import wording
from llmos_operator.scheduler.attempt import Result
from llmos_operator.scheduler.plan import Grow
from llmos_operator.scheduler.queueing import Pending, capped, refusal
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.plan import Bind
    from llmos_operator.state.types import Workload


def growing(attempts: Attempts) -> Iterator[tuple[Pending, Result, Grow]]:
    """Yield who gets replicas back, with their binds; both worlds count them."""
    displaced = {uid for uid, _ in attempts.preemption.gone}
    for pending in _candidates(attempts):
        workload = pending.workload
        if workload.uid in displaced:
            continue
        result = Result()
        for ordinal in pending.ordinals:
            bind = _place(attempts, pending, ordinal)
            if bind is None:
                break
            result.binds.append(bind)
        if not result.binds:
            continue
        replicas = workload.replicas + len(result.binds)
        explanation = wording.grown(workload, replicas)
        yield pending, result, Grow(workload.key, workload.uid, replicas, Reason.RESTORED, explanation)


def _place(attempts: Attempts, pending: Pending, ordinal: int) -> Bind | None:
    """Place one replica at the best size that fits now."""
    shape = attempts.shape(pending.workload)
    tries = (attempts.bind(pending, shape, place, ordinal) for place in range(len(shape.options)))
    return next((bind for bind in tries if bind is not None), None)


def _candidates(attempts: Attempts) -> list[Pending]:
    snapshot, policy = attempts.snapshot, attempts.policy
    found = []
    for key in snapshot.held:
        workload = snapshot.workloads[key]
        ceiling, wanted = workload.ceiling, workload.wanted
        if ceiling is None or wanted is None or attempts.now - ceiling.at < policy.preemption.restore_after:
            continue
        ordinals = _missing(attempts, workload, wanted)
        if not ordinals or refusal(snapshot, policy, attempts.now, attempts.worlds.now.tree, workload):
            continue
        queue = workload.queue or policy.default_queue
        priority = capped(snapshot, queue, snapshot.priority_of(workload))
        found.append(Pending(workload, queue, priority, 0.0, ordinals))
    return sorted(found, key=lambda one: (-one.priority, one.workload.created_at, one.workload.key))


def _missing(attempts: Attempts, workload: Workload, wanted: int) -> tuple[int, ...]:
    """Return free ordinals for the replicas that are wanted and given up; none while another one of them is missing."""
    pods = attempts.snapshot.pods_of.get(workload.uid, ())
    if any(pod.phase in {PodPhase.TERMINATING, PodPhase.FINISHED} for pod in pods):
        return ()
    taken = {pod.claim.ordinal for pod in pods if pod.claim is not None}
    if len(taken) < workload.replicas:
        return ()
    more = wanted - len(taken)
    return tuple(ordinal for ordinal in range(wanted) if ordinal not in taken)[: max(0, more)]

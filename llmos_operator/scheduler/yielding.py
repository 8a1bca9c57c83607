"""Who will make way for a claimant that cannot start yet: work of strictly lower priority, once it has run for a while.

This is what `preemption` may do when the time has come, said in advance and therefore with less: only what priority
decides, and nothing that a PodDisruptionBudget may protect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.claims import least_runtime
from llmos_operator.scheduler.ends import NEVER
from llmos_operator.state.labels import matches
from llmos_operator.state.types import DisruptionStep

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.state.types import Pod, Workload


def yields_from(attempts: Attempts, claimant: Pending, pod: Pod) -> float:
    """Return from when on (epoch seconds) a pod with a claim may be displaced for the claimant, NEVER if it may not."""
    claim = pod.claim
    workload = attempts.snapshot.workloads.get(claim.workload) if claim is not None else None
    if claim is None or (workload is not None and DisruptionStep.EVICT not in workload.disruption_order):
        return NEVER
    if claim.workload_uid == claimant.workload.uid:
        return NEVER
    if not attempts.preemption.outranks(claimant, claim.queue, claim.priority):
        return NEVER
    budgets = (b for b in attempts.snapshot.budgets.values() if b.namespace == pod.namespace)
    if any(b.selector is not None and matches(b.selector, pod.labels) for b in budgets):
        return NEVER
    return max(attempts.now, (pod.started_at or claim.bound_at) + claim.min_runtime)


def would_yield_from(
    attempts: Attempts, claimant: Pending, workload: Workload, queue: str, priority: int
) -> float:
    """Return the same for a replica that would be bound now: any budget of its namespace might cover it."""
    if DisruptionStep.EVICT not in workload.disruption_order:
        return NEVER
    if not attempts.preemption.outranks(claimant, queue, priority):
        return NEVER
    if any(budget.namespace == workload.namespace for budget in attempts.snapshot.budgets.values()):
        return NEVER
    return attempts.now + least_runtime(workload, attempts.policy)

"""When work is expected to have left its place. Estimates are late rather than early.

    declared   bound + `spec.scheduling.maxRuntime` + the pod's grace     kept: the operator ends the work then
    learned    now + the time within which `ReservationPolicy.part` of such work has ended after as much service
    unknown    never, as far as anybody can tell

Learned is the end of FineTune and Batch work of a queue that has finished enough of it (`service_index`, the same
hazard that orders it). Serving ends when somebody says so; so does what is not ours.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from llmos_operator.scheduler.training import learned
from llmos_operator.state.finished import devices_of
from llmos_operator.state.types import PodPhase, WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.service_index import ServiceIndex
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Pod, Workload

NEVER: Final = math.inf
_GRACE: Final = 30.0  # seconds a pod may take to end that does not exist yet


class Ends:
    """Expected ends in one snapshot, in epoch seconds; NEVER where nothing is known."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: float) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._now = now
        self._finished = Counter(one.queue or policy.default_queue for one in snapshot.finished)
        self._index: ServiceIndex | None = None
        everything = snapshot.workloads.values()  # of which there may be many: nothing is called for each
        taught = any(count >= policy.reservation.least_finished for count in self._finished.values())
        self.known = any([w.max_runtime is not None for w in everything]) or (  # noqa: C419
            taught and any(self._learns(w) for w in everything)
        )

    def of(self, pod: Pod) -> float:
        """Return when a pod with a claim will be gone."""
        claim = pod.claim
        workload = self._snapshot.workloads.get(claim.workload) if claim is not None else None
        if claim is None or workload is None or workload.uid != claim.workload_uid:
            return NEVER
        if pod.phase is PodPhase.TERMINATING:
            stuck = self._now > pod.deletion_at + self._policy.preemption.stuck_after
            return NEVER if stuck else max(self._now, pod.deletion_at)
        began = claim.bound_at
        declared = NEVER
        if workload.max_runtime is not None:
            declared = max(self._now, began + workload.max_runtime + pod.grace_seconds)
        return min(declared, self._learned(workload, self._now - (pod.started_at or began)))

    def of_new(self, workload: Workload, *, declared_only: bool = False) -> float:
        """Return when a replica that is bound now will be gone; with `declared_only` learned ends do not count."""
        declared = NEVER if workload.max_runtime is None else self._now + workload.max_runtime + _GRACE
        return declared if declared_only else min(declared, self._learned(workload, 0.0))

    def _learns(self, workload: Workload) -> bool:
        if workload.kind is WorkloadKind.INFERENCE:
            return False
        queue = workload.queue or self._policy.default_queue
        return self._finished[queue] >= self._policy.reservation.least_finished

    def _learned(self, workload: Workload, running: float) -> float:
        if not self._learns(workload):
            return NEVER
        queue = workload.queue or self._policy.default_queue
        if self._index is None:
            self._index = learned(self._snapshot, self._policy)
        devices = devices_of(workload)
        received = max(running, workload.gpu_seconds / devices)
        return self._now + self._index.remaining(queue, devices, received, self._policy.reservation.part)

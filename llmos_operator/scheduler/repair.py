"""Pods that can no longer run where they are: their node is gone, or a device of theirs is lost or Unhealthy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler.plan import Evict
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Pod


def repairs(snapshot: Snapshot, policy: Policy, now: float) -> list[Evict]:
    """Return the evictions that free broken places, in node order. Pods on their way out are left alone."""
    found = []
    for name in sorted(snapshot.nodes):
        state = snapshot.nodes[name]
        if state.node is not None and not state.sick and not state.stray_claims:
            continue
        for key in sorted(state.pods):
            pod = state.pods[key]
            if pod.claim is None or not pod.uid or not _repairable(pod, policy, now, gone=state.node is None):
                continue
            why = _broken(state, pod.claim)
            if why is not None:
                found.append(_evict(pod, pod.claim, why))
    return found


def _repairable(pod: Pod, policy: Policy, now: float, *, gone: bool) -> bool:
    if pod.phase is PodPhase.TERMINATING:  # nobody is left to end it when the node is gone
        return gone and now > pod.deletion_at + policy.preemption.stuck_after
    return pod.phase is PodPhase.BOUND


def _broken(state: NodeState, claim: Claim) -> tuple[Reason, str] | None:
    if state.node is None:
        return Reason.NODE_LOST, f"node {state.name} no longer exists"
    for uuid in claim.devices:
        device = state.device(uuid)
        if device is None:
            if state.gpu is not None:
                return Reason.GPU_UNHEALTHY, f"device {uuid} is no longer on node {state.name}"
        elif device.verdict is Verdict.UNHEALTHY:
            detail = f" ({device.reason})" if device.reason else ""
            return Reason.GPU_UNHEALTHY, f"device {uuid} on node {state.name} is Unhealthy{detail}"
    return None


def _evict(pod: Pod, claim: Claim, why: tuple[Reason, str]) -> Evict:
    return Evict(
        pod=pod.key,
        pod_uid=pod.uid,
        node=pod.node,
        victim=claim.workload,
        victim_uid=claim.workload_uid,
        cost=0,
        reason=why[0],
        explanation=f"{why[1]}; the replica is placed again elsewhere",
        force=True,
    )

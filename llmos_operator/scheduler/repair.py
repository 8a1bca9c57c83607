"""Pods that can no longer run where they are: their node is gone, a device of theirs is lost, Unhealthy or being drained.

Where the node is gone, nothing is left to disturb. All else is acting on a node because something looks sick, which the
circuit breaker bounds: what it does not admit stays where it is, and is told (`held`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler.plan import Evict
from llmos_operator.state.care import NODE
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.care import Treatment
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Pod


@dataclass(frozen=True, slots=True)
class Repairs:
    """Evictions that free broken places, in node order; and how many pods of which nodes the breaker lets stay."""

    evictions: tuple[Evict, ...]
    held: dict[str, int]
    says: str = ""  # why they stay


@dataclass(frozen=True, slots=True)
class _Break:
    """Why a pod has to leave; `lost`: what it does there is worth nothing."""

    reason: Reason
    text: str
    lost: bool


def repairs(snapshot: Snapshot, policy: Policy, now: float) -> Repairs:
    """Return what has to leave its place. Pods on their way out are left alone.

    Where the breaker cannot admit all nodes, those on which work is lost go first.
    """
    suspects = sorted(
        name for name, one in snapshot.nodes.items() if one.node is None or one.sick or one.stray_claims
    )
    wanted = {name: found for name in suspects if (found := _of_node(snapshot, name, policy, now))}
    if not wanted:
        return Repairs((), {})
    gone = [name for name in wanted if snapshot.nodes[name].node is None]
    sick = [name for name in wanted if snapshot.nodes[name].node is not None]
    nodes = sum(state.gpu is not None for state in snapshot.nodes.values())
    acted = set(policy.breaker.recent(snapshot.disturbed, now))
    admitted = set(gone)
    held: dict[str, int] = {}
    for name in sorted(sick, key=lambda name: (not any(one.force for one in wanted[name]), name)):
        if policy.breaker.admits(name, acted, nodes):
            acted.add(name)
            admitted.add(name)
        else:
            held[name] = len(wanted[name])
    says = policy.breaker.says(len(acted), nodes) if held else ""
    return Repairs(tuple(one for name in wanted if name in admitted for one in wanted[name]), held, says)


def _of_node(snapshot: Snapshot, name: str, policy: Policy, now: float) -> list[Evict]:
    state = snapshot.nodes[name]
    found = []
    for key in sorted(state.pods):
        pod = state.pods[key]
        if pod.claim is None or not pod.uid or not _repairable(pod, policy, now, gone=state.node is None):
            continue
        why = _broken(state, pod.claim, policy)
        if why is not None:
            found.append(_evict(pod, pod.claim, why))
    return found


def _repairable(pod: Pod, policy: Policy, now: float, *, gone: bool) -> bool:
    if pod.phase is PodPhase.TERMINATING:  # nobody is left to end it when the node is gone
        return gone and now > pod.deletion_at + policy.preemption.stuck_after
    return pod.phase is PodPhase.BOUND


def _broken(state: NodeState, claim: Claim, policy: Policy) -> _Break | None:
    """Return the worst there is: what loses the work before what only asks it to leave."""
    if state.node is None:
        return _Break(Reason.NODE_LOST, f"node {state.name} no longer exists", lost=True)
    if not claim.devices and state.gpu is not None and (drain := state.gpu.care.draining(NODE)) is not None:
        return _Break(Reason.GPU_UNHEALTHY, _drained(state.name, drain), lost=False)
    found = [one for uuid in claim.devices if (one := _broken_device(state, uuid, policy)) is not None]
    return next((one for one in found if one.lost), found[0] if found else None)


def _broken_device(state: NodeState, uuid: str, policy: Policy) -> _Break | None:
    device = state.device(uuid)
    if device is None:
        if state.gpu is None:
            return None
        return _Break(Reason.GPU_UNHEALTHY, f"device {uuid} is no longer on node {state.name}", lost=True)
    if device.verdict is Verdict.UNHEALTHY:
        detail = f" ({device.reason})" if device.reason else ""
        text = f"device {uuid} on node {state.name} is Unhealthy{detail}"
        return _Break(Reason.GPU_UNHEALTHY, text, lost=device.reason in policy.lost_reasons)
    drain = state.gpu.care.draining(uuid, device.device.parent) if state.gpu is not None else None
    if drain is None:
        return None
    return _Break(Reason.GPU_UNHEALTHY, _drained(state.name, drain), lost=False)


def _drained(node: str, drain: Treatment) -> str:
    what = f"node {node}" if drain.target == NODE else f"device {drain.target} on node {node}"
    return f"{what} is drained after {drain.reason}, which asks for {drain.action}"


def _evict(pod: Pod, claim: Claim, why: _Break) -> Evict:
    return Evict(
        pod=pod.key,
        pod_uid=pod.uid,
        node=pod.node,
        victim=claim.workload,
        victim_uid=claim.workload_uid,
        cost=0,
        reason=why.reason,
        explanation=f"{why.text}; the replica is placed again elsewhere",
        force=why.lost,
    )

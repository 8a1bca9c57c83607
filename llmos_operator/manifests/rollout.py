"""What is said of a rolling update or a canary that is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.v1alpha1.workload_status import CanaryStatus
from llmos_operator.state.snapshot import held_back, ordinals_of, outdated
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.manifests.observed import Observed
    from llmos_operator.scheduler.plan import Decision
    from llmos_operator.state.types import Claim, Pod, Workload

# Waiting for victims or a start nearby ends by itself; what no device could ever take is no reason to end what serves.
_NO_ROOM = frozenset({Reason.NO_CAPACITY, Reason.EXCEEDS_QUOTA, Reason.CLAIM_IN_USE})


def no_room(workload: Workload, decision: Decision | None) -> bool:
    """Return whether the present spec's last decision found no room for a replica beside those that are there."""
    if decision is None or not workload.surge or decision.generation != workload.generation:
        return False
    return decision.pending > 0 and decision.reason in _NO_ROOM


def in_place(workload: Workload, decision: Decision | None, pods: Sequence[Pod]) -> bool:
    """Return whether replicas are replaced in place: not even one found room beside them, and one that goes leaves enough.

    ``pods`` are all the workload has, those on their way out included, and those the decision was made on.
    """
    if decision is None or not no_room(workload, decision) or len(ordinals_of(pods)) > workload.replicas:
        return False
    claims = [pod.claim for pod in outdated(workload, pods) if pod.claim is not None]
    return any(_enough(workload, decision, claim) for claim in claims)


def _enough(workload: Workload, decision: Decision, claim: Claim) -> bool:
    """Return whether what a replica has is enough for one of the present spec; for whole devices, whether it has as many."""
    if len(claim.devices) < workload.accelerators:
        return False
    return workload.sharing is Sharing.EXCLUSIVE or claim.bytes_per_device >= decision.bytes_per_device


def canary(seen: Observed) -> CanaryStatus | None:
    """Return what gateways need to know of a canary; None if none is under way."""
    workload = seen.workload
    if not held_back(workload, seen.live):
        return None
    return CanaryStatus(spec_hash=workload.template_hash, traffic_percent=workload.canary)


def progress(seen: Observed) -> str:
    """Return how far a rolling update, or the start of the wanted replicas, is."""
    under_way = canary(seen)
    if under_way is not None:
        return _canary_progress(seen, under_way)
    text = f"{seen.current_count} of {seen.workload.replicas} replicas exist with the current spec."
    old = seen.live_count - seen.current_count
    if not old:
        return text
    parts = [text, f"{old} of an older spec {'is' if old == 1 else 'are'} still there."]
    decision = seen.decision
    if decision is not None and no_room(seen.workload, decision):
        parts.append(f"There is no room for a replica beside them ({decision.reason}){_therefore(seen)}")
    return " ".join(parts)


def _therefore(seen: Observed) -> str:
    if in_place(seen.workload, seen.decision, seen.pods):
        return ": they are replaced in place."
    beside = len(ordinals_of(seen.pods)) > seen.workload.replicas
    return "." if beside else ", and none of them would leave enough: they stay."


def _canary_progress(seen: Observed, under_way: CanaryStatus) -> str:
    count, live = seen.current_count, seen.live_count
    parts = [f"Canary: {count} of {live} replicas, {under_way.traffic_percent} % of requests."]
    if not count and seen.decision is not None and no_room(seen.workload, seen.decision):
        parts.append(f"There is no room for it ({seen.decision.reason}).")
    parts.append("The replicas of the older spec stay until rollout.canaryTrafficPercent is 0 or 100.")
    return " ".join(parts)

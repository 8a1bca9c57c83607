"""What is said of a rolling update or a canary that is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.v1alpha1.workload_status import CanaryStatus
from llmos_operator.state.snapshot import held_back, ordinals_of, outdated

if TYPE_CHECKING:
    from llmos_operator.manifests.observed import Observed
    from llmos_operator.scheduler.plan import Decision
    from llmos_operator.state.types import PodKey, Workload

_WHOLE = 100  # per cent
_NO_ROOM = frozenset({Reason.NO_CAPACITY, Reason.EXCEEDS_QUOTA, Reason.CLAIM_IN_USE})


def instead(workload: Workload, decision: Decision | None) -> PodKey:
    """Return the replica that has to go before one of the present spec can start; "" if none has to, or none would help."""
    if decision is None or decision.generation != workload.generation:
        return ""
    return decision.instead


def no_room(workload: Workload, decision: Decision | None) -> bool:
    """Return whether the present spec's last decision found no room for a replica beside those that are there."""
    if decision is None or not workload.surge or decision.generation != workload.generation:
        return False
    return decision.pending > 0 and decision.reason in _NO_ROOM


def canary(seen: Observed) -> CanaryStatus | None:
    """Return what gateways need to know of a canary; None if none is under way.

    Of one that was taken back its replicas keep their share until they have gone.
    """
    workload = seen.workload
    if not workload.canary or workload.wanted is not None or not outdated(workload, seen.live):
        return None
    share = workload.canary if held_back(workload, seen.live) else _WHOLE - workload.canary
    return CanaryStatus(spec_hash=workload.template_hash, traffic_percent=share)


def progress(seen: Observed) -> str:
    """Return how far a rolling update, or the start of the wanted replicas, is."""
    if seen.workload.wanted is None and held_back(seen.workload, seen.live):
        return _canary_progress(seen)
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
    if instead(seen.workload, seen.decision):
        return ": they are replaced in place."
    beside = len(ordinals_of(seen.pods)) > seen.workload.replicas
    return "." if beside else ", and none of them would make enough: they stay."


def _canary_progress(seen: Observed) -> str:
    count, live = seen.current_count, seen.live_count
    parts = [f"Canary: {count} of {live} replicas, {seen.workload.canary} % of requests."]
    if not count and seen.decision is not None and no_room(seen.workload, seen.decision):
        parts.append(f"There is no room for it ({seen.decision.reason}).")
    parts.append("The replicas of the older spec stay until rollout.canaryTrafficPercent is 0 or 100.")
    return " ".join(parts)

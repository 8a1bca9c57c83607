"""How long a workload may run: `spec.scheduling.maxRuntime`, counted from its first replica that has a place. Pure.

The claims say since when each replica is bound, so a restarted operator counts on. First the condition Finished is
written, and pods go when the API server shows it: were they to go first, a crash in between would start the work anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import format_seconds
from llmos_operator.manifests.observed import Refusal
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.state.types import Pod, Workload


def over_at(workload: Workload, pods: Iterable[Pod]) -> float | None:
    """Return when the workload's time is over (epoch seconds), None if it has no end or no place.

    Pods that have ended by themselves do not count: a replica that failed begins anew, with what replaces it.
    """
    if workload.max_runtime is None:
        return None
    bound = (
        pod.claim.bound_at for pod in pods if pod.claim is not None and pod.phase is not PodPhase.FINISHED
    )
    first = min(bound, default=None)
    return None if first is None else first + workload.max_runtime


def verdict(workload: Workload) -> Refusal:
    """Return what is said of a workload whose time is over."""
    allowed = format_seconds(round(workload.max_runtime or 0.0))
    return Refusal(
        Reason.DEADLINE_EXCEEDED,
        f"It has run for {allowed}, as long as spec.scheduling.maxRuntime allows. Create it anew to run it again.",
    )

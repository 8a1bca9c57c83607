"""How long a workload may run: `spec.scheduling.maxRuntime`, counted from its first replica that has a place. Pure.

A Batch has `spec.batch.completionWindow` beside that, counted from its creation: a promise to whoever waits for the result,
which waiting in the queue does not stretch.

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
    """Return when the workload's time is over (epoch seconds), None if it has no end, or none before it has a place.

    Pods that have ended by themselves do not count: a replica that failed begins anew, with what replaces it.
    """
    ends = []
    if workload.completion_window is not None:
        ends.append(workload.created_at + workload.completion_window)
    if workload.max_runtime is not None:
        bound = [
            pod.claim.bound_at for pod in pods if pod.claim is not None and pod.phase is not PodPhase.FINISHED
        ]
        ends += [min(bound) + workload.max_runtime] if bound else []
    return min(ends, default=None)


def verdict(workload: Workload, now: float) -> Refusal:
    """Return what is said of a workload whose time is over."""
    window = workload.completion_window
    if window is not None and now >= workload.created_at + window:
        return Refusal(
            Reason.DEADLINE_EXCEEDED,
            f"It has not ended within {format_seconds(round(window))} of its creation, as spec.batch.completionWindow asks. Create it "
            "anew with the same output to go on where it stopped, or with a longer window.",
        )
    allowed = format_seconds(round(workload.max_runtime or 0.0))
    return Refusal(
        Reason.DEADLINE_EXCEEDED,
        f"It has run for {allowed}, as long as spec.scheduling.maxRuntime allows. Create it anew to run it again.",
    )

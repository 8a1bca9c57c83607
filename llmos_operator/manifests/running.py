"""How work that ends comes along: `status.run` of FineTune and Batch.

It goes on from the status as it stands in the API, so that a restarted operator neither forgets nor counts twice. What
the run has received (`deviceSeconds`) is counted with `status.usage`, and up to the same moment.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from llmos_operator.api.runtime.endings import parse_progress
from llmos_operator.api.v1alpha1.workload_status import RunStatus
from llmos_operator.clock import parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import WorkProgress
    from llmos_operator.manifests.observed import Observed
    from llmos_operator.state.types import Pod

_NOT_YET: Final = math.inf
_SAVED_PRECISION: Final = 2.0  # seconds


def run_of(seen: Observed, former: RunStatus | None) -> RunStatus:
    """Return how the run comes along. What only its pod knows is kept from ``former`` until that has been asked."""
    before = former if former is not None else RunStatus()
    told = _progress(seen)
    ended = rfc3339(_end(seen)) if seen.finished else None
    first = min((pod.claim.bound_at for pod in seen.pods if pod.claim is not None), default=None)
    return before.model_copy(
        update={
            "start_time": before.start_time or (rfc3339(first) if first else None),
            "completion_time": before.completion_time or ended,
            "unit": told.unit[:32] if told is not None else before.unit,
            "done": told.done if told is not None else before.done,
            "total": told.total if told is not None else before.total,
            "failed": told.failed if told is not None else before.failed,
            "saved": told.saved if told is not None else before.saved,
            "last_saved_time": saved_time(seen.now, told, before),
            "failures": seen.tries.failures,
            "last_failed_pod": seen.tries.last_pod,
        }
    )


def saved_time(now: float, told: WorkProgress | None, before: RunStatus) -> str | None:
    """Return when the run last saved. It tells its age in whole seconds, so the time stays where it moves by little."""
    if told is None or told.saved_age_seconds is None:
        return before.last_saved_time
    at = now - told.saved_age_seconds
    if before.last_saved_time and abs(parse_rfc3339(before.last_saved_time) - at) <= _SAVED_PRECISION:
        return before.last_saved_time
    return rfc3339(at)


def _ended_at(seen: Observed, pod: Pod) -> float:
    replica = seen.replicas.get(pod.key)
    end = replica.ended if replica is not None else None
    return end.finished_at if end is not None and end.finished_at else _NOT_YET


def _end(seen: Observed) -> float:
    """Return when a finished run ended: when its program did, else now."""
    ends = [at for pod in seen.pods if (at := _ended_at(seen, pod)) <= seen.now]
    return max(ends, default=seen.now)


def _progress(seen: Observed) -> WorkProgress | None:
    """Return what the youngest pod that says anything says: with its last words, or when it was asked."""
    for pod in sorted(seen.pods, key=lambda one: one.claim.bound_at if one.claim else 0.0, reverse=True):
        replica, report = seen.replicas.get(pod.key), seen.report_of(pod)
        last = parse_progress(replica.ended.message) if replica is not None and replica.ended else None
        told = last or (report.progress if report is not None else None)
        if told is not None and (told.total or told.done):  # a program that just began has not looked yet
            return told
    return None

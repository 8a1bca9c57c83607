"""Why a request gets no replica: the answers of the dispatcher."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.gateway.answers import Refused

if TYPE_CHECKING:
    from llmos_operator.gateway.catalog import Workload

RETRY_AFTER_SECONDS = 10.0  # where nobody knows better


def starting(workload: Workload) -> Refused:
    """No replica is ready, and requests are not held."""
    reason = workload.waiting_for or "no replica is ready yet"
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "workload_starting",
        f"The workload {workload.key} is not ready: {reason}. Try again later.",
        retry_after=_eta(workload),
    )


def overdue(workload: Workload, held_seconds: float) -> Refused:
    """The request was held as long as it may be."""
    reason = workload.waiting_for or "no replica became ready"
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "hold_timeout",
        f"The request waited {held_seconds:.0f} s for the workload {workload.key}: {reason}. Try again later.",
        retry_after=_eta(workload),
    )


def full(workload: Workload, limit: int) -> Refused:
    """No more than ``limit`` requests are held."""
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "hold_queue_full",
        f"Too many requests already wait for the workload {workload.key} (limit {limit}). Try again later.",
        retry_after=_eta(workload),
    )


def hopeless(workload: Workload) -> Refused:
    """No replica serves and none can come up."""
    if workload.suspended:
        return Refused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "workload_suspended",
            f"The workload {workload.key} is suspended; set spec.suspend to false to serve it.",
            retry_after=60.0,
        )
    return Refused(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "workload_failed",
        f"The workload {workload.key} cannot serve: {workload.failure}",
        retry_after=60.0,
    )


def _eta(workload: Workload) -> float:
    if workload.eta_seconds is None:
        return RETRY_AFTER_SECONDS
    return float(min(600, max(1, workload.eta_seconds)))

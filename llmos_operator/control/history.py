"""What a new leader learns from the status its predecessor wrote: failures that hold, and preemptions not yet over.

Reservations are rebuilt from pods; this is the rest of the memory, so that a restart neither retries a model that
cannot be loaded nor forgets to say why a workload waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Condition, Reason
from llmos_operator.clock import parse_rfc3339
from llmos_operator.manifests.observed import Failure, Preemption

if TYPE_CHECKING:
    from collections.abc import Mapping

# Failures of a model that trying again cannot heal.
PERMANENT_REASONS = frozenset(
    {Reason.UNSAFE_CONFIG, Reason.UNSAFE_FORMAT, Reason.UNSUPPORTED, Reason.CORRUPTED}
)


def failure_of(status: Mapping[str, Any], generation: int) -> Failure | None:
    """Return the last failure, as far as it belongs to this generation of the spec."""
    failure = status.get("failure")
    loaded = _condition(status, Condition.MODEL_LOADED)
    if not failure or loaded.get("status") == "True":
        return None
    return Failure(
        reason=str(failure.get("reason", "")),
        message=str(failure.get("message", "")),
        time=time_of(failure.get("time")),
        exit_code=failure.get("exitCode"),
        generation=generation if status.get("observedGeneration") == generation else 0,
    )


def preemption_of(status: Mapping[str, Any]) -> Preemption | None:
    """Return the preemption the workload has not recovered from yet."""
    entry = _condition(status, Condition.PREEMPTED)
    last = status.get("lastPreemption") or {}
    if entry.get("status") != "True":
        return None
    try:
        reason = Reason(str(entry.get("reason")))
    except ValueError:
        reason = Reason.PREEMPTED
    return Preemption(
        by=str(last.get("by", "")),
        action=str(last.get("action", "Evict")),
        reason=reason,
        message=str(entry.get("message", "")),
        time=time_of(last.get("time")),
    )


def _condition(status: Mapping[str, Any], kind: Condition) -> Mapping[str, Any]:
    entries = status.get("conditions") or ()
    return next((entry for entry in entries if entry.get("type") == kind.value), {})


def time_of(text: object) -> float:
    """Return an API time in epoch seconds, 0.0 for none or one that cannot be read."""
    try:
        return parse_rfc3339(str(text)) if text else 0.0
    except ValueError:
        return 0.0


def finish_of(status: Mapping[str, Any]) -> tuple[str, str]:
    """Return reason and message of condition Finished; empty while it has not finished."""
    found = _condition(status, Condition.FINISHED)
    return str(found.get("reason", "")), str(found.get("message", ""))

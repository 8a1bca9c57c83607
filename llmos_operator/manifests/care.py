"""`GPUNode.status.care`: what is done about sick devices, as the API keeps it. Read back by `state.convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.clock import rfc3339

if TYPE_CHECKING:
    from llmos_operator.state.care import Care, Treatment


def care_status(node: str, care: Care) -> dict[str, Any]:
    """Return the body of a status apply. Everything the writer owns stands in it: what is left out is taken away."""
    told: dict[str, Any] = {"treatments": [_treatment(one) for one in care.treatments]}
    if care.disturbed_at:
        told["disturbedAt"] = rfc3339(care.disturbed_at)
    if care.cordoned:
        told["cordoned"] = True
    return {"metadata": {"name": node}, "status": {"care": told}}


def _treatment(one: Treatment) -> dict[str, Any]:
    return {
        "target": one.target,
        "action": one.action,
        "reason": one.reason,
        "phase": one.phase.value,
        "since": rfc3339(one.since),
        "times": one.times,
    }

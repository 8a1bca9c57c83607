"""Which trace a placement is told in: derived from what the claim on the pod says, so that every operator finds the same.

Pure; `observability.tracing` knows what to do with it. A placement is one replica on one place: a replica that is evicted and
bound again has a new trace, the pods of a gang share one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.state.types import Claim

_TRACE_DIGITS = 32
_SPAN_DIGITS = 16
_MILLISECONDS = 1000


def trace_id(claim: Claim) -> str:
    """Return the trace of a claim's placement."""
    return _digest(claim)[:_TRACE_DIGITS]


def span_id(claim: Claim, name: str = "placement") -> str:
    """Return the id of one span of the trace: by default of the first one, which is about the whole placement.

    Spans about one pod of several name the pod, too.
    """
    return _digest(claim, name)[:_SPAN_DIGITS]


def traceparent(claim: Claim) -> str:
    """Return what the pod is told, so that what its runtime does becomes part of the trace. Placements are always sampled."""
    return f"00-{trace_id(claim)}-{span_id(claim)}-01"


def _digest(claim: Claim, *more: str) -> str:
    placed = (claim.workload_uid, str(claim.ordinal), str(round(claim.bound_at * _MILLISECONDS)))
    return hashlib.sha256("/".join((*placed, *more)).encode()).hexdigest()

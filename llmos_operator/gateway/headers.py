"""Which headers cross the gateway.

Hop-by-hop headers end here (RFC 9110 section 7.6.1). Credentials that the gateway checked itself are not shown to
replicas, nor can a client forge what the gateway says about a request.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from multidict import CIMultiDict

from llmos_operator.observability.tracing import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.observability.tracing import TraceContext

REQUEST_ID = "X-Request-Id"
NAMESPACE = "X-LLMOS-Namespace"
KEY = "X-LLMOS-Key"
REFUSED = "X-LLMOS-Refused"  # a replica's word: this request was not begun, another replica may take it
WORKLOAD = "X-LLMOS-Workload"

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The body is sent anew, in full and decoded; streams must arrive uncompressed to be passed on line by line.
_REQUEST_ONLY = frozenset(
    {"host", "content-length", "content-encoding", "accept-encoding", "expect", "cookie"}
)
_FORGEABLE = ("x-forwarded-", "x-llmos-", "x-real-ip", "forwarded")
_RESPONSE_ONLY = frozenset({"content-length", "server", "date", "set-cookie"})
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(headers: Mapping[str, str]) -> str:
    """Return the client's request id if it is sane, else a new one of 128 random bits."""
    given = headers.get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)


def to_replica(
    headers: CIMultiDict[str] | Mapping[str, str], *, request_id: str, remote: str, strip_authorization: bool
) -> CIMultiDict[str]:
    """Return the headers to send to a replica."""
    dropped = _HOP_BY_HOP | _REQUEST_ONLY | _named_in_connection(headers)
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lower = name.lower()
        if lower in dropped or lower.startswith(_FORGEABLE):
            continue
        if strip_authorization and lower == "authorization":
            continue
        kept.add(name, value)
    kept[REQUEST_ID] = request_id
    if remote:
        kept["X-Forwarded-For"] = remote
    return kept


def tell_span(forwarded: CIMultiDict[str], span: TraceContext | None) -> None:
    """Make ``span`` the one the replica's work is part of, instead of the client's."""
    for name in (TRACEPARENT, TRACESTATE):
        forwarded.popall(name, None)
    if span is not None:
        forwarded[TRACEPARENT] = span.parent
        if span.state:
            forwarded[TRACESTATE] = span.state


def to_client(headers: Mapping[str, str], *, request_id: str, workload: str) -> CIMultiDict[str]:
    """Return the headers to send to the client."""
    dropped = _HOP_BY_HOP | _RESPONSE_ONLY | _named_in_connection(headers)
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.lower() not in dropped:
            kept.add(name, value)
    kept[REQUEST_ID] = request_id
    kept[WORKLOAD] = workload
    return kept


def _named_in_connection(headers: Mapping[str, str]) -> frozenset[str]:
    named = headers.get("Connection", "")
    return frozenset(part.strip().lower() for part in named.split(",")) if named else frozenset()

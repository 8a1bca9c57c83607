"""What the gateway's spans are called and say: the request as the client sees it, the hold, and each attempt at a replica.

Names and values follow OpenTelemetry's conventions for HTTP and for generative AI (open-telemetry/semantic-conventions-genai,
docs/gen-ai/gen-ai-spans.md, status Development in November 2026). docs/tracing.md is the table.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from llmos_operator.observability.tracing import ERROR_TYPE

if TYPE_CHECKING:
    from aiohttp import web

    from llmos_operator.gateway.answers import Refused
    from llmos_operator.gateway.catalog import Replica, Workload
    from llmos_operator.gateway.proxy import Exchange
    from llmos_operator.observability.tracing import Attributes, Span, Value

HOLD: Final = "hold"
CLIENT_GONE: Final = "client_gone"
CANCELLED: Final = "cancelled"  # an attempt whose client left, or whose time was over
_PROVIDER: Final = "llmos"
# gen_ai.operation.name by path.
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "score",
    "/v1/score": "score",
    "/classify": "classify",
    "/rerank": "score",
    "/score": "score",
    "/v2/rerank": "score",
}
_ROUTES: Final = frozenset({*_OPERATIONS, "/v1/models", "/v1/tokenize", "/v1/detokenize"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def route(path: str) -> str:
    """Return the path if it is one of a few, else its pattern: a client's words do not become names."""
    if path in _ROUTES:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "/v1/{path}"


def server_name(request: web.BaseRequest) -> str:
    """Return the name of a request's span."""
    return f"{_method(request)} {route(request.rel_url.raw_path)}"


def of_request(request: web.BaseRequest, request_id: str) -> Attributes:
    """Return what is known of a request when it arrives."""
    return {
        "http.request.method": _method(request),
        "http.route": route(request.rel_url.raw_path),
        "url.scheme": "http",
        "llmos.request.id": request_id,
    }


def told(span: Span, exchange: Exchange, status: int) -> None:
    """Add what became of a request that found its workload."""
    lead = exchange.route.lead
    found: dict[str, Value] = {
        "llmos.namespace": lead.key.namespace,
        "llmos.workload": lead.key.name,
        "llmos.attempts": len(exchange.tried) + bool(exchange.status),
        "llmos.held.seconds": round(exchange.held_seconds, 6),
    }
    if exchange.usage.exact:
        found |= _usage(exchange)
    span.set(found)
    answered(span, status)


def answered(span: Span, status: int) -> None:
    """Add the status of an answer; whose fault an error is decides whether the span is one (conventions for HTTP)."""
    if status == _CLIENT_CLOSED:
        span.fail(CLIENT_GONE)
        return
    span.set({"http.response.status_code": status})
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(str(status))


def refused(span: Span, refusal: Refused) -> None:
    """Add why the gateway answered with an error itself."""
    if span.recording:
        answered(span, refusal.status)
        span.set({ERROR_TYPE: refusal.code})


def held(span: Span, how: str) -> None:
    """End the span of a hold: served, timeout, gone, or the code of a refusal."""
    span.set({"llmos.hold.ended": how})
    if how != "served":
        span.fail(how)
    span.end()


def attempt_name(exchange: Exchange, model: str) -> str:
    """Return the name of the span of one attempt."""
    path = exchange.request.rel_url.raw_path
    operation = _OPERATIONS.get(path)
    return f"{operation} {model}" if operation else f"{_method(exchange.request)} {route(path)}"


def of_attempt(exchange: Exchange, replica: Replica, workload: Workload, model: str) -> Attributes:
    """Return what is known of an attempt before it is sent."""
    found: dict[str, Value] = {
        "http.request.method": _method(exchange.request),
        "server.address": replica.host,
        "server.port": replica.port,
        "llmos.namespace": workload.key.namespace,
        "llmos.workload": workload.key.name,
        "llmos.replica": replica.name.rpartition("/")[2],
        "llmos.attempt": len(exchange.tried) + 1,
    }
    operation = _OPERATIONS.get(exchange.request.rel_url.raw_path)
    if operation:
        found |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": model,
        }
    return found


def first_byte(span: Span, seconds: float, *, streamed: bool) -> None:
    """Note the first of an answer: a runtime sends a stream's headers with its first token."""
    span.event("llmos.first_byte")
    if streamed:
        span.set({"gen_ai.request.stream": True, "gen_ai.response.time_to_first_chunk": round(seconds, 6)})


def attempted(span: Span, exchange: Exchange) -> None:
    """Add what became of an attempt that was answered."""
    if exchange.usage.exact:
        span.set(_usage(exchange))
    answered(span, exchange.status)
    if HTTPStatus.BAD_REQUEST <= exchange.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(str(exchange.status))  # for who calls, any refusal is an error


def _usage(exchange: Exchange) -> dict[str, Value]:
    return {
        "gen_ai.usage.input_tokens": exchange.usage.prompt,
        "gen_ai.usage.output_tokens": exchange.usage.completion,
    }


def _method(request: web.BaseRequest) -> str:
    return request.method if request.method in _METHODS else "_OTHER"


_CLIENT_CLOSED: Final = 499  # as nginx counts a client that left

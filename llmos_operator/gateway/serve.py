"""The HTTP face of the gateway: who asks, for what, and where it goes; errors in OpenAI's shape.

It runs on aiohttp's low-level server: no router or middleware stands between a request and :meth:`Front.handle`, and
a handler is cancelled when its client leaves.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from llmos_operator.gateway import headers, spans
from llmos_operator.gateway.answers import Refused
from llmos_operator.gateway.body import Asked, read_json, read_multipart
from llmos_operator.gateway.catalog import Ambiguous, Unknown
from llmos_operator.gateway.keys import ANONYMOUS, Client
from llmos_operator.gateway.models import describe_model, list_models
from llmos_operator.gateway.proxy import CLIENT_LEFT, Exchange, bounded, spent
from llmos_operator.observability import tracing
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.gateway.catalog import Catalog, Rate, Route
    from llmos_operator.gateway.demand import Demand
    from llmos_operator.gateway.intake import Intake
    from llmos_operator.gateway.keys import KeyRing
    from llmos_operator.gateway.limits import Limiter
    from llmos_operator.gateway.metrics import Metrics
    from llmos_operator.gateway.proxy import Proxy
    from llmos_operator.observability.tracing import Tracer

log = logger(__name__)

# What vLLM serves outside of /v1/ and clients know by that name.
_BARE = frozenset({"/classify", "/rerank", "/score", "/v2/rerank"})
_PATH = re.compile(r"/v1/models/[!-~]+|/v1(/[A-Za-z0-9_.~-]+)+/?")
_POST_ONLY = frozenset(
    {
        *_BARE,
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v1/tokenize",
    }
)
# Administration of a replica is the operator's business, never a client's.
_CLOSED = re.compile(r"/v1/(un)?load_lora_adapter|.*/\.{1,2}(/|$).*")
_BODILESS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_DELETE})


@dataclass(frozen=True, slots=True)
class Rules:
    """What a request may be."""

    max_depth: int
    request_seconds: float
    default_namespace: str
    hosts: Mapping[str, str]
    access_log: bool


@dataclass(slots=True)
class Front:
    """Answers every request of the serving port."""

    catalog: Catalog
    keys: KeyRing
    limiter: Limiter
    intake: Intake
    proxy: Proxy
    demand: Demand
    metrics: Metrics
    rules: Rules
    monotonic: Callable[[], float]
    synced: Callable[[], bool]
    tracer: Tracer = tracing.OFF
    draining: bool = False
    active: int = 0  # requests being answered
    quiet: asyncio.Event = field(default_factory=asyncio.Event)  # set while none is being answered

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        request_id = headers.request_id(request.headers)
        if self.tracer.on:
            return await self._traced(request, request_id)
        return await self._handle(request, request_id)

    async def _traced(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        """Answer one request within a span of its own, below the client's if it names one."""
        given = request.headers.get
        span = self.tracer.start(
            spans.server_name(request),
            tracing.Kind.SERVER,
            parent=tracing.parse(given(tracing.TRACEPARENT), given(tracing.TRACESTATE)),
            attributes=spans.of_request(request, request_id),
        )
        try:
            with tracing.entered(span):
                response = await self._handle(request, request_id)
        except (asyncio.CancelledError, ConnectionError):
            span.fail(spans.CLIENT_GONE)
            raise
        else:
            return response
        finally:
            span.end()

    async def _handle(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        arrived = self.monotonic()
        self.active += 1
        self.quiet.clear()
        try:
            response = await self._answer(request, request_id, arrived)
        except Refused as refusal:
            self.metrics.refused.labels(refusal.code).inc()
            spans.refused(tracing.current(), refusal)
            response = refusal.response()
            response.headers[headers.REQUEST_ID] = request_id
        finally:
            self.active -= 1
            if not self.active:
                self.quiet.set()
        if self.draining and not response.prepared:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest, request_id: str, arrived: float) -> web.StreamResponse:
        try:
            client = self._admit(request)
            path = request.rel_url.raw_path
            if path == "/v1/models" or path.startswith("/v1/models/"):
                response = self._models(request, path, client)
                spans.answered(tracing.current(), response.status)
                return response
            exchange = await self._exchange(request, request_id, arrived, client)
        except Refused as refusal:
            self._log(request, request_id, arrived, refusal.status, code=refusal.code)
            raise
        return await self._forward(exchange, client)

    def _admit(self, request: web.BaseRequest) -> Client:
        """Return who asks, if path, method, key and rate allow the request."""
        path = request.rel_url.raw_path
        if not (path in _BARE or _PATH.fullmatch(path)) or _CLOSED.fullmatch(path):
            raise Refused(
                HTTPStatus.NOT_FOUND,
                "unknown_url",
                f"Unknown request URL: {request.method} {path[:200]}. The API begins with /v1/.",
            )
        allowed = "GET" if path.startswith("/v1/models") else "POST" if path in _POST_ONLY else ""
        if allowed and request.method not in {allowed, "HEAD" if allowed == "GET" else allowed}:
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method_not_allowed",
                f"Not allowed to {request.method} on {path}; use {allowed}.",
                headers={"Allow": allowed},
            )
        if not self.synced():
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "gateway_starting",
                "The gateway has not yet read which models there are. Try again in a second.",
                retry_after=1.0,
            )
        client = self._client(request)
        self._limit(client.name, f"key:{client.name}", client.rate)
        return client

    async def _exchange(
        self, request: web.BaseRequest, request_id: str, arrived: float, client: Client
    ) -> Exchange:
        """Read the request and find out where it goes."""
        raw = b"" if request.method in _BODILESS else await self.intake.read(request)
        try:
            asked = self._asked(request, raw)
            route = self._route(request, asked.model, client)
            lead = route.lead
            self._limit(str(lead.key), f"workload:{lead.key}:{client.name}", lead.rate)
        except BaseException:
            self.intake.store.give_back(len(raw))
            raise
        own_key = self.keys.required and headers.KEY not in request.headers
        forwarded = headers.to_replica(
            request.headers, request_id=request_id, remote=request.remote or "", strip_authorization=own_key
        )
        return Exchange(
            request=request,
            request_id=request_id,
            tenant=client.name,
            route=route,
            asked=asked,
            forwarded=forwarded,
            arrived=arrived,
            stored=len(raw),
        )

    async def _forward(self, exchange: Exchange, client: Client) -> web.StreamResponse:
        key = exchange.route.lead.key
        self.demand.arrived(key)
        self.metrics.in_flight.labels(*key).inc()
        status = 0
        try:
            response = await bounded(self.rules.request_seconds, self.proxy, exchange)
            status = exchange.status
        except Refused as refusal:
            status = refusal.status
            raise
        except (asyncio.CancelledError, ConnectionError):
            status = CLIENT_LEFT
            self.metrics.client_gone.labels(*key).inc()
            raise
        else:
            return response
        finally:
            self._settle(exchange, client, status)

    def _settle(self, exchange: Exchange, client: Client, status: int) -> None:
        """Count what a request was, whichever way it ended."""
        lead, now = exchange.route.lead, self.monotonic()
        if (span := tracing.current()).recording:
            spans.told(span, exchange, status)
        self.metrics.in_flight.labels(*lead.key).dec()
        self.metrics.requests.labels(*lead.key, str(status)).inc()
        self.metrics.seconds.labels(*lead.key).observe(now - exchange.arrived)
        for kind, tokens in spent(exchange.usage).items():
            self.metrics.tokens.labels(*lead.key, kind).inc(tokens)
        total = exchange.usage.total
        self.limiter.spend_tokens(f"key:{client.name}", client.rate, total, now)
        self.limiter.spend_tokens(f"workload:{lead.key}:{client.name}", lead.rate, total, now)
        self._log(
            exchange.request,
            exchange.request_id,
            exchange.arrived,
            status,
            workload=str(lead.key),
            client=client.name,
            held=round(exchange.held_seconds, 3),
            usage=total,
        )

    # ------------------------------------------------------------ parts of a request

    def _client(self, request: web.BaseRequest) -> Client:
        if not self.keys.required:
            return ANONYMOUS
        given = request.headers.get(headers.KEY) or _bearer(request.headers.get("Authorization", ""))
        client = self.keys.client(given) if given else None
        if client is None:
            text = (
                "Incorrect API key provided."
                if given
                else "You didn't provide an API key (Authorization: Bearer …)."
            )
            raise Refused(
                HTTPStatus.UNAUTHORIZED, "invalid_api_key", text, headers={"WWW-Authenticate": "Bearer"}
            )
        return client

    def _limit(self, name: str, who: str, rate: Rate) -> None:
        exceeded = self.limiter.take(who, rate, self.monotonic())
        if exceeded is not None:
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                f"Rate limit of {name or 'this gateway'} reached: {exceeded.limit} {exceeded.what} per minute.",
                retry_after=exceeded.retry_after,
            )

    def _asked(self, request: web.BaseRequest, raw: bytes) -> Asked:
        if request.method in _BODILESS:
            model = request.rel_url.query.get("model", "")
            if not model:
                raise Refused(
                    HTTPStatus.BAD_REQUEST,
                    "missing_required_parameter",
                    "Missing required parameter: 'model' (in the query, for requests without a body).",
                    param="model",
                )
            return Asked(raw=b"", model=model)
        if request.content_type == "multipart/form-data":
            return read_multipart(raw)
        return read_json(raw, max_depth=self.rules.max_depth)

    def _route(self, request: web.BaseRequest, model: str, client: Client) -> Route:
        hint = request.headers.get(headers.NAMESPACE, "") or self.rules.hosts.get(_host(request), "")
        found = self.catalog.resolve(
            model, namespace=hint or self.rules.default_namespace, allowed=client.may_use
        )
        if isinstance(found, Unknown):
            known = ", ".join(found.known) + (f" and {found.more} more" if found.more else "")
            raise Refused(
                HTTPStatus.NOT_FOUND,
                "model_not_found",
                f"The model `{model}` does not exist. Known models: {known or 'none'}.",
                param="model",
            )
        if isinstance(found, Ambiguous):
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                "ambiguous_model",
                f"Several namespaces serve `{model}`: ask for one of {', '.join(found.choices)}, "
                f"or name the namespace in the header {headers.NAMESPACE}.",
                param="model",
            )
        return found

    def _models(self, request: web.BaseRequest, path: str, client: Client) -> web.Response:
        if path.rstrip("/") == "/v1/models":
            return list_models(self.catalog, client.may_use)
        model = request.rel_url.path.removeprefix("/v1/models/")
        return describe_model(self.catalog, self._route(request, model, client), client.may_use)

    def _log(
        self, request: web.BaseRequest, request_id: str, arrived: float, status: int, **values: object
    ) -> None:
        if self.rules.access_log:
            log.info(
                "request",
                method=request.method,
                path=request.rel_url.raw_path[:200],
                status=status,
                seconds=round(self.monotonic() - arrived, 4),
                request=request_id,
                **values,
            )


def _bearer(value: str) -> str:
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _host(request: web.BaseRequest) -> str:
    return request.headers.get(hdrs.HOST, "").partition(":")[0].lower()

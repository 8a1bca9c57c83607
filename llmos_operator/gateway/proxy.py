"""The way of one request: replica, sending, streaming back; and what to do when any of it fails.

A request goes to another replica only when the first one cannot have begun it: the connection failed, or the replica
declined it. Everything that arrives is passed on at once. When the client leaves, the handler is cancelled, which
closes the connection to the replica, which stops the generation.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from llmos_operator.gateway import headers, spans
from llmos_operator.gateway.answers import Refused, error_body
from llmos_operator.gateway.body import with_model
from llmos_operator.gateway.canary import is_new
from llmos_operator.gateway.upstream import Broken, NotSent, chunks, declined
from llmos_operator.gateway.usage import NOTHING, Meter, Usage
from llmos_operator.observability import tracing
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import ClientResponse
    from multidict import CIMultiDict

    from llmos_operator.gateway.affinity import Prompt
    from llmos_operator.gateway.balance import Balancer
    from llmos_operator.gateway.body import Asked
    from llmos_operator.gateway.catalog import Replica, Route, Workload
    from llmos_operator.gateway.demand import Demand
    from llmos_operator.gateway.dispatch import Dispatcher
    from llmos_operator.gateway.intake import BodyStore
    from llmos_operator.gateway.metrics import Metrics
    from llmos_operator.gateway.upstream import Upstream
    from llmos_operator.observability.tracing import Tracer

log = logger(__name__)

ATTEMPTS = 8  # replicas tried for one request, each time without anything begun
EVENT_STREAM = "text/event-stream"
CLIENT_LEFT = 499  # as nginx counts it
OVERLOADED = "overloaded"  # a declined request whose replica is healthy but full


@dataclass(eq=False, slots=True)
class Exchange:
    """One request on its way: what is known of it and what it holds."""

    request: web.BaseRequest
    request_id: str
    tenant: str
    route: Route
    asked: Asked
    forwarded: CIMultiDict[str]  # headers for the replica
    arrived: float  # monotonic seconds
    stored: int  # bytes counted in the body store
    tried: set[str] = field(default_factory=set)
    usage: Usage = NOTHING
    held_seconds: float = 0.0
    status: int = 0  # of the answer; 0 until it is known
    prompt: Prompt | None = None  # what makes it go where prompts went that begin alike
    overdue: Callable[[], bool] = lambda: False  # whether what cancels it is the limit on its time


@dataclass(frozen=True, slots=True)
class Proxy:
    """Sends requests to replicas and their answers back."""

    dispatcher: Dispatcher
    balancer: Balancer
    upstream: Upstream
    demand: Demand
    store: BodyStore
    metrics: Metrics
    monotonic: Callable[[], float]
    hold_seconds: float
    draining: Callable[[], bool]
    tracer: Tracer = tracing.OFF

    async def run(self, exchange: Exchange) -> web.StreamResponse:
        """Return the finished response. Raises Refused before anything was sent to the client."""
        try:
            return await self._attempts(exchange)
        finally:
            self._free_body(exchange)

    async def _attempts(self, exchange: Exchange) -> web.StreamResponse:
        deadline = exchange.arrived + self.hold_seconds
        exchange.prompt = self.dispatcher.prompt(exchange.route, exchange.tenant, exchange.asked.document)
        last = ""
        for _ in range(ATTEMPTS):
            replica = await self._acquire(exchange, deadline)
            workload = self._workload_of(exchange.route, replica)
            self.demand.began(workload.key)
            try:
                return await self._counted(exchange, replica, workload)
            except NotSent as error:
                last = error.reason
                self.balancer.refused(replica.uid, self.monotonic())
                self.dispatcher.not_begun(replica, exchange.prompt)
                log.warning(
                    "replica unreachable", replica=replica.name, workload=str(workload.key), error=error
                )
            finally:
                self.demand.ended(workload.key)
                self.dispatcher.release(exchange.route, replica)
            exchange.tried.add(replica.uid)
            self.metrics.retries.labels(*workload.key, last).inc()
        raise Refused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "replicas_unreachable",
            f"No replica of {exchange.route.lead.key} could be reached in {ATTEMPTS} tries ({last}).",
            retry_after=5.0,
        )

    async def _acquire(self, exchange: Exchange, deadline: float) -> Replica:
        began = self.monotonic()
        try:
            return await self.dispatcher.acquire(
                exchange.route,
                exchange.tenant,
                tried=exchange.tried,
                deadline=deadline,
                prompt=exchange.prompt,
            )
        finally:
            exchange.held_seconds += self.monotonic() - began

    async def _counted(self, exchange: Exchange, replica: Replica, workload: Workload) -> web.StreamResponse:
        """Make an attempt and count how it ended by the side of the canary that it went to, if one is under way."""
        attempt = self._traced if self.tracer.on else self._attempt
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        try:
            response = await attempt(exchange, replica, workload)
            status = exchange.status
        except NotSent:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise
        except Refused as refusal:
            status = refusal.status
            raise
        except (asyncio.CancelledError, ConnectionError):
            status = HTTPStatus.GATEWAY_TIMEOUT if exchange.overdue() else CLIENT_LEFT
            raise
        else:
            return response
        finally:
            if workload.canary_percent:
                side = "new" if is_new(workload, replica) else "old"
                self.metrics.canary_requests.labels(*workload.key, side, str(int(status))).inc()

    async def _traced(self, exchange: Exchange, replica: Replica, workload: Workload) -> web.StreamResponse:
        """Make an attempt within a span of its own, which the replica is told."""
        model = exchange.route.model_of(workload)
        above = tracing.current().context
        span = self.tracer.start(
            spans.attempt_name(exchange, model),
            tracing.Kind.CLIENT,
            parent=above,
            attributes=spans.of_attempt(exchange, replica, workload, model),
        )
        headers.tell_span(exchange.forwarded, span.context)
        try:
            with tracing.entered(span):
                response = await self._attempt(exchange, replica, workload)
        except NotSent as error:
            span.fail(error.reason)
            raise
        except Refused as refusal:
            span.fail(refusal.code)
            raise
        except (asyncio.CancelledError, ConnectionError):
            span.fail(spans.CANCELLED)
            raise
        else:
            spans.attempted(span, exchange)
            return response
        finally:
            span.end()

    async def _attempt(self, exchange: Exchange, replica: Replica, workload: Workload) -> web.StreamResponse:
        """Send to one replica. Raises NotSent if another may be tried."""
        asked = exchange.asked
        model = exchange.route.model_of(workload)
        body = asked.raw if asked.model == model else with_model(asked, model)
        sent = self.monotonic()
        self.metrics.overhead.observe(sent - exchange.arrived - exchange.held_seconds)
        try:
            answer = await self.upstream.send(
                exchange.request.method,
                replica,
                exchange.request.rel_url.raw_path_qs,
                exchange.forwarded,
                body or None,
            )
        except Broken as error:
            raise self._lost(error, replica, workload) from error
        try:
            self._decline(exchange, answer, replica, last_chance=len(exchange.tried) + 1 >= ATTEMPTS)
            now = self.monotonic()
            self.balancer.answered(replica.uid, now - sent, now)
            self.dispatcher.began(workload, exchange.prompt)
            self.metrics.first_byte.labels(*workload.key).observe(now - sent)
            if self.tracer.on:
                streamed = answer.content_type == EVENT_STREAM
                spans.first_byte(tracing.current(), now - sent, streamed=streamed)
            self._free_body(exchange)
            return await self._relay(exchange, answer, replica, workload)
        finally:
            # Whatever has not been read is not wanted any more.
            answer.close()

    def _decline(
        self, exchange: Exchange, answer: ClientResponse, replica: Replica, *, last_chance: bool
    ) -> None:
        """Raise NotSent if the replica did not begin the request and another one should have it."""
        why = declined(answer)
        if not why or last_chance:
            return
        if why == OVERLOADED:
            others = self.dispatcher.others(exchange.route, exchange.tried | {replica.uid})
            if not others:
                return  # everybody is full: its 429 and Retry-After are the client's answer
        raise NotSent(why, f"declined: {why}")

    async def _relay(
        self, exchange: Exchange, answer: ClientResponse, replica: Replica, workload: Workload
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status,
            reason=answer.reason,
            headers=headers.to_client(
                answer.headers, request_id=exchange.request_id, workload=str(workload.key)
            ),
        )
        response.content_length = answer.content_length
        if self.draining():
            response.force_close()
        streamed = answer.content_type == EVENT_STREAM
        meter = Meter(stream=streamed)
        exchange.status = answer.status
        try:
            await response.prepare(exchange.request)
            async for chunk in chunks(answer):
                meter.feed(chunk)
                await response.write(chunk)
            await response.write_eof()
        except Broken as error:
            await self._break_off(exchange, response, error, replica, workload, streamed=streamed)
        finally:
            exchange.usage = meter.usage()
        return response

    async def _break_off(
        self,
        exchange: Exchange,
        response: web.StreamResponse,
        error: Broken,
        replica: Replica,
        workload: Workload,
        *,
        streamed: bool,
    ) -> None:
        """Tell the client that the answer is incomplete: by an error event in a stream, else by a cut connection."""
        refusal = self._lost(error, replica, workload)
        exchange.status = refusal.status
        response.force_close()
        if streamed:
            event = error_body("server_error", refusal.code, refusal.message)
            await response.write(b"data: " + event + b"\n\n")
            await response.write_eof()
        elif exchange.request.transport is not None:
            exchange.request.transport.abort()

    def _lost(self, error: Broken, replica: Replica, workload: Workload) -> Refused:
        self.metrics.upstream_errors.labels(*workload.key, error.reason).inc()
        self.balancer.refused(replica.uid, self.monotonic(), rest=1.0)
        log.warning("replica broke off", replica=replica.name, workload=str(workload.key), error=error)
        return Refused(
            HTTPStatus.BAD_GATEWAY,
            "replica_lost",
            f"The replica of {workload.key} that worked on this request was lost ({error.reason}). Send it again.",
        )

    def _workload_of(self, route: Route, replica: Replica) -> Workload:
        return next((w for w in route.workloads if w.uid == replica.workload_uid), route.lead)

    def _free_body(self, exchange: Exchange) -> None:
        self.store.give_back(exchange.stored)
        exchange.stored = 0


def spent(usage: Usage) -> Mapping[str, int]:
    """Return the tokens to count, by kind."""
    return {"prompt": usage.prompt, "completion": usage.completion} if usage.exact else {}


async def bounded(seconds: float, proxy: Proxy, exchange: Exchange) -> web.StreamResponse:
    """Run an exchange with a limit on its whole time.

    Raises Refused (504) if nothing was sent by then, else cuts the connection: the client sees a broken answer.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            exchange.overdue = limit.expired
            return await proxy.run(exchange)
    except TimeoutError:
        text = f"The request took longer than {seconds:.0f} s altogether."
        if exchange.status:
            raise ConnectionAbortedError(text) from None
        raise Refused(HTTPStatus.GATEWAY_TIMEOUT, "request_timeout", text) from None

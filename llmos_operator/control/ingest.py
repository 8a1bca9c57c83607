"""The operator's own HTTP server: telemetry from agents, demand from gateways.

Both prove who they are with their ServiceAccount token; an agent may speak for its own node only, which the API server
vouches for in the token. Authentication comes before the body is read, bodies are bounded, and a replica that does not
lead answers 503, so that nobody feeds a process that decides nothing.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import ValidationError

from llmos_operator.api.telemetry import DemandBatch
from llmos_operator.control.identity import NODE_EXTRA, Identities, TooManyTokens, account
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.ingest import MAX_BODY, BadBatch, Ingest

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import TokenIdentity
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.telemetry.ingest import Report

log = logger(__name__)


class IngestServer:
    """Serves `POST /v1/telemetry` and `POST /v1/demand`."""

    def __init__(
        self,
        identities: Identities,
        metrics: OperatorMetrics,
        clock: Clock,
        *,
        namespace: str,
        agent: str,
        gateway: str,
        leading: Callable[[], bool],
        on_telemetry: Callable[[Report], None],
        on_demand: Callable[[DemandBatch], None],
    ) -> None:
        """`agent` and `gateway` are ServiceAccounts of `namespace`."""
        self.port = 0
        self._identities = identities
        self._metrics = metrics
        self._clock = clock
        self._agent = account(namespace, agent)
        self._gateway = account(namespace, gateway)
        self._leading = leading
        self._on_telemetry = on_telemetry
        self._on_demand = on_demand
        self._batches = Ingest()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen on ``host:port``; port 0 picks one. Raises OSError if it is taken."""
        app = web.Application(client_max_size=MAX_BODY + 1)
        app.router.add_post("/v1/telemetry", self._telemetry)
        app.router.add_post("/v1/demand", self._demand)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = int(self._runner.addresses[0][1])
        log.info("ingest server listens", host=host, port=self.port)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def forget_node(self, node: str) -> None:
        """Drop what is known of the telemetry of a node that is gone."""
        self._batches.forget(node)

    async def _telemetry(self, request: web.Request) -> web.Response:
        identity = await self._sender(request, self._agent)
        node = identity.extra_value(NODE_EXTRA)
        if not node:
            raise web.HTTPForbidden(text="the token is not bound to a node; use the pod's own token\n")
        body = await request.read()
        try:
            report = self._batches.accept(body, node, self._clock.monotonic())
        except BadBatch as error:
            self._metrics.telemetry.labels(str(error.reason)).inc()
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
        self._metrics.telemetry.labels("accepted" if report is not None else "late").inc()
        if report is not None:
            self._on_telemetry(report)
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _demand(self, request: web.Request) -> web.Response:
        await self._sender(request, self._gateway)
        try:
            batch = DemandBatch.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{where}: {first['msg']}\n")
        self._on_demand(batch)
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _sender(self, request: web.Request, wanted: str) -> TokenIdentity:
        """Return the sender's identity; answers 401, 403, 429 or 503 otherwise, before the body is read."""
        if not self._leading():
            raise web.HTTPServiceUnavailable(text="not the leader\n", headers={"Retry-After": "1"})
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise web.HTTPUnauthorized(
                text="a ServiceAccount token is needed\n", headers={"WWW-Authenticate": "Bearer"}
            )
        try:
            identity = await self._identities.identify(token.strip(), request.remote or "")
        except TooManyTokens as error:
            answer = web.HTTPTooManyRequests if error.of_source else web.HTTPServiceUnavailable
            raise answer(text=f"{error}\n", headers={"Retry-After": "2"}) from error
        except LlmosError as error:
            log.warning("token not reviewed", error=error)
            raise web.HTTPServiceUnavailable(
                text="tokens cannot be checked now\n", headers={"Retry-After": "2"}
            ) from error
        if identity is None:
            raise web.HTTPUnauthorized(
                text="the token is not valid\n", headers={"WWW-Authenticate": "Bearer"}
            )
        if identity.username != wanted:
            raise web.HTTPForbidden(text=f"{identity.username} may not send this; {wanted} may\n")
        return identity

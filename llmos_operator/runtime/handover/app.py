"""Routes of the serving API before a vLLM."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from llmos_operator import __version__
from llmos_operator.observability.metrics import render
from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.app import on_api_error, on_http_error, probe
from llmos_operator.runtime.exchange import BODY_SECONDS, json_reply
from llmos_operator.runtime.handover import figures
from llmos_operator.runtime.handover.link import EngineLost, Refused
from llmos_operator.runtime.handover.relay import ROUTES, Relayed

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.drain import Drain
    from llmos_operator.runtime.handover.host import VllmHost
    from llmos_operator.runtime.metrics import FrontMetrics

_METRICS_SECONDS = 5.0


class RelayApi:
    """Handlers of the serving API."""

    def __init__(
        self,
        host: VllmHost,
        admission: Admission,
        drain: Drain,
        metrics: FrontMetrics,
        registry: CollectorRegistry,
        live: Callable[[], str],
    ) -> None:
        """``live`` returns "" or why the process should be restarted."""
        self._host = host
        self._admission = admission
        self._drain = drain
        self._metrics = metrics
        self._registry = registry
        self._live = live

    def build(self) -> Starlette:
        """Return the application."""
        relayed = [
            Route(path, partial(self.relay, *where), methods=["POST"]) for path, where in ROUTES.items()
        ]
        return Starlette(
            routes=[
                *relayed,
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{name:path}", self.model, methods=["GET"]),
                Route("/livez", self.livez, methods=["GET"]),
                Route("/readyz", self.readyz, methods=["GET"]),
                Route("/health", self.readyz, methods=["GET"]),
                Route("/startupz", self.startupz, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/version", self.version, methods=["GET"]),
            ],
            exception_handlers={ApiError: on_api_error, HTTPException: on_http_error},
        )

    async def relay(self, path: str, part: str, request: Request) -> Response:
        """Pass a request on."""
        apis = self._host.settings.apis
        if apis and part != "*" and part not in apis:
            text = f"{request.url.path} is not served by this workload: its spec.serving.apis are {', '.join(apis)}."
            raise ApiError(HTTPStatus.NOT_FOUND, "unsupported_endpoint", text)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.body()
        except TimeoutError:
            text = f"The request body did not arrive within {BODY_SECONDS:.0f} s."
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", text) from None
        self._host.require()
        return Relayed(
            self._host.link,
            self._admission,
            self._drain,
            self._metrics,
            path,
            request.headers,
            body,
            self._host.look_soon,
        )

    async def models(self, _: Request) -> Response:
        """List the served model and its adapters."""
        return json_reply({"object": "list", "data": [self._describe(name) for name in self._host.names()]})

    async def model(self, request: Request) -> Response:
        """Describe the served model or one of its adapters."""
        name = str(request.path_params["name"])
        if name not in self._host.names():
            text = f"The model `{name[:200]}` does not exist."
            raise ApiError(HTTPStatus.NOT_FOUND, "model_not_found", text, param="model")
        return json_reply(self._describe(name))

    async def livez(self, _: Request) -> Response:
        """200 unless the process should be restarted. vLLM has a probe of its own."""
        return probe(self._live())

    async def readyz(self, _: Request) -> Response:
        """200 while requests are welcome."""
        return probe(self._host.not_ready())

    async def startupz(self, _: Request) -> Response:
        """200 once loading is over, well or badly: a model that cannot be loaded is no reason for a restart."""
        state = self._host.state()
        return probe("" if state.loading_is_over else state.value)

    async def metrics(self, _: Request) -> Response:
        """Return Prometheus' text: our figures, then vLLM's as they are."""
        body, kind = render(self._registry)
        try:
            theirs = await self._host.link.call("GET", "/metrics", seconds=_METRICS_SECONDS)
        except (EngineLost, Refused):
            theirs = b""
        return Response(body + figures.own_families(theirs), headers={"content-type": kind})

    async def version(self, _: Request) -> Response:
        """Return the version of this runtime."""
        return json_reply({"version": __version__})

    def _describe(self, name: str) -> dict[str, Any]:
        base = self._host.settings.model_name
        return {
            "id": name,
            "object": "model",
            "created": self._host.created,
            "owned_by": "llmos",
            "root": name,
            "parent": None if name == base else base,
            "max_model_len": self._host.max_model_len or None,
        }

"""The control API for the operator, on a port of its own, behind the namespace's token.

`GET /control/v1/status`, `POST /control/v1/drain`, `POST /control/v1/budget`, `POST /control/v1/sleep`,
`POST /control/v1/wake`, `POST /control/v1/requantise`, `POST /control/v1/adapters`, `DELETE /control/v1/adapters/NAME`; messages of `api.runtime.messages`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos_operator.api.runtime.messages import (
    AdapterRequest,
    BudgetRequest,
    DrainRequest,
    RequantiseRequest,
    SleepRequest,
)
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.answers import ApiError, from_validation
from llmos_operator.runtime.exchange import error_reply

if TYPE_CHECKING:
    from starlette.requests import Request

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.runtime.auth import Gate
    from llmos_operator.runtime.drain import Drain

log = logger(__name__)

MAX_BODY = 64 << 10
LINGER_SECONDS = 1.0
B = TypeVar("B", bound=BaseModel)


class Host(Protocol):
    """What the control API orders. All raise ApiError."""

    def status(self) -> RuntimeStatus:
        """Return all there is to know."""
        ...

    def set_budget(self, memory_bytes: int) -> None:
        """Take a new memory budget."""
        ...

    def sleep(self, level: int, timeout_seconds: float) -> None:
        """Go to sleep once what is in progress has ended."""
        ...

    def wake(self) -> None:
        """Serve again."""
        ...

    def requantise(self, precision: str, budget_bytes: int, timeout_seconds: float) -> None:
        """Begin to serve the model at another precision."""
        ...

    async def load_adapter(self, name: str, uri: str, *, param: str | None = None) -> None:
        """Serve an adapter."""
        ...

    async def unload_adapter(self, name: str, *, param: str | None = None) -> None:
        """Stop serving an adapter."""
        ...


class ControlApi:
    """Handlers of the control API."""

    def __init__(self, host: Host, drain: Drain, gate: Gate) -> None:
        self._host = host
        self._drain = drain
        self._gate = gate
        self._draining: asyncio.Task[bool] | None = None

    def build(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/control/v1/status", self.status, methods=["GET"]),
                Route("/control/v1/drain", self.drain, methods=["POST"]),
                Route("/control/v1/budget", self.budget, methods=["POST"]),
                Route("/control/v1/sleep", self.sleep, methods=["POST"]),
                Route("/control/v1/wake", self.wake, methods=["POST"]),
                Route("/control/v1/requantise", self.requantise, methods=["POST"]),
                Route("/control/v1/adapters", self.load_adapter, methods=["POST"]),
                Route("/control/v1/adapters/{name}", self.unload_adapter, methods=["DELETE"]),
            ],
            exception_handlers={ApiError: _on_api_error},
        )

    async def status(self, request: Request) -> Response:
        """Tell the operator all there is to know."""
        self._gate.check(request.headers.get("authorization", ""))
        return JSONResponse(self._host.status().model_dump(mode="json", by_alias=True))

    async def drain(self, request: Request) -> Response:
        """Begin to drain; status tells when it is over (state Draining, nothing running or waiting)."""
        self._gate.check(request.headers.get("authorization", ""))
        order = await _read(request, DrainRequest)
        if self._draining is None or self._draining.done():
            deadline = self._drain.monotonic() + order.timeout_seconds
            self._draining = asyncio.create_task(self._drain.run(linger=LINGER_SECONDS, deadline=deadline))
            log.info("drain ordered", seconds=order.timeout_seconds)
        return JSONResponse({"inside": self._drain.inside}, status_code=HTTPStatus.ACCEPTED)

    async def budget(self, request: Request) -> Response:
        """Take a new memory budget; its effect shows in the status' memory."""
        self._gate.check(request.headers.get("authorization", ""))
        order = await _read(request, BudgetRequest)
        self._host.set_budget(order.memory_bytes)
        log.info("new memory budget", bytes=order.memory_bytes)
        return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)

    async def sleep(self, request: Request) -> Response:
        """Go to sleep once what is in progress has ended; the state says Asleep, and the status' memory what is left."""
        self._gate.check(request.headers.get("authorization", ""))
        order = await _read(request, SleepRequest)
        self._host.sleep(order.level, order.timeout_seconds)
        return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)

    async def wake(self, request: Request) -> Response:
        """Wake up; the state says Ready when it serves again."""
        self._gate.check(request.headers.get("authorization", ""))
        self._host.wake()
        return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)

    async def requantise(self, request: Request) -> Response:
        """Begin to change the format; the status' ``change`` says how that goes, its model and memory what is in use."""
        self._gate.check(request.headers.get("authorization", ""))
        order = await _read(request, RequantiseRequest)
        self._host.requantise(order.precision, order.budget_bytes, order.timeout_seconds)
        return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)

    async def load_adapter(self, request: Request) -> Response:
        """Serve an adapter; the answer comes when it is there."""
        self._gate.check(request.headers.get("authorization", ""))
        order = await _read(request, AdapterRequest)
        await self._host.load_adapter(order.name, order.uri, param="uri")
        return JSONResponse({})

    async def unload_adapter(self, request: Request) -> Response:
        """Stop serving an adapter; the answer comes when its last request has ended."""
        self._gate.check(request.headers.get("authorization", ""))
        await self._host.unload_adapter(str(request.path_params["name"]))
        return JSONResponse({})


async def _read(request: Request, kind: type[B]) -> B:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", "The body is too large.")
    try:
        return kind.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise from_validation(error) from None


async def _on_api_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error_reply(error)

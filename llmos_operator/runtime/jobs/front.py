"""The two ports of a program that serves nobody: probes and metrics, and the control status for the operator.

They run on a thread of their own with an event loop of its own, so that work that blocks (training) can be asked how far
it has come. `status` and `live` are called from that thread.
"""

from __future__ import annotations

import asyncio
import logging as stdlib_logging
import threading
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.observability.metrics import render
from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.auth import Gate
from llmos_operator.runtime.exchange import error_reply
from llmos_operator.runtime.listening import Port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.runtime.settings import RuntimeSettings

_STARTED = (RuntimeState.READY, RuntimeState.DRAINING, RuntimeState.FAILED)


class JobFront:
    """Answers /livez, /startupz, /readyz and /metrics, and the control API's status. Use it as a context manager."""

    def __init__(
        self,
        settings: RuntimeSettings,
        status: Callable[[], RuntimeStatus],
        registry: CollectorRegistry,
        live: Callable[[], str] = lambda: "",
    ) -> None:
        """``live`` returns "" or why the process should be restarted."""
        self._settings = settings
        self._status = status
        self._registry = registry
        self._live = live
        self._gate = Gate([settings.control_token], open_without=False)
        self._ports: list[Port] = []
        self._thread: threading.Thread | None = None
        self.port = 0
        self.control_port = 0

    def __enter__(self) -> Self:
        """Open the ports. Raises OSError if one is taken."""
        stdlib_logging.getLogger("uvicorn.error").setLevel(stdlib_logging.WARNING)
        probes = Starlette(
            routes=[
                Route("/livez", self._livez),
                Route("/startupz", self._startupz),
                Route("/readyz", self._startupz),
                Route("/metrics", self._metrics),
            ]
        )
        control = Starlette(
            routes=[Route("/control/v1/status", self._tell)], exception_handlers={ApiError: _on_api_error}
        )
        host = self._settings.host
        self._ports = [Port(probes, host, self._settings.port)]
        try:
            self._ports.append(Port(control, host, self._settings.control_port))
        except OSError:
            self._ports[0].close()
            raise
        self.port, self.control_port = (one.number for one in self._ports)
        self._thread = threading.Thread(target=self._serve, name="front", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the ports."""
        for one in self._ports:
            one.end()
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        async def both() -> None:
            await asyncio.gather(*(one.serve() for one in self._ports))

        asyncio.run(both())

    async def _livez(self, _: Request) -> Response:
        return _probe(self._live())

    async def _startupz(self, _: Request) -> Response:
        state = self._status().state
        return _probe("" if state in _STARTED else state.value)

    async def _metrics(self, _: Request) -> Response:
        body, kind = render(self._registry)
        return Response(body, headers={"content-type": kind})

    async def _tell(self, request: Request) -> Response:
        self._gate.check(request.headers.get("authorization", ""))
        return JSONResponse(self._status().model_dump(mode="json", by_alias=True))


async def _on_api_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error_reply(error)


def _probe(trouble: str) -> Response:
    return Response(trouble or "ok", status_code=503 if trouble else 200, media_type="text/plain")

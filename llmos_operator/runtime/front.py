"""What every runtime is whoever makes its answers: two ports, a heartbeat, and a way out that drops no request."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from llmos_operator.observability import tracing
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.auth import Gate
from llmos_operator.runtime.control_api import ControlApi, Host
from llmos_operator.runtime.drain import END_MARGIN_SECONDS, Drain
from llmos_operator.runtime.listening import Port
from llmos_operator.runtime.shell import Shell

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.metrics import FrontMetrics
    from llmos_operator.runtime.settings import RuntimeSettings

log = logger(__name__)

LINGER_SECONDS = 3.0  # after SIGTERM: time for endpoints and gateways to notice
STALLED_SECONDS = 20.0
BEAT_SECONDS = 1.0
KEEPALIVE_SECONDS = 75
BACKLOG = 1024


class Follower(Host, Protocol):
    """A host, which also follows its engine for as long as the runtime runs."""

    async def run(self) -> None:
        """Load, then follow the engine until cancelled."""
        ...


class Closable(Protocol):
    """The way to an engine."""

    async def close(self) -> None:
        """Close it."""
        ...


class Front:
    """One runtime process on one event loop. A subclass makes host and application, and calls :meth:`open_for`."""

    def __init__(
        self, settings: RuntimeSettings, counted: FrontMetrics, clock: Clock, linger_seconds: float
    ) -> None:
        """``linger_seconds`` is how long requests are still taken after the order to stop. Raises BadTracing."""
        self.settings = settings
        self.drain = Drain(clock.monotonic)
        self.port = 0
        self.control_port = 0
        self._linger = linger_seconds
        self._counted = counted
        self._beat = Heartbeat(STALLED_SECONDS, clock.monotonic)
        self.tracer = tracing.open_tracer(
            "runtime",
            endpoint=settings.trace_endpoint,
            ratio=settings.trace_ratio,
            count=lambda result, spans: counted.spans.labels(result).inc(spans),
        )

    def live(self) -> str:
        """Return "" or why the process should be restarted."""
        return self._beat.check()

    def open_for(self, host: Follower, engine: Closable, app: Starlette) -> None:
        """Put the shell around ``app`` and the control API before ``host``."""
        settings = self.settings
        paths = {getattr(route, "path", "") for route in app.routes}
        self._host, self._engine = host, engine
        self.serving = Shell(
            app,
            gate=Gate(settings.api_keys, open_without=True),
            guard=Gate([*settings.api_keys, settings.control_token], open_without=False),
            drain=self.drain,
            max_body=settings.most_bytes,
            requests=self._counted.http,
            known=paths.__contains__,
            tracer=self.tracer,
        )
        gate = Gate([settings.control_token], open_without=False)
        self._control = ControlApi(host, self.drain, gate).build()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then drain and close. Raises OSError if a port is taken."""
        ports = [
            self._open(self.serving, self.settings.port),
            self._open(self._control, self.settings.control_port),
        ]
        (self.port, self.control_port) = (one.number for one in ports)
        background = [asyncio.create_task(self._beating()), asyncio.create_task(self._host.run())]
        serving = [asyncio.create_task(one.serve()) for one in ports]
        stopping = asyncio.create_task(stop.wait())
        log.info("runtime listens", host=self.settings.host, port=self.port, control=self.control_port)
        try:
            done, _ = await asyncio.wait(
                [stopping, *background, *serving], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {stopping}:
                task.result()  # none of them ends by itself unless it failed
            await self._leave()
        finally:
            for one in ports:
                one.end()
            for task in (stopping, *background):
                task.cancel()
            await asyncio.gather(stopping, *background, *serving, return_exceptions=True)
            await self._engine.close()
            await asyncio.to_thread(self.tracer.close)

    async def _leave(self) -> None:
        began = time.monotonic()
        margin = min(END_MARGIN_SECONDS, self.settings.grace_seconds / 2)
        deadline = self.drain.monotonic() + self.settings.grace_seconds - margin
        log.info("draining", inside=self.drain.inside, seconds=self.settings.grace_seconds)
        finished = await self.drain.run(linger=self._linger, deadline=deadline)
        self._counted.drain.observe(time.monotonic() - began)
        log.info("drained", all_finished=finished)

    async def _beating(self) -> None:
        while True:
            self._beat.beat()
            await asyncio.sleep(BEAT_SECONDS)

    def _open(self, app: ASGIApp, port: int) -> Port:
        return Port(app, self.settings.host, port, timeout_keep_alive=KEEPALIVE_SECONDS, backlog=BACKLOG)

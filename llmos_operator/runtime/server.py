"""`llmos runtime`: starts the engine, serves two ports, and leaves without dropping a request.

On SIGTERM the runtime turns not ready at once and keeps taking requests for a moment, because endpoints are slow to
follow; then it declines new ones. What runs may finish until five seconds before the grace period ends, and then ends
with finish_reason "abort". A model that cannot be loaded does not end the process: the operator reads why from the
control API and decides.
"""

from __future__ import annotations

import argparse
import asyncio
import logging as stdlib_logging
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from llmos_operator.clock import Clock, SystemClock
from llmos_operator.observability import logging, metrics
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.runtime.adapters_api import AdaptersApi
from llmos_operator.runtime.admission import Admission
from llmos_operator.runtime.answering import Kitchen
from llmos_operator.runtime.app import ServingApi, build
from llmos_operator.runtime.auth import Gate
from llmos_operator.runtime.control_api import ControlApi
from llmos_operator.runtime.drain import END_MARGIN_SECONDS, Drain
from llmos_operator.runtime.host import ModelHost
from llmos_operator.runtime.ipc.client import EngineClient
from llmos_operator.runtime.listening import Port
from llmos_operator.runtime.metrics import EngineCollector, RequestMetrics
from llmos_operator.runtime.ranks.following import follow
from llmos_operator.runtime.settings import BadEnvironment, RuntimeSettings, from_environment
from llmos_operator.runtime.shell import Shell

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from starlette.types import ASGIApp

log = logging.logger(__name__)

T = TypeVar("T")

LINGER_SECONDS = 3.0  # after SIGTERM: time for endpoints and gateways to notice
STALLED_SECONDS = 20.0
BEAT_SECONDS = 1.0
KEEPALIVE_SECONDS = 75
BACKLOG = 1024


class Runtime:
    """One runtime process on one event loop."""

    def __init__(
        self,
        settings: RuntimeSettings,
        engine: EngineClient,
        *,
        clock: Clock | None = None,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """``linger_seconds`` is how long requests are still taken after the order to stop."""
        self._linger = linger_seconds
        self.settings = settings
        self.engine = engine
        self.registry = metrics.new_registry("runtime")
        clock = clock or SystemClock()
        self.drain = Drain(clock.monotonic)
        self.admission = Admission(settings.max_num_seqs, settings.max_queue, settings.max_wait_seconds)
        counted = RequestMetrics(self.registry, settings.model_name)
        self.host = ModelHost(
            settings, engine, self.admission, self.drain, clock, swaps=counted.adapter_swapped
        )
        self.registry.register(
            EngineCollector(
                settings.model_name, engine.status, self.admission, settings.max_adapters, clock.now
            )
        )
        kitchen = Kitchen(
            engine, self.admission, self.drain, counted, clock.monotonic, float(settings.max_wait_seconds)
        )
        self._beat = Heartbeat(STALLED_SECONDS, clock.monotonic)
        api = ServingApi(self.host, kitchen, self.registry, clock, self._beat.check)
        app = build(api, AdaptersApi(self.host))
        paths = {getattr(route, "path", "") for route in app.routes}
        self.serving = Shell(
            app,
            gate=Gate(settings.api_keys, open_without=True),
            guard=Gate([*settings.api_keys, settings.control_token], open_without=False),
            drain=self.drain,
            max_body=settings.max_body_bytes,
            requests=counted.http,
            known=paths.__contains__,
        )
        control_gate = Gate([settings.control_token], open_without=False)
        self._control = ControlApi(self.host, self.drain, control_gate).build()
        self._drained = counted.drain
        self.port = 0
        self.control_port = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then drain and close. Raises OSError if a port is taken."""
        ports = [
            self._open(self.serving, self.settings.port),
            self._open(self._control, self.settings.control_port),
        ]
        (self.port, self.control_port) = (one.number for one in ports)
        background = [asyncio.create_task(self._beating()), asyncio.create_task(self.host.run())]
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
            await self.engine.close()

    async def _leave(self) -> None:
        began = time.monotonic()
        margin = min(END_MARGIN_SECONDS, self.settings.grace_seconds / 2)
        deadline = self.drain.monotonic() + self.settings.grace_seconds - margin
        log.info("draining", inside=self.drain.inside, seconds=self.settings.grace_seconds)
        finished = await self.drain.run(linger=self._linger, deadline=deadline)
        self._drained.observe(time.monotonic() - began)
        log.info("drained", all_finished=finished)

    async def _beating(self) -> None:
        while True:
            self._beat.beat()
            await asyncio.sleep(BEAT_SECONDS)

    def _open(self, app: ASGIApp, port: int) -> Port:
        return Port(app, self.settings.host, port, timeout_keep_alive=KEEPALIVE_SECONDS, backlog=BACKLOG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the runtime until SIGTERM; return 0, or 1 if it could not start."""
    parser = argparse.ArgumentParser(
        prog="llmos runtime", description="Serve one model; settings come from the environment."
    )
    parser.parse_args(argv)
    try:
        settings = from_environment()
        logging.setup(settings.log_level, settings.log_format, process="runtime")
        # Its start and end are ours to report.
        stdlib_logging.getLogger("uvicorn.error").setLevel(stdlib_logging.WARNING)
        loop_run(_run(settings))
    except BadEnvironment as error:
        sys.stderr.write(f"llmos runtime: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"llmos runtime: cannot listen: {error}\n")
        return 1
    return 0


def loop_run(work: Coroutine[Any, Any, T]) -> T:
    """Run a program's coroutine on its event loop; return what it returns."""
    import uvloop  # noqa: PLC0415 - tests run this module on the standard loop

    found: T = uvloop.run(work)
    return found


async def _run(settings: RuntimeSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.node_rank:
        await follow(settings, stop)
        return
    engine = EngineClient()
    # Its imports take seconds: they run while the ports open.
    await engine.prepare()
    await Runtime(settings, engine).run(stop)

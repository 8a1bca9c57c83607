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
from typing import TYPE_CHECKING, Any, TypeVar

from llmos_operator.clock import Clock, SystemClock
from llmos_operator.observability import logging, metrics, tracing
from llmos_operator.runtime.adapters_api import AdaptersApi
from llmos_operator.runtime.admission import Admission
from llmos_operator.runtime.answering import Kitchen
from llmos_operator.runtime.app import ServingApi, build
from llmos_operator.runtime.front import LINGER_SECONDS, Front
from llmos_operator.runtime.host import ModelHost
from llmos_operator.runtime.ipc.client import EngineClient
from llmos_operator.runtime.ipc.switch import EngineSwitch
from llmos_operator.runtime.metrics import EngineCollector, RequestMetrics
from llmos_operator.runtime.ranks.following import follow
from llmos_operator.runtime.settings import BadEnvironment, RuntimeSettings, from_environment
from llmos_operator.runtime.speech.decoder import Decoder

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

log = logging.logger(__name__)

T = TypeVar("T")


class Runtime(Front):
    """A runtime with its own engine."""

    def __init__(
        self,
        settings: RuntimeSettings,
        engine: EngineClient,
        *,
        clock: Clock | None = None,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """``linger_seconds`` is how long requests are still taken after the order to stop. Raises BadTracing."""
        clock = clock or SystemClock()
        self.registry = metrics.new_registry("runtime")
        counted = RequestMetrics(self.registry, settings.model_name)
        super().__init__(settings, counted, clock, linger_seconds)
        self.engine = EngineSwitch(engine)
        self.admission = Admission(settings.max_num_seqs, settings.max_queue, settings.max_wait_seconds)
        self.host = ModelHost(
            settings,
            self.engine,
            self.admission,
            self.drain,
            clock,
            swaps=counted.adapter_swapped,
            changes=counted.format_changed,
            tracer=self.tracer,
        )
        self.registry.register(
            EngineCollector(
                settings.model_name, self.engine.status, self.admission, settings.max_adapters, clock.now
            )
        )
        kitchen = Kitchen(
            self.engine,
            self.admission,
            self.drain,
            counted,
            clock.monotonic,
            float(settings.max_wait_seconds),
            self.tracer,
        )
        decoder = Decoder(settings.max_audio_seconds)
        api = ServingApi(self.host, kitchen, decoder, self.registry, clock, self.live)
        self.open_for(self.host, self.engine, build(api, AdaptersApi(self.host)))


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
    except (BadEnvironment, tracing.BadTracing) as error:
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
    if settings.engine:
        from llmos_operator.runtime.handover.server import VllmRuntime  # noqa: PLC0415 - needs what others do not

        await VllmRuntime(settings).run(stop)
        return
    if settings.node_rank:
        await follow(settings, stop)
        return
    engine = EngineClient()
    # Its imports take seconds: they run while the ports open.
    await engine.prepare()
    await Runtime(settings, engine).run(stop)

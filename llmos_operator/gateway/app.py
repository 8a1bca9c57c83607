"""`llmos gateway`: puts the parts together, runs them, and ends without dropping a request.

On SIGTERM the gateway turns not ready at once, keeps accepting for `drainDelay` (load balancers are slow to notice),
stops listening, lets what is in flight finish within `drainTimeout`, and only then closes. A second signal ends it at
once.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from llmos_operator.cluster import transport
from llmos_operator.errors import Permanent
from llmos_operator.gateway import keys
from llmos_operator.gateway.affinity import Affinity
from llmos_operator.gateway.balance import Balancer
from llmos_operator.gateway.catalog import Catalog
from llmos_operator.gateway.demand import Demand, Reporter
from llmos_operator.gateway.dispatch import Dispatcher
from llmos_operator.gateway.intake import BodyStore, Intake
from llmos_operator.gateway.limits import Limiter
from llmos_operator.gateway.metrics import Metrics
from llmos_operator.gateway.proxy import Proxy
from llmos_operator.gateway.serve import Front, Rules
from llmos_operator.gateway.upstream import Upstream
from llmos_operator.gateway.watch import Watches
from llmos_operator.observability import logging, metrics, tracing
from llmos_operator.observability.health import HealthServer
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.settings import BadSettings, GatewaySettings, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prometheus_client import CollectorRegistry

    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.observability.tracing import Tracer

log = logging.logger(__name__)

BEAT_SECONDS = 1.0
STALLED_SECONDS = 15.0  # the loop stood so long: restart me
HOUSEKEEPING_SECONDS = 5.0
KEEPALIVE_SECONDS = 75.0
BACKLOG = 1024


class Gateway:
    """One gateway process on one event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        port: ClusterPort,
        *,
        token: Callable[[], str],
        registry: CollectorRegistry,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``token`` returns the bearer token for the operator. Raises BadSettings, if the keys file is bad, and BadTracing."""
        self.settings = settings
        self.metrics = Metrics(registry)
        self.tracer = self._open_tracer()
        self.catalog = Catalog()
        self.keys = keys.KeyRing(settings.keys_file)
        self._limiter = Limiter()
        self._monotonic = monotonic
        self._balancer = Balancer()
        self.watches = Watches(port, self.catalog, self._balancer, self.metrics)
        self.demand = Demand()
        self._dispatcher = Dispatcher(
            self.catalog,
            self._balancer,
            self.metrics,
            monotonic,
            hold_limit=settings.hold_limit,
            on_hold=self.demand.changed.set,
            tracer=self.tracer,
            affinity=Affinity() if settings.prefix_affinity else None,
        )
        self._upstream = Upstream(connect_seconds=settings.connect_timeout)
        self.front = self._front()
        self._reporter = Reporter(
            self.demand,
            self._dispatcher.waiting,
            url=settings.operator_url,
            gateway=settings.identity,
            token=token,
            metrics=self.metrics,
        )
        self._beat = Heartbeat(STALLED_SECONDS)
        self._health = HealthServer(registry, live={"loop": self._beat.check}, ready=self._ready_checks())
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self.port = 0

    @property
    def health_port(self) -> int:
        """Port of the health server once it listens."""
        return self._health.port

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event | None = None) -> None:
        """Serve until ``stop`` is set, then drain; ``stop_now`` cuts the draining short."""
        await self.start()
        try:
            # A part that fails ends the process: half a gateway would look alive.
            async with asyncio.TaskGroup() as group:
                tasks = [
                    *(group.create_task(reflector.run()) for reflector in self.watches.reflectors),
                    group.create_task(self._reporter.run(), name="demand"),
                    group.create_task(self._keep_house(), name="housekeeping"),
                ]
                await stop.wait()
                await self._drain(stop_now or asyncio.Event())
                for task in tasks:
                    task.cancel()
        finally:
            await self.close()

    async def start(self) -> None:
        """Listen. Raises OSError if a port is taken."""
        server = web.Server(
            self.front.handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=2.0,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        settings = self.settings
        self._site = web.TCPSite(self._runner, settings.host, settings.serving_port, backlog=BACKLOG)
        await self._site.start()
        self.port = int(self._runner.addresses[0][1])
        await self._health.start(settings.host, settings.health_port)
        log.info("gateway listens", host=settings.host, port=self.port, keys=len(self.keys) or "not required")

    async def close(self) -> None:
        """Close everything at once."""
        self._dispatcher.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self._upstream.close()
        await self._health.close()
        await asyncio.to_thread(self.tracer.close)

    async def _drain(self, stop_now: asyncio.Event) -> None:
        """Let requests in flight finish; see the module docstring."""
        self.front.draining = True
        log.info("draining", in_flight=self.front.active)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop_now.wait(), self.settings.drain_delay)
        if self._site is not None:
            await self._site.stop()
        impatient = asyncio.create_task(stop_now.wait())
        quiet = asyncio.create_task(self._quiet())
        await asyncio.wait(
            [impatient, quiet], timeout=self.settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        for task in (impatient, quiet):
            task.cancel()
        log.info("drained", cut_off=self.front.active)

    async def _quiet(self) -> None:
        while self.front.active:
            await self.front.quiet.wait()

    async def _keep_house(self) -> None:
        """Beat, reload keys, forget what is idle."""
        turn = 0
        while True:
            self._beat.beat()
            if turn % int(HOUSEKEEPING_SECONDS / BEAT_SECONDS) == 0:
                self._limiter.forget_idle(self._monotonic())
                self._reload_keys()
            turn += 1
            await asyncio.sleep(BEAT_SECONDS)

    def _reload_keys(self) -> None:
        try:
            if self.keys.refresh():
                self.metrics.key_reloads.labels("loaded").inc()
                log.info("keys reloaded", keys=len(self.keys))
        except BadSettings as error:
            self.metrics.key_reloads.labels("failed").inc()
            log.warning("keys file cannot be used, the old keys stay valid", error=error)

    def _front(self) -> Front:
        settings = self.settings
        store = BodyStore(settings.max_buffered, self.metrics.buffered_bytes)
        proxy = Proxy(
            self._dispatcher,
            self._balancer,
            self._upstream,
            self.demand,
            store,
            self.metrics,
            self._monotonic,
            settings.hold_timeout,
            lambda: self.front.draining,
            self.tracer,
        )
        rules = Rules(
            max_depth=settings.max_depth,
            request_seconds=settings.request_timeout,
            default_namespace=settings.default_namespace,
            hosts={host.lower(): namespace for host, namespace in settings.hosts.items()},
            access_log=settings.access_log,
        )
        return Front(
            catalog=self.catalog,
            keys=self.keys,
            limiter=self._limiter,
            intake=Intake(store, settings.max_body, settings.max_audio_body, settings.body_timeout),
            proxy=proxy,
            demand=self.demand,
            metrics=self.metrics,
            rules=rules,
            monotonic=self._monotonic,
            synced=lambda: self.watches.synced,
            tracer=self.tracer,
        )

    def _open_tracer(self) -> Tracer:
        wanted = self.settings.tracing
        return tracing.open_tracer(
            "gateway",
            endpoint=wanted.endpoint,
            ratio=wanted.sample_ratio,
            count=lambda result, spans: self.metrics.spans.labels(result).inc(spans),
        )

    def _ready_checks(self) -> dict[str, Callable[[], str]]:
        # A stale watch does not make the gateway unready: what it knows is better than no gateway at all.
        return {
            "synced": lambda: "" if self.watches.synced else "workloads and pods have not been read yet",
            "draining": lambda: "the gateway is stopping" if self.front.draining else "",
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway until SIGTERM; return 0, or 1 if it could not start."""
    parser = argparse.ArgumentParser(
        prog="llmos gateway", description="One OpenAI-style endpoint for all workloads."
    )
    parser.add_argument("--config", default="", help="YAML file of settings")
    parser.add_argument(
        "--new-key", metavar="NAME", default="", help="print a new API key and its line for keysFile"
    )
    arguments = parser.parse_args(argv)
    if arguments.new_key:
        return _print_key(arguments.new_key)
    try:
        settings = load(GatewaySettings, arguments.config)
        logging.setup(settings.log.level, settings.log.format, process="gateway")
        asyncio.run(_serve(settings))
    except Permanent as error:
        sys.stderr.write(f"llmos gateway: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"llmos gateway: cannot listen: {error}\n")
        return 1
    return 0


async def _serve(settings: GatewaySettings) -> None:
    connection = await transport.connect(process="llmos-gateway")
    stop, stop_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        gateway = Gateway(
            settings, connection, token=connection.credentials.token, registry=metrics.new_registry("gateway")
        )
        await gateway.run(stop, stop_now)
    finally:
        await connection.close()


def _print_key(name: str) -> int:
    key = keys.new_key()
    entry = f"- {{name: {name}, sha256: {keys.hash_key(key)}}}"
    try:
        keys.parse(f"keys:\n{entry}", "keysFile")
    except BadSettings as error:
        sys.stderr.write(f"llmos gateway: {error}\n")
        return 1
    sys.stdout.write(f"key, shown only once: {key}\nfor keysFile: {entry}\n")
    return 0

"""`llmos agent`: measures the devices of its node and tells the operator, the API server and Prometheus.

Once an interval the loop takes what the measuring threads found, folds it into verdicts and hands the result to the
publishers. It never calls the driver itself, so a hanging driver is something it reports, not something it does. When
the session with the driver is lost it says so in the GPUNode and exits with status 1: only a new process can open a new
one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llmos_operator.api import names
from llmos_operator.cluster import transport
from llmos_operator.errors import LlmosError, Permanent
from llmos_operator.observability import logging, metrics
from llmos_operator.observability.footprint import settle
from llmos_operator.observability.health import HealthServer
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.settings import AgentSettings, BadSettings, load
from llmos_operator.telemetry import report
from llmos_operator.telemetry.backend import BackendUnavailable, DriverLost
from llmos_operator.telemetry.collector import Collector
from llmos_operator.telemetry.kubelet.follow import KubeletDevices
from llmos_operator.telemetry.metrics import AgentMetrics, CollectorMetrics, CopyMetrics, DeviceMetrics
from llmos_operator.telemetry.node_view import NodeView
from llmos_operator.telemetry.node_watch import annotation, follow_node, wait_for_node
from llmos_operator.telemetry.publish import BatchSender, NodeWriter
from llmos_operator.telemetry.simulated import SimulatedBackend
from llmos_operator.telemetry.watchdog import InFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prometheus_client import CollectorRegistry

    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.telemetry.backend import Backend
    from llmos_operator.telemetry.copies import CopyKeeper
    from llmos_operator.telemetry.sample import DriverInfo

log = logging.logger(__name__)

STALLED_SECONDS: Final = 15.0
BEAT_SECONDS: Final = 3.0
LAST_WORDS_SECONDS: Final = 5.0
OPEN_SECONDS: Final = 60.0
UNREADY_INTERVALS: Final = 10
EVENT_PAUSE: Final = 0.1  # of an interval
_MEMORY: Final = names.ANNOTATION_HEALTH_MEMORY


def choose_backend(settings: AgentSettings, node: Json, in_flight: InFlight) -> Backend:
    """Return the backend for this node: what the settings say, and with "auto" what the node announces.

    The announcement is written by `llmos local` only, so it outranks a driver that happens to be on the machine.
    Raises :class:`BackendUnavailable`.
    """
    announced = annotation(node, names.ANNOTATION_SIMULATED_GPUS)
    if settings.mode == "simulated" or (settings.mode == "auto" and announced):
        faults = annotation(node, names.ANNOTATION_SIMULATED_FAULTS)
        cluster = os.environ.get(names.ENV_LOCAL_CLUSTER, "")
        return SimulatedBackend(settings.node, announced, faults=faults, seed=settings.seed, cluster=cluster)
    try:
        # Loads pynvml: 16 MB that a simulated node does not need.
        from llmos_operator.telemetry.nvml.backend import NvmlBackend  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise BackendUnavailable(
            f"{missing.name} is not installed; install the extra 'agent', or set mode to simulated"
        ) from missing
    return NvmlBackend(in_flight)


class Agent:
    """One agent process on one event loop."""

    def __init__(
        self,
        settings: AgentSettings,
        port: ClusterPort,
        *,
        token: Callable[..., str],
        registry: CollectorRegistry,
        started: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``token`` returns the bearer token for the operator; ``started`` is the wall time in epoch seconds."""
        self.settings = settings
        self._port = port
        self._registry = registry
        self._monotonic = monotonic
        self._epoch = int(started)
        self._offset = started - monotonic()  # of the agent's own time axis, see node_health
        self._in_flight = InFlight(monotonic)
        self._metrics = AgentMetrics(registry)
        self._devices = DeviceMetrics(settings.node, dcgm=settings.dcgm_metrics)
        registry.register(self._devices)
        interval = settings.sample_interval
        self._sender = BatchSender(settings.operator_url, token, interval=interval, metrics=self._metrics)
        self._writer = NodeWriter(
            port,
            settings.node,
            interval=settings.status_interval,
            metrics=self._metrics,
            on_clear=self._clear,
        )
        self._kubelet = KubeletDevices(
            settings.pod_resources_socket,
            interval=settings.pod_resources_interval,
            note=self._metrics.asked,
        )
        self._beat = Heartbeat(max(STALLED_SECONDS, 5 * interval), monotonic)
        self._measured = Heartbeat(UNREADY_INTERVALS * interval, monotonic)
        self._server = HealthServer(
            registry, live={"loop": self._beat.check}, ready={"measuring": self._unready}
        )
        self._copies = self._keeper(port) if settings.model_cache.path else None
        self._view: NodeView | None = None
        self._running: Collector | None = None
        self._wake = asyncio.Event()

    def _keeper(self, port: ClusterPort) -> CopyKeeper:
        from llmos_operator.telemetry.copies import CopyKeeper  # noqa: PLC0415 - most agents keep nothing

        settings = self.settings
        return CopyKeeper(
            port,
            settings.model_cache,
            node=settings.node,
            namespace=settings.namespace,
            metrics=CopyMetrics(self._registry),
            monotonic=self._monotonic,
        )

    @property
    def health_port(self) -> int:
        """Port of the health server once it listens."""
        return self._server.port

    def _now(self) -> float:
        return self._monotonic() + self._offset

    def _clear(self, uuid: str) -> None:
        if self._view is not None:
            self._view.forget(uuid, self._now())

    def _unready(self) -> str:
        if self._view is None:
            return "not measured yet"
        return self._view.problem() or self._measured.check() or self._deaf()

    def _deaf(self) -> str:
        """Return "" or that XIDs are no longer heard."""
        return self._running.events_stuck() if self._running is not None else ""

    async def run(self) -> None:
        """Measure and report until cancelled.

        Raises :class:`BackendUnavailable` or :class:`DriverLost` after saying so in the GPUNode, and whatever else ends
        a part of the agent: half an agent would look alive.
        """
        await self._server.start(self.settings.host, self.settings.health_port)
        beating = asyncio.create_task(self._keep_beating())
        try:
            node = await wait_for_node(self._port, self.settings.node, random.Random())  # noqa: S311 - jitter
            await self._measure(node)
        except (BackendUnavailable, DriverLost) as error:
            await self._last_words(str(error))
            raise
        finally:
            beating.cancel()
            await self._server.close()

    async def _keep_beating(self) -> None:
        while True:
            self._beat.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def _measure(self, node: Json) -> None:
        settings = self.settings
        backend = choose_backend(settings, node, self._in_flight)
        driver = await _open(backend)
        log.info("measuring", node=settings.node, mode=backend.mode, driver=driver.version, cuda=driver.cuda)
        view = NodeView(
            settings.node,
            interval=settings.sample_interval,
            mode=backend.mode,
            driver=driver,
            epoch=self._epoch,
        )
        await self._remember(view)
        self._writer.bind(str((node.get("metadata") or {}).get("uid") or ""))
        collector = self._collector(backend)
        collector.start()
        self._view, self._running = view, collector
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sender.run(), name="sender")
                group.create_task(self._writer.run(), name="writer")
                group.create_task(self._follow(backend), name="node")
                if self._copies is not None:
                    group.create_task(self._copies.run(), name="copies")
                group.create_task(self._kubelet.run(), name="kubelet")
                await self._turn(collector, view)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            collector.stop()
            # A thread stuck in the driver would make closing it hang too; the process ends anyway.
            if collector.join(0.2):
                backend.close()

    def _collector(self, backend: Backend) -> Collector:
        loop = asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop is closed: a late thread has nobody to tell
                loop.call_soon_threadsafe(self._wake.set)

        collector = Collector(
            backend,
            self._in_flight,
            interval=self.settings.sample_interval,
            process_interval=self.settings.process_interval,
            monotonic=self._monotonic,
            notify=notify,
        )
        self._registry.register(CollectorMetrics(collector.figures, collector.hung))
        return collector

    async def _remember(self, view: NodeView) -> None:
        """Take up what the agent before this one knew. Without an answer it is better to wait than to forget."""
        failures = 0
        while True:
            try:
                before = await self._writer.read()
            except LlmosError as error:
                if isinstance(error, Permanent):
                    raise
                failures += 1
                log.warning("waiting for the API server", error=str(error), tries=failures)
                await asyncio.sleep(min(0.5 * failures, 5.0))
                continue
            memory = annotation(before, _MEMORY)
            conditions = (before.get("status") or {}).get("conditions") or []
            known = view.restore(memory, conditions, self._now())
            if known:
                log.info("took up health of devices", devices=known)
            return

    async def _turn(self, collector: Collector, view: NodeView) -> None:
        """Take, fold and pass on, once an interval and at once when an event came. Raises what ended a thread."""
        interval = self.settings.sample_interval
        rounds = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._wake.wait()
            if self._wake.is_set():
                self._wake.clear()
                await asyncio.sleep(interval * EVENT_PAUSE)  # let the rest of a burst come
            seen = collector.take()
            now = self._now()
            view.fold(seen, now, self._metrics.note)
            view.allocated(self._kubelet.allocations, self._kubelet.trouble)
            self._devices.show(view.devices)
            if collector.figures.rounds != rounds:
                if not rounds:
                    settle()
                rounds = collector.figures.rounds
                self._measured.beat()
            if rounds or seen.hangs:
                self._sender.offer(view.batch())
                status = view.status(now)
                if self._copies is not None:
                    status = status | {"models": self._copies.models}
                self._writer.offer(status, view.memory())

    async def _follow(self, backend: Backend) -> None:
        """On a simulated node, take new announcements as they come."""
        if not isinstance(backend, SimulatedBackend):
            return

        def changed(node: Json) -> None:
            backend.announce(
                annotation(node, names.ANNOTATION_SIMULATED_GPUS),
                annotation(node, names.ANNOTATION_SIMULATED_FAULTS),
            )

        await follow_node(self._port, self.settings.node, changed)

    async def _last_words(self, why: str) -> None:
        """Say in the GPUNode that nothing here can be used; best effort, because the process is about to end."""
        log.error("the driver cannot be used", error=why)
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                before = await self._writer.read()
                if before:
                    self._writer.offer(report.lost(before, why, self._now()), annotation(before, _MEMORY))
                    await self._writer.write()
        except (LlmosError, TimeoutError) as error:
            log.warning("could not say so in the GPUNode", error=str(error))


async def _open(backend: Backend) -> DriverInfo:
    """Open a backend in a daemon thread: a driver that hangs from the start must not hold the process."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[DriverInfo] = loop.create_future()

    def settle(setter: Callable[..., None], value: object) -> None:
        if not opened.done():
            setter(value)

    def body() -> None:
        try:
            outcome = (opened.set_result, backend.open())
        except BackendUnavailable as error:
            outcome = (opened.set_exception, error)  # type: ignore[assignment]
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=body, daemon=True).start()
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await opened
    except TimeoutError:
        raise BackendUnavailable(
            f"the driver did not answer within {OPEN_SECONDS:.0f} s of its first call"
        ) from None


async def _serve(settings: AgentSettings) -> None:
    connection = await transport.connect(process="llmos-agent")
    registry = metrics.new_registry("agent")
    try:
        agent = Agent(
            settings,
            connection,
            token=connection.credentials.token,
            registry=registry,
            started=time.time(),
        )
        running = asyncio.ensure_future(agent.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        with suppress(asyncio.CancelledError):
            await running
        log.info("agent ends")
    finally:
        await connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until SIGTERM; return 0, or 1 if it could not start or the driver is lost."""
    parser = argparse.ArgumentParser(prog="llmos agent", description="Measure the GPUs of this node.")
    parser.add_argument("--config", default="", help="YAML file of settings")
    arguments = parser.parse_args(argv)
    try:
        settings = load(AgentSettings, arguments.config)
        if not settings.node:
            raise BadSettings("node is empty; set NODE_NAME (downward API: spec.nodeName) or LLMOS_NODE")
        logging.setup(settings.log.level, settings.log.format, process="agent")
        asyncio.run(_serve(settings))
    except LlmosError as error:
        sys.stderr.write(f"llmos agent: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"llmos agent: cannot listen: {error}\n")
        return 1
    return 0

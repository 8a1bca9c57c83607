"""`llmos operator`: the life of the operator process.

Settings, logging, health server, then the lease; with the lease complete lists, and with them decisions. Any part that
ends by itself ends the process with status 1: started again it is whole again, running on it would be half dead. On
SIGTERM and SIGINT decisions stop, writes in flight are finished, the lease is given back, status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

from llmos_operator.cluster.credentials import BadCredentials
from llmos_operator.cluster.transport import connect
from llmos_operator.control.assembly import Assembly
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.standing import SECONDS as STANDING_SECONDS
from llmos_operator.control.standing import Standing
from llmos_operator.control.watching import KOPF_KINDS
from llmos_operator.errors import LlmosError
from llmos_operator.observability import logging as logs
from llmos_operator.observability.health import HealthServer
from llmos_operator.observability.metrics import new_registry
from llmos_operator.observability.tracing import BadTracing
from llmos_operator.settings import BadSettings, OperatorSettings, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry

    from llmos_operator.cluster.port import Json, Kind
    from llmos_operator.control.handlers import Deliver, KopfThread

log = logs.logger(__name__)

FLUSH_SECONDS = 5.0  # for writes in flight at the end
BAD_SETTINGS = 2
# The API server takes JSON nested 10,000 deep. An object like that in a list must not keep the list from being read.
NESTING = 30_000


def main(argv: Sequence[str]) -> int:
    """Run the operator until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmos operator", description="Schedules models onto GPUs of the cluster."
    )
    parser.add_argument("--config", default="", help="settings file (YAML); see docs/reference/settings.md")
    arguments = parser.parse_args(argv)
    try:
        settings = load(OperatorSettings, arguments.config)
    except BadSettings as error:
        sys.stderr.write(f"llmos operator: {error}\n")
        return BAD_SETTINGS
    logs.setup(settings.log.level, settings.log.format, process="operator")
    sys.setrecursionlimit(NESTING)
    try:
        asyncio.run(run(settings))
    except (BadSettings, BadCredentials, BadTracing) as error:
        sys.stderr.write(f"llmos operator: {error}\n")
        return BAD_SETTINGS
    except BaseExceptionGroup as group:
        causes = _leaves(group)
        texts = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
        if all(isinstance(cause, LlmosError) for cause in causes):
            log.warning("ended by an error", error=texts)
        else:
            log.exception("ended by a bug", error=texts)
        return 1
    return 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


async def run(settings: OperatorSettings) -> None:
    """Run until SIGTERM or SIGINT. Raises an exception group with what ended a part otherwise."""
    registry = new_registry("operator")
    metrics = OperatorMetrics(registry)
    port = await connect(process="llmos-operator", observe=metrics.observe_request)
    parts = Assembly(port, settings, metrics)
    health = _health(parts, registry)
    try:
        await health.start(settings.host, settings.health_port)
        await parts.ingest.start(settings.host, settings.ingest_port)
        await _start_console(parts)
        await Operator(parts).run()
    finally:
        await parts.console.close()
        await parts.ingest.close()
        await health.close()
        await asyncio.to_thread(parts.tracer.close)
        for client in (parts.inspector, parts.client, port):
            await client.close()


async def _start_console(parts: Assembly) -> None:
    """Serve the page for people, if they want it. Decisions do not wait for it, nor end for want of its port."""
    console = parts.settings.console
    if not console.enabled:
        return
    try:
        await parts.console.start(parts.console_host, console.port)
    except OSError as error:
        log.warning("no console", host=parts.console_host, port=console.port, error=error)


def _health(parts: Assembly, registry: CollectorRegistry) -> HealthServer:
    """Alive: the loop turns. Ready: leading, synced and fresh; or standing by, able to reach the API server."""
    standing_by = parts.lease.standing_by

    def when_leading(check: str) -> str:
        return "" if standing_by() else check

    return HealthServer(
        registry,
        live={"loop": lambda: parts.heartbeat.check() if parts.lease.leading() else ""},
        ready={
            "leader": lambda: when_leading(parts.lease.check()),
            "synced": lambda: when_leading(parts.watching.check_synced()),
            "fresh": lambda: when_leading(parts.watching.check_fresh()),
        },
    )


class Operator:
    """Runs the parts of an assembly."""

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts
        self._stop = asyncio.Event()
        self._kopf: KopfThread | None = None

    async def run(self) -> None:
        """Wait for the lease, lead until told to stop, give the lease back."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await self._parts.label.set(leading=False)  # a former life of this container may have left it
        if not await self._acquire():
            return
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._lead(), name="lead")
            await self._stop.wait()
            log.info("stopping")
            self._parts.leadership.stop()
            await self._wind_down()
            work.cancel()

    async def _acquire(self) -> bool:
        """Wait for the lease. Returns False if told to stop before it came."""
        acquiring = asyncio.create_task(self._parts.lease.acquire())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not acquiring.done():
            acquiring.cancel()
            return False
        acquiring.result()
        return True

    async def _lead(self) -> None:
        """Run every part; ends with the first that fails."""
        from llmos_operator.control.handlers import KopfThread  # noqa: PLC0415 - a replica standing by needs no kopf

        parts = self._parts
        parts.heartbeat.beat()
        self._kopf = KopfThread(KOPF_KINDS, self._deliver(), parts.settings.scheduling.namespaces)
        async with asyncio.TaskGroup() as group:
            for name, work in (
                ("lease", parts.lease.hold()),
                ("label", parts.label.set(leading=True)),
                ("watching", parts.watching.run()),
                ("loop", parts.loop.run()),
                ("writes", parts.queue.run()),
                ("status", parts.status.run()),
                ("events", parts.recorder.run()),
                ("poller", parts.poller.run()),
                ("yielding", parts.yielding.run()),
                ("sleepers", parts.sleepers.run()),
                ("profiles", parts.profiles.run()),
                ("retention", parts.retention.run()),
                ("summaries", parts.summaries.run()),
                ("copies", parts.copies.run()),
                ("kueue", parts.kueue.run()),
                ("prices", parts.pricing.run()),
                ("gauges", self._gauges()),
                ("console", parts.console.remember()),
                ("standing", self._standing()),
                ("kopf", self._kopf.run()),
            ):
                group.create_task(work, name=name)

    def _deliver(self) -> Deliver:
        """Return the way for events out of kopf's thread into this loop."""
        loop, watching = asyncio.get_running_loop(), self._parts.watching

        def deliver(kind: Kind, event_type: str, body: Json) -> None:
            loop.call_soon_threadsafe(watching.deliver, kind, event_type, body)

        return deliver

    async def _gauges(self) -> None:
        """Show every second what nobody else counts."""
        parts, metrics = self._parts, self._parts.metrics
        while True:
            metrics.leader.set(parts.lease.leading())
            metrics.synced.set(parts.leadership.may_act())
            metrics.waiting_writes.set(len(parts.queue))
            metrics.fenced.set(parts.queue.refused)
            phases = Counter(str(record.status.get("phase") or "New") for record in parts.records)
            metrics.workloads.clear()
            for phase, count in phases.items():
                metrics.workloads.labels(phase).set(count)
            await asyncio.sleep(1.0)

    async def _standing(self) -> None:
        """Show what the store as a whole says, while it is complete."""
        parts = self._parts
        standing = Standing(
            parts.metrics,
            overuse_percent=parts.policy.overuse_percent,
            rack_label=parts.policy.rack_label,
            draw=parts.accounts.draw,
        )
        while True:
            if parts.leadership.may_act():
                snapshot, now = parts.store.snapshot(), parts.clock.now()
                standing.show(snapshot, now)
                parts.remedies.look(snapshot, now)
                parts.trespass.look(snapshot)
                parts.accounts.charge(snapshot, now, parts.clock.monotonic())
                await parts.interference.look(snapshot, parts.store, now)
                news = await parts.activities.look(snapshot, now, parts.clock.monotonic())
                for key in (*parts.accounts.due(), *news):
                    parts.status.mark(key)
            await asyncio.sleep(STANDING_SECONDS)

    async def _wind_down(self) -> None:
        """Finish what is under way and hand over."""
        parts = self._parts
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await parts.queue.idle()
                await parts.recorder.flush()
        except TimeoutError:
            log.warning("some writes were not finished", waiting=len(parts.queue))
        await parts.label.set(leading=False)
        if len(parts.queue):
            # A write under way may still arrive: the next leader must not begin before it cannot any more.
            log.warning("the lease is left to expire", waiting=len(parts.queue))
        else:
            await parts.lease.release()
        if self._kopf is not None:
            self._kopf.stop()

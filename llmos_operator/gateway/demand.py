"""Tells the operator which workloads are wanted: what wakes a scaled-to-zero workload and feeds autoscaling.

The first request after a quiet time is reported at once, then reports follow at most once a second while there is
traffic; one more says that all is quiet. Requests of a report that was not received are counted into the next, which
comes later after each failure.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from llmos_operator.api.telemetry import DemandBatch, DemandItem
from llmos_operator.errors import LlmosError
from llmos_operator.gateway.catalog import WorkloadKey
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.gateway.metrics import Metrics

log = logger(__name__)

INTERVAL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0
SEND_SECONDS = 3.0
MAX_ITEMS = 4096
_OK = range(200, 300)


@dataclass(slots=True)
class Demand:
    """Requests by workload since the last report, and in flight now. Pure but for the event that says "look"."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _arrived: Counter[WorkloadKey] = field(default_factory=Counter)
    _in_flight: Counter[WorkloadKey] = field(default_factory=Counter)
    _reported: set[WorkloadKey] = field(default_factory=set)

    def arrived(self, key: WorkloadKey) -> None:
        """A request for ``key`` was accepted."""
        self._arrived[key] += 1
        self.changed.set()

    def began(self, key: WorkloadKey) -> None:
        """A request went to a replica."""
        self._in_flight[key] += 1

    def ended(self, key: WorkloadKey) -> None:
        """A request left its replica."""
        self._in_flight[key] -= 1
        if self._in_flight[key] <= 0:
            del self._in_flight[key]

    def in_flight(self) -> Mapping[WorkloadKey, int]:
        """Requests at replicas now."""
        return self._in_flight

    def take(self, waiting: Mapping[WorkloadKey, int]) -> list[DemandItem]:
        """Return the next report's items and count arrivals anew; empty when all is and was quiet.

        ``waiting`` are the requests held now.
        """
        active = {k for k, n in waiting.items() if n} | self._in_flight.keys() | self._arrived.keys()
        items = [
            DemandItem(
                namespace=key.namespace,
                name=key.name,
                waiting=waiting.get(key, 0),
                in_flight=self._in_flight[key],
                requests=self._arrived[key],
            )
            for key in sorted(active | self._reported)[:MAX_ITEMS]
        ]
        self._reported = active
        self._arrived.clear()
        return items

    def put_back(self, items: list[DemandItem]) -> None:
        """Count the arrivals of a report that was not received into the next one."""
        for item in items:
            key = WorkloadKey(item.namespace, item.name)
            if item.requests:
                self._arrived[key] += item.requests
            self._reported.add(key)


class Reporter:
    """Sends the demand to the operator until cancelled."""

    def __init__(
        self,
        demand: Demand,
        waiting: Callable[[], Mapping[WorkloadKey, int]],
        *,
        url: str,
        gateway: str,
        token: Callable[[], str],
        metrics: Metrics,
    ) -> None:
        """``url`` is the operator's, "" to send nothing; ``token`` returns the ServiceAccount's token."""
        self._demand = demand
        self._waiting = waiting
        self._url = f"{url.rstrip('/')}/v1/demand" if url else ""
        self._gateway = gateway
        self._token = token
        self._metrics = metrics
        self._failing = False

    async def run(self) -> None:
        """Report while there is traffic, sleep while there is none."""
        if not self._url:
            return
        timeout = aiohttp.ClientTimeout(total=SEND_SECONDS)
        pause = INTERVAL_SECONDS
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                items = self._demand.take(self._waiting())
                if not items:
                    self._demand.changed.clear()
                    await self._demand.changed.wait()
                    continue
                if await self._send(session, items):
                    pause = INTERVAL_SECONDS
                else:
                    self._demand.put_back(items)
                    pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
                await asyncio.sleep(pause)

    async def _send(self, session: aiohttp.ClientSession, items: list[DemandItem]) -> bool:
        batch = DemandBatch(gateway=self._gateway, items=items)
        sent = {"Content-Type": "application/json"}
        try:
            token = self._token()
            if token:
                sent["Authorization"] = f"Bearer {token}"
            body = batch.model_dump_json(by_alias=True).encode()
            async with session.post(self._url, data=body, headers=sent) as answer:
                status = answer.status
                trouble = "" if status in _OK else f"HTTP {status}"
        except (aiohttp.ClientError, OSError, TimeoutError, LlmosError) as error:
            trouble = f"{type(error).__name__}: {error}"
        self._metrics.reports.labels("failed" if trouble else "sent").inc()
        if bool(trouble) != self._failing:
            self._failing = bool(trouble)
            if trouble:
                log.warning(
                    "cannot report demand: workloads at zero will not wake up", url=self._url, error=trouble
                )
            else:
                log.info("reporting demand again", url=self._url)
        return not trouble

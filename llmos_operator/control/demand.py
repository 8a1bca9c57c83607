"""Demand as gateways report it: who waits, who is served, when the last request came.

A gateway reports at most once a second and only while there is traffic; one more report says that all is quiet. So a
report counts for a few seconds, and a gateway that falls silent after a report of traffic is lost, not quiet: for a
while its part of the demand is unknown. Numbers of several gateways add up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.control.scaling import Demand

if TYPE_CHECKING:
    from llmos_operator.api.telemetry import DemandBatch, DemandItem

REPORT_SECONDS = 5.0
LOST_SECONDS = (
    120.0  # for which a lost gateway's demand counts as unknown; its clients have found another by then
)
_MINUTE = 60.0


@dataclass(slots=True)
class _Flow:
    """Demand for one workload."""

    reports: dict[str, tuple[float, DemandItem]] = field(default_factory=dict)  # by gateway
    arrivals: deque[tuple[float, int]] = field(default_factory=deque)
    last_request: float = 0.0
    arrived: int = 0  # requests, ever
    lost: dict[str, float] = field(
        default_factory=dict
    )  # gateways that fell silent in the middle of traffic, since when

    def forget(self, now: float) -> None:
        """Drop what does not count any more: nobody may ever ask for a workload that does not scale."""
        while self.arrivals and now - self.arrivals[0][0] > _MINUTE:
            self.arrivals.popleft()
        for gateway in [name for name, (at, _) in self.reports.items() if now - at > REPORT_SECONDS]:
            at, item = self.reports.pop(gateway)
            if item.requests or item.waiting or item.in_flight:
                self.lost[gateway] = at
        for gateway in [name for name, at in self.lost.items() if now - at > LOST_SECONDS]:
            del self.lost[gateway]


class DemandBook:
    """Demand of all workloads by key (namespace/name). Times are epoch seconds."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}

    def take(self, batch: DemandBatch, now: float) -> list[str]:
        """Take one gateway's report; returns the workloads it names."""
        keys = []
        for item in batch.items:
            key = f"{item.namespace}/{item.name}"
            flow = self._flows.setdefault(key, _Flow())
            flow.forget(now)
            flow.lost.pop(batch.gateway, None)
            flow.reports[batch.gateway] = (now, item)
            flow.arrived += item.requests
            if item.requests:
                flow.arrivals.append((now, item.requests))
            if item.requests or item.waiting or item.in_flight:
                flow.last_request = now
            keys.append(key)
        return keys

    def demand(self, key: str, now: float) -> Demand:
        """Return the demand for a workload at ``now``."""
        flow = self._flows.get(key)
        if flow is None:
            return Demand()
        flow.forget(now)
        fresh = [item for _, item in flow.reports.values()]
        return Demand(
            waiting=sum(item.waiting for item in fresh),
            running=sum(item.in_flight for item in fresh),
            per_minute=sum(count for _, count in flow.arrivals),
            last_request=flow.last_request,
            arrived=flow.arrived,
            lost=f"no report from gateway {min(flow.lost)}" if flow.lost else "",
        )

    def forget(self, key: str) -> None:
        """Forget a workload that is gone."""
        self._flows.pop(key, None)

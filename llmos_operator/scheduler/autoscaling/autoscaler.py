"""One workload's autoscaler: learns from arrivals, says how many replicas are needed. See docs/scheduler.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.autoscaling import fleet
from llmos_operator.scheduler.autoscaling.erlang import slots_needed
from llmos_operator.scheduler.autoscaling.forecast import VIEWS, Forecast
from llmos_operator.scheduler.autoscaling.margin import Margins
from llmos_operator.scheduler.autoscaling.values import Need

if TYPE_CHECKING:
    from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Capacity

SETTLE_SECONDS = 90.0  # a lower number must have been enough for this long, or for a cold start
_LOOK_AHEAD = 60.0  # beyond the cold start


class Autoscaler:
    """Mutable by design: it is the memory of one workload, owned by whoever asks."""

    def __init__(self, aim: Aim) -> None:
        self.aim = aim
        self._forecast = Forecast()
        self._margins = Margins(aim.share, len(VIEWS))
        self._steady = fleet.Steadiness()
        self.seconds = 0.0  # of arrivals it has seen

    def learn(self, arrivals: Arrivals, capacity: Capacity) -> None:
        """Take what arrived since the last call."""
        if arrivals.seconds <= 0.0:
            return
        ahead = capacity.cold_seconds + _LOOK_AHEAD
        until, requests, seconds = arrivals.until, arrivals.requests, arrivals.seconds
        self._forecast.add(until, requests, seconds, ahead)
        expected = self._forecast.rates(until, ahead)
        self._margins.step(until, requests, seconds, expected, _settle(capacity), capacity, self.aim)
        self.seconds += seconds

    def rest(self) -> None:
        """Nothing runs any more: forget the recent past, keep what was learned for good."""
        self._forecast.rest()
        self._steady = fleet.Steadiness()

    def need(self, now: float, capacity: Capacity, have: int, ready: int, waiting: float) -> Need:
        """Return the replicas to run: ``have`` are ordered, ``ready`` of them serve, ``waiting`` requests have no slot."""
        choice = self._margins.choice
        expected = self._forecast.rates(now, capacity.cold_seconds + _LOOK_AHEAD)[choice.view]
        more = fleet.draining(expected, ready, waiting, capacity)
        rate = max(expected * choice.margin, expected + more)
        slots = slots_needed(rate, capacity.service_seconds, self.aim.wait_seconds, self.aim.tail)
        need = slots / capacity.slots
        steady = self._steady.largest(now, need, _settle(capacity))
        return Need(fleet.replicas(need, steady, have), expected, choice.margin, slots, choice.view)


def _settle(capacity: Capacity) -> float:
    return max(SETTLE_SECONDS, capacity.cold_seconds)

"""One workload's autoscaler: learns from arrivals, says how many replicas are needed. See docs/scheduler.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.autoscaling import fleet
from llmos_operator.scheduler.autoscaling.erlang import slots_needed
from llmos_operator.scheduler.autoscaling.forecast import Forecast
from llmos_operator.scheduler.autoscaling.margin import Margins
from llmos_operator.scheduler.autoscaling.values import Need

if TYPE_CHECKING:
    from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Capacity

SETTLE_SECONDS = 120.0  # a lower number must have been enough for this long, or for a cold start
_DRAIN_SECONDS = 60.0  # in which a queue that will still be there is worked off
_LOOK_AHEAD = 60.0  # beyond the cold start


class Autoscaler:
    """Mutable by design: it is the memory of one workload, owned by whoever asks."""

    def __init__(self, aim: Aim) -> None:
        self.aim = aim
        self._forecast = Forecast()
        self._margins = Margins(aim.share)
        self._steady = fleet.Steadiness()
        self.seconds = 0.0  # of arrivals it has seen

    def learn(self, arrivals: Arrivals, capacity: Capacity) -> None:
        """Take what arrived since the last call."""
        if arrivals.seconds <= 0.0:
            return
        ahead = capacity.cold_seconds + _LOOK_AHEAD
        until, requests, seconds = arrivals.until, arrivals.requests, arrivals.seconds
        self._forecast.add(until, requests, seconds, ahead)
        bare = self._forecast.rate(until, ahead) / capacity.rate
        self._margins.step(until, requests, seconds, bare, _settle(capacity), capacity, self.aim)
        self.seconds += seconds

    def rest(self) -> None:
        """Nothing runs any more: forget the recent past, keep what was learned for good."""
        self._forecast.rest()
        self._steady = fleet.Steadiness()

    def need(self, now: float, capacity: Capacity, have: int, ready: int, waiting: float) -> Need:
        """Return the replicas to run: ``have`` are ordered, ``ready`` of them serve, ``waiting`` requests have no slot."""
        expected = self._forecast.rate(now, capacity.cold_seconds + _LOOK_AHEAD)
        margin = self._margins.value
        # What is left of the queue when a replica ordered now serves; only that is worth a replica.
        left = (
            max(0.0, waiting + (expected - ready * capacity.rate) * capacity.cold_seconds)
            if waiting > 0
            else 0.0
        )
        rate = max(expected * margin, expected + left / _DRAIN_SECONDS if left else 0.0)
        slots = slots_needed(rate, capacity.service_seconds, self.aim.wait_seconds, self.aim.tail)
        need = slots / capacity.slots
        steady = self._steady.largest(now, need, _settle(capacity))
        return Need(fleet.replicas(need, steady, have), expected, margin, slots)


def _settle(capacity: Capacity) -> float:
    return max(SETTLE_SECONDS, capacity.cold_seconds)

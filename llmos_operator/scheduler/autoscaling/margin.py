"""Which forecast to follow, and by how much to exceed it: learned by running fleets that do not exist beside the one that does.

A shadow fleet follows one of the forecasts and the same rules with a margin of its own: its replicas need their cold start,
its queue is a fluid one, and the requests that wait too long are counted. For each forecast the smallest margin counts
whose fleet keeps the promised share; of these fleets the cheapest is followed. So the margin covers what there is to cover - noise, bursts, wrong forecasts, slow starts -
without a model of any of them: the idea of conformal prediction (Gibbs and Candes, NeurIPS 2021), with the loss
measured in late requests instead of covered intervals.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.scheduler.autoscaling import fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.autoscaling.values import Aim, Capacity

LOWEST = 1.1
STEP = 1.02  # ratio of neighbouring margins
COUNT = 24  # up to 1.73: more than that a bad experience may not cost, as a queue has replicas started anyway
FIRST = 1.6  # margin until experience says otherwise: 99.9 % for load that varies by a quarter from minute to minute
PRIOR_SECONDS = 86400.0  # of experience that the first margin stands for
HALF_LIFE = 7 * 86400.0
CAUTION = 0.6  # part of the allowed late requests to plan with: experience is a sample
DOUBT = 2.0  # how many times the late requests of the first forecast the others are taken to have, before there is experience
WORTH = 1.01  # the first forecast is left only for one that costs a hundredth less


@dataclass(slots=True)
class Shadow:
    """One fleet that does not exist."""

    margin: float
    expected: float  # part of the requests that is late with this margin, before there is experience
    late: float = 0.0  # requests that waited too long
    cost: float = 0.0  # replica seconds
    have: int = 0
    queue: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What to follow."""

    view: int  # which of the forecasts
    margin: float  # what it is multiplied with


class Margins:
    """All shadow fleets, and what they recommend."""

    def __init__(self, share: float, views: int) -> None:
        self._budget = CAUTION * (1.0 - share)
        self._total = self._seconds = 0.0  # requests, and the time in which they came
        self._views = [_shadows(self._budget * (DOUBT if view else 1.0)) for view in range(views)]
        self._steady = [fleet.Steadiness() for _ in range(views)]
        self._starts: deque[tuple[float, list[list[int]]]] = deque()  # (when, replicas of each shadow)
        self.choice = Choice(0, FIRST)

    def step(
        self,
        until: float,
        requests: float,
        seconds: float,
        expected: Sequence[float],
        settle: float,
        capacity: Capacity,
        aim: Aim,
    ) -> None:
        """Run the fleets for ``seconds`` with ``requests``; ``expected`` are the rates of each forecast at the end."""
        if not self._starts:
            for shadows, rate in zip(self._views, expected, strict=True):
                for shadow in shadows:
                    shadow.have = max(1, math.ceil(rate / capacity.rate * shadow.margin))
            self._starts.append((-math.inf, self._sizes()))
        serving = self._serving(until - seconds - capacity.cold_seconds)
        keep = 0.5 ** (seconds / HALF_LIFE)
        self._total, self._seconds = self._total * keep + requests, self._seconds * keep + seconds
        for view, shadows in enumerate(self._views):
            rate = expected[view]
            steady = self._steady[view].largest(until, rate, settle)
            for shadow, ordered in zip(shadows, serving[view], strict=True):
                ready = max(min(ordered, shadow.have), 1)
                _serve(shadow, requests, seconds, ready * capacity.rate, aim.wait_seconds, keep)
                more = fleet.draining(rate, ready, shadow.queue, capacity)
                need = max(rate * shadow.margin, rate + more) / capacity.rate
                largest = max(need, steady * shadow.margin / capacity.rate)
                shadow.have = max(1, fleet.replicas(need, largest, shadow.have))
        self._starts.append((until, self._sizes()))
        self.choice = self._choose()

    def _sizes(self) -> list[list[int]]:
        return [[shadow.have for shadow in shadows] for shadows in self._views]

    def _serving(self, ordered_by: float) -> list[list[int]]:
        """Return the replicas each shadow had ordered by then: those that serve now."""
        while len(self._starts) > 1 and self._starts[1][0] <= ordered_by:
            self._starts.popleft()
        return self._starts[0][1]

    def _choose(self) -> Choice:
        if self._total <= 0.0:
            return Choice(0, FIRST)
        # What the widest margin could not prevent, like load that grows eightfold, is no reason for any margin.
        lost = min(shadows[-1].late for shadows in self._views)
        prior = self._total / self._seconds * PRIOR_SECONDS  # requests
        allowed = self._budget * (self._total + prior) + lost
        best, least = Choice(0, self._views[0][-1].margin), math.inf
        for view, shadows in enumerate(self._views):
            enough = next((one for one in shadows if one.late + one.expected * prior <= allowed), None)
            cost = math.inf if enough is None else enough.cost * (WORTH if view else 1.0)
            if enough is not None and cost < least:
                best, least = Choice(view, enough.margin), cost
        return best


def _shadows(late: float) -> list[Shadow]:
    """Return fleets of all margins; at the first margin ``late`` of the requests are taken to be late."""
    # A tenth of the late requests for each 0.2 of margin: the tail of load that varies by a quarter.
    margins = [LOWEST * STEP**index for index in range(COUNT)]
    return [Shadow(margin, min(1.0, late * 10.0 ** ((FIRST - margin) / 0.2))) for margin in margins]


def _serve(shadow: Shadow, requests: float, seconds: float, rate: float, limit: float, keep: float) -> None:
    """Let a fleet that serves ``rate`` requests per second work for ``seconds``."""
    after = max(0.0, shadow.queue + requests - rate * seconds)
    shadow.late = shadow.late * keep + requests * _late(shadow.queue / rate, after / rate, limit)
    shadow.cost = shadow.cost * keep + shadow.have * seconds
    shadow.queue = after


def _late(before: float, after: float, limit: float) -> float:
    """Return the part of the arrivals that waits beyond ``limit`` while the wait goes evenly from ``before`` to ``after``."""
    low, high = min(before, after), max(before, after)
    if high <= limit:
        return 0.0
    return 1.0 if low >= limit else (high - limit) / (high - low)

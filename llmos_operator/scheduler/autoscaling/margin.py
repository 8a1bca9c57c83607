"""By how much to exceed the forecast: learned by running fleets that do not exist beside the one that does.

A shadow fleet follows the same forecast and the same rules with a margin of its own: its replicas need their cold start,
its queue is a fluid one, and the requests that wait too long are counted. The smallest margin whose fleet keeps the
promised share is used. So the margin covers what there is to cover - noise, bursts, wrong forecasts, slow starts -
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
    from llmos_operator.scheduler.autoscaling.values import Aim, Capacity

LOWEST = 1.1
STEP = 1.02  # ratio of neighbouring margins
COUNT = 31  # up to 2: half of a fleet idle is the most that a bad experience may cost
FIRST = 1.6  # margin until experience says otherwise: 99.9 % for load that varies by a quarter from minute to minute
PRIOR_SECONDS = 86400.0  # of experience that the first margin stands for
HALF_LIFE = 7 * 86400.0
CAUTION = 0.8  # part of the allowed late requests to plan with: experience is a sample


@dataclass(slots=True)
class Shadow:
    """One fleet that does not exist."""

    margin: float
    expected: float  # part of the requests that is late with this margin, before there is experience
    late: float = 0.0  # requests that waited too long
    have: int = 0
    queue: float = 0.0


class Margins:
    """All shadow fleets, and the margin they recommend."""

    def __init__(self, share: float) -> None:
        self._budget = CAUTION * (1.0 - share)
        self._total = self._seconds = 0.0  # requests, and the time in which they came
        margins = [LOWEST * STEP**index for index in range(COUNT)]
        # A tenth of the late requests for each 0.2 of margin: the tail of load that varies by a quarter.
        self._shadows = [Shadow(m, min(1.0, self._budget * 10.0 ** ((FIRST - m) / 0.2))) for m in margins]
        self._steady = fleet.Steadiness()
        self._starts: deque[tuple[float, list[int]]] = deque()  # (when, replicas of each shadow)
        self.value = FIRST

    def step(
        self,
        until: float,
        requests: float,
        seconds: float,
        need: float,
        settle: float,
        capacity: Capacity,
        aim: Aim,
    ) -> None:
        """Run the fleets for ``seconds`` with ``requests``; ``need`` are the replicas for the bare forecast at the end."""
        if not self._starts:
            for shadow in self._shadows:
                shadow.have = max(1, math.ceil(need * shadow.margin))
            self._starts.append((-math.inf, [shadow.have for shadow in self._shadows]))
        serving = self._serving(until - seconds - capacity.cold_seconds)
        keep = 0.5 ** (seconds / HALF_LIFE)
        self._total, self._seconds = self._total * keep + requests, self._seconds * keep + seconds
        steady = self._steady.largest(until, need, settle)
        for shadow, ready in zip(self._shadows, serving, strict=True):
            rate = max(min(ready, shadow.have), 1) * capacity.rate
            after = max(0.0, shadow.queue + requests - rate * seconds)
            shadow.late = shadow.late * keep + requests * _late(
                shadow.queue / rate, after / rate, aim.wait_seconds
            )
            shadow.queue = after
            shadow.have = max(1, fleet.replicas(need * shadow.margin, steady * shadow.margin, shadow.have))
        self._starts.append((until, [shadow.have for shadow in self._shadows]))
        self.value = self._choose()

    def _serving(self, ordered_by: float) -> list[int]:
        """Return the replicas each shadow had ordered by then: those that serve now."""
        while len(self._starts) > 1 and self._starts[1][0] <= ordered_by:
            self._starts.popleft()
        return self._starts[0][1]

    def _choose(self) -> float:
        if self._total <= 0.0:
            return FIRST
        # What the widest margin could not prevent, like load that grows eightfold, is no reason for any margin.
        widest = self._shadows[-1]
        prior = self._total / self._seconds * PRIOR_SECONDS  # requests
        allowed = self._budget * (self._total + prior) + widest.late
        return next(
            (s.margin for s in self._shadows if s.late + s.expected * prior <= allowed), widest.margin
        )


def _late(before: float, after: float, limit: float) -> float:
    """Return the part of the arrivals that waits beyond ``limit`` while the wait goes evenly from ``before`` to ``after``."""
    low, high = min(before, after), max(before, after)
    if high <= limit:
        return 0.0
    return 1.0 if low >= limit else (high - limit) / (high - low)

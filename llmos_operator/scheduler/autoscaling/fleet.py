"""From a need in replicas to a number of replicas that does not flap.

Up as soon as the number that runs is not enough; down only when the lower number was enough for a while, and only by
more than a part of a replica, so that a need that trembles around a whole number moves nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.scheduler.autoscaling.values import Capacity

UP_SLACK = 0.3  # of a replica that may be missing before one is added
DOWN_SLACK = 0.3  # of a replica that must be spare beyond the one to go
DRAIN_SECONDS = 20.0  # in which a queue that will still be there is worked off


class Steadiness:
    """Largest need of the last ``seconds``: what a lower number has to be enough for."""

    __slots__ = ("_needs",)

    def __init__(self) -> None:
        self._needs: deque[tuple[float, float]] = deque()  # (when, need), needs falling

    def largest(self, now: float, need: float, seconds: float) -> float:
        """Take ``need`` and return the largest of the last ``seconds``."""
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now, need))
        while self._needs[0][0] < now - seconds:
            self._needs.popleft()
        return self._needs[0][1]


def replicas(need: float, steady: float, have: int) -> int:
    """Return the replicas to run: ``need`` is now, ``steady`` the largest need of a while, ``have`` what runs."""
    if need > have + UP_SLACK:
        return math.ceil(need - UP_SLACK)
    enough = max(0, math.ceil(steady - UP_SLACK))
    return enough if enough < have and steady < have - 1 + UP_SLACK - DOWN_SLACK else have


def draining(expected: float, ready: float, waiting: float, capacity: Capacity) -> float:
    """Return the requests per second to serve beyond ``expected`` so that ``waiting`` ones are soon worked off.

    Only what will be left of the queue when a replica ordered now begins to serve is worth a replica.
    """
    if waiting <= 0.0:
        return 0.0
    left = waiting + (expected - ready * capacity.rate) * capacity.cold_seconds
    return max(0.0, left) / DRAIN_SECONDS

"""What autoscaling is told and what it answers. Times are epoch seconds, rates requests per second."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica can do, and how long a new one takes."""

    slots: float  # requests it works on at a time, at the latency that is promised; > 0
    service_seconds: float  # how long one request holds its slot; > 0
    cold_seconds: float  # from the decision to the first answer of a new replica

    @property
    def rate(self) -> float:
        """Requests per second one replica finishes when all its slots are busy."""
        return self.slots / self.service_seconds


@dataclass(frozen=True, slots=True)
class Aim:
    """What is promised to the requests."""

    wait_seconds: float  # longest time a request should wait for a slot
    share: float = 0.999  # of all requests, over days, that should not wait longer
    tail: float = 0.05  # of the requests of a steady minute that may: the complement of a 95th percentile


@dataclass(frozen=True, slots=True)
class Bounds:
    """Fewest and most replicas."""

    least: int
    most: int

    def clamp(self, number: int) -> int:
        """Return ``number`` within the bounds."""
        return min(max(number, self.least), max(self.least, self.most))


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests that arrived in the ``seconds`` before ``until``."""

    until: float
    requests: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Need:
    """How many replicas are needed, and the figures behind it."""

    replicas: int
    expected_rate: float  # forecast of the mean rate once a replica ordered now would serve
    margin: float  # what the forecast is multiplied with, learned from how wrong it was
    slots: float  # needed at a time
    view: int  # which forecast was used, by its place in forecast.VIEWS

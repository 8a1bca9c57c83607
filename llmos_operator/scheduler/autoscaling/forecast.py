"""The rate of requests to expect when a replica ordered now begins to serve.

Three views of the recent past, the largest of which counts:

    fast   exponential mean of the last minutes: the level
    slow   exponential mean of the last hour, less a discount: a dip is not believed at once
    peak   largest level of the last two hours, less a larger discount: a collapse is not believed either; it is
           usually a broken client or a gap in the figures, and ends as suddenly as it began

and, from the second day on, times how the same clock time grew on the days before, as long as that has predicted better
than no growth. A trend is left out on purpose: on the public traces it added noise and no foresight.

There are two such forecasts. The careful one doubts a fall to three quarters; the plain one only a fall to a half, and is
slower and so steadier. Which of them serves a workload at less cost is found out by shadow fleets (see margin).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

DAY = 86400.0
_GRID = 60.0  # seconds between entries of what is kept


@dataclass(frozen=True, slots=True)
class Scales:
    """Time constants (half-lives, seconds) and discounts of the views."""

    fast: float = 180.0
    slow: float = 2400.0
    slow_part: float = 0.8
    level: float = 300.0  # of the level the peak is taken from
    peak_seconds: float = 7200.0
    peak_part: float = 0.75


CAREFUL = Scales()
PLAIN = Scales(fast=240.0, peak_part=0.5)
VIEWS = (CAREFUL, PLAIN)  # the first is trusted until there is experience


class Mean:
    """Exponential mean over time that starts as a plain mean."""

    __slots__ = ("_elapsed", "_half_life", "value")

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._elapsed = 0.0
        self.value = 0.0

    def add(self, value: float, seconds: float) -> None:
        """Take ``value`` as having held for ``seconds``."""
        self._elapsed += seconds
        part = max(1.0 - 0.5 ** (seconds / self._half_life), seconds / self._elapsed)
        self.value += part * (value - self.value)


class DayShape:
    """Mean rate by quarter of an hour, over the days seen, and whether following it has paid."""

    SLOTS = 96
    _DAYS = 0.4  # weight of the newest day
    _FEWEST_DAYS = 1.0
    _PAYS = 0.9  # following must have had less than this part of the error of not following

    def __init__(self) -> None:
        self._rates: list[float | None] = [None] * self.SLOTS
        self._slot = -1
        self._sum = self._seconds = 0.0
        self._learned = 0
        self._due: deque[tuple[float, float, float]] = deque()  # (when, level then, growth that was foretold)
        self._flat, self._shaped = Mean(DAY), Mean(DAY)

    def add(self, until: float, rate: float, seconds: float) -> None:
        """Take the rate of the last ``seconds``."""
        slot = int(until % DAY / DAY * self.SLOTS)
        if slot != self._slot:
            self._close()
            self._slot = slot
        self._sum += rate * seconds
        self._seconds += seconds

    def _close(self) -> None:
        if self._slot >= 0 and self._seconds > 0.0:
            mean, old = self._sum / self._seconds, self._rates[self._slot]
            self._rates[self._slot] = mean if old is None else old + self._DAYS * (mean - old)
            self._learned += 1
        self._sum = self._seconds = 0.0

    def _at(self, when: float) -> float | None:
        place = when % DAY / DAY * self.SLOTS - 0.5
        low = math.floor(place)
        one, other = self._rates[low % self.SLOTS], self._rates[(low + 1) % self.SLOTS]
        if one is None or other is None:
            return None
        return one + (place - low) * (other - one)

    def growth(self, now: float, ahead: float) -> float:
        """Return by what factor the rate grew from this time of day to ``ahead`` seconds later; 1.0 if unknown."""
        if self._learned < self.SLOTS * self._FEWEST_DAYS:
            return 1.0
        here, there = self._at(now), self._at(now + ahead)
        if here is None or there is None or here <= 0.0:
            return 1.0
        return min(max(there / here, 0.5), 2.0)

    def check(self, now: float, level: float, ahead: float) -> None:
        """Judge what was foretold for now, and foretell ``ahead`` seconds."""
        while self._due and self._due[0][0] <= now:
            _, was, growth = self._due.popleft()
            if was > 0.0 and level > 0.0:
                error = math.log(level / was)
                self._flat.add(error * error, _GRID)
                self._shaped.add((error - math.log(growth)) ** 2, _GRID)
        if self._learned >= self.SLOTS * self._FEWEST_DAYS:
            self._due.append((now + ahead, level, self.growth(now, ahead)))

    @property
    def pays(self) -> bool:
        """Whether following the shape has predicted better than expecting no change."""
        return self._shaped.value < self._PAYS * self._flat.value


class Recent:
    """The recent past as one set of scales sees it: level, slow level and peak."""

    def __init__(self, scales: Scales) -> None:
        self._scales = scales
        self._fast, self._slow = Mean(scales.fast), Mean(scales.slow)
        self._level = Mean(scales.level)
        self._peaks: deque[tuple[float, float]] = deque()  # (when, level), levels falling
        self._kept_at = -math.inf

    def add(self, until: float, rate: float, seconds: float) -> None:
        """Take the rate of the last ``seconds``."""
        for mean in (self._fast, self._slow, self._level):
            mean.add(rate, seconds)
        if until - self._kept_at >= _GRID:
            self._kept_at = until
            while self._peaks and self._peaks[-1][1] <= self._level.value:
                self._peaks.pop()
            self._peaks.append((until, self._level.value))
        while self._peaks and self._peaks[0][0] < until - self._scales.peak_seconds:
            self._peaks.popleft()

    @property
    def level(self) -> float:
        """Rate of the last minutes."""
        return self._level.value

    @property
    def rate(self) -> float:
        """The rate to expect if nothing changes: the largest of what is seen."""
        peak = self._peaks[0][1] if self._peaks else 0.0
        scales = self._scales
        return max(self._fast.value, self._slow.value * scales.slow_part, peak * scales.peak_part)


class Forecast:
    """Learns from arrivals; see the module."""

    def __init__(self, views: tuple[Scales, ...] = VIEWS) -> None:
        self._views = views
        self._recent = tuple(Recent(scales) for scales in views)
        self._day = DayShape()
        self._checked_at = -math.inf

    def add(self, until: float, requests: float, seconds: float, ahead: float) -> None:
        """Take the requests of the last ``seconds``; ``ahead`` is how far forecasts reach."""
        rate = requests / seconds
        for recent in self._recent:
            recent.add(until, rate, seconds)
        self._day.add(until, rate, seconds)
        if until - self._checked_at >= _GRID:
            self._checked_at = until
            self._day.check(until, self._recent[0].level, ahead)

    def rest(self) -> None:
        """Forget the recent past: nothing runs, and the first request is no sign of what ran before."""
        self._recent = tuple(Recent(scales) for scales in self._views)

    def rates(self, now: float, ahead: float) -> tuple[float, ...]:
        """Return the mean rate to expect from now to ``ahead`` seconds later, one for each of the views."""
        growth = max(1.0, self._day.growth(now, ahead)) if self._day.pays else 1.0
        return tuple(recent.rate * growth for recent in self._recent)

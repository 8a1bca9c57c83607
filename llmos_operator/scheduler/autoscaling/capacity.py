"""What one replica can do, learned from the counters runtimes report.

    service time   requests in progress x seconds / requests finished        (J. D. C. Little, Operations Research 9, 1961)
    time per token requests in progress x seconds / tokens generated
    slots          largest batch whose time per token keeps the target: where a line fitted through
                   (requests in progress, time per token) meets it

The time per token is a mean; runtimes do not report percentiles of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos_operator.scheduler.autoscaling.forecast import Mean

_HALF_LIFE = 1800.0
_FEWEST_FINISHED = 10.0  # requests before a service time is believed
_LONGEST = 120.0  # seconds between two reports that still belong together
_SPREAD = 0.25  # variance of the batch (requests squared) below which no line is fitted
_FLAT = 1e-6  # slope (seconds a token and request) below which the batch does not matter


@dataclass(frozen=True, slots=True)
class Counters:
    """One replica's counters at a moment. `finished` and `tokens` count since its start."""

    replica: str
    at: float  # epoch seconds
    running: int
    finished: int
    tokens: int


class Speed:
    """How fast replicas of one workload work."""

    def __init__(self) -> None:
        self._last: dict[str, Counters] = {}
        self._busy, self._done = (
            Mean(_HALF_LIFE),
            Mean(_HALF_LIFE),
        )  # requests in progress; finished per second
        self._finished = 0.0
        # Moments of (requests in progress, seconds per token), for the line through them.
        self._batch, self._token = Mean(_HALF_LIFE), Mean(_HALF_LIFE)
        self._square, self._product = Mean(_HALF_LIFE), Mean(_HALF_LIFE)
        self._tokens = False

    def learn(self, counters: tuple[Counters, ...]) -> None:
        """Take the newest counters of every replica; what was taken before, or has started anew, is no news."""
        for new in counters:
            old = self._last.get(new.replica)
            if old is None or new.at > old.at:
                self._last[new.replica] = new
            if old is None or not 0.0 < new.at - old.at <= _LONGEST:
                continue
            if new.finished >= old.finished and new.tokens >= old.tokens:
                self._take(old, new, new.at - old.at)
        present = {one.replica for one in counters}
        for gone in [name for name in self._last if name not in present]:
            del self._last[gone]

    def _take(self, old: Counters, new: Counters, seconds: float) -> None:
        running = (old.running + new.running) / 2.0
        finished, tokens = new.finished - old.finished, new.tokens - old.tokens
        if running > 0.0 or finished:
            self._busy.add(max(running, 0.0), seconds)
            self._done.add(finished / seconds, seconds)
            self._finished += finished
        if running > 0.0 and tokens:
            each = running * seconds / tokens
            self._tokens = True
            self._batch.add(running, seconds)
            self._token.add(each, seconds)
            self._square.add(running * running, seconds)
            self._product.add(running * each, seconds)

    @property
    def service_seconds(self) -> float | None:
        """How long one request holds its slot; None until enough have finished."""
        if self._finished < _FEWEST_FINISHED or self._done.value <= 0.0 or self._busy.value <= 0.0:
            return None
        return self._busy.value / self._done.value

    def slots(self, most: int, token_seconds: float | None) -> float:
        """Return the requests a replica may work on at a time: ``most``, or fewer to keep ``token_seconds`` a token."""
        if token_seconds is None or not self._tokens:
            return float(most)
        batch, token = self._batch.value, self._token.value
        spread = self._square.value - batch * batch
        slope = (self._product.value - batch * token) / spread if spread > _SPREAD else 0.0
        if slope > _FLAT:
            fit = batch + (token_seconds - token) / slope
        elif token <= token_seconds:
            fit = float(most)
        else:
            fit = batch * token_seconds / token
        return min(max(fit, 1.0), float(most))

"""Rate limits: buckets of requests and tokens that refill over a minute.

A bucket holds one minute's worth. Requests are paid before, one each; tokens are paid after the answer, when their
number is known, and may put the bucket in debt: the next request then waits until the debt is refilled. The state is
per gateway replica (docs/gateway.md says so): n replicas let through up to n times the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.gateway.catalog import Rate

MINUTE = 60.0
_DUST = 1e-6  # sums of floats: who waited as long as he was told must get in


@dataclass(slots=True)
class Bucket:
    """``per_minute`` units refill evenly; times are monotonic seconds."""

    per_minute: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        """Bring the level up to ``now``."""
        self.level = min(float(self.per_minute), self.level + (now - self.at) * self.per_minute / MINUTE)
        self.at = now

    def wait_for(self, amount: float) -> float:
        """Return the seconds until the level reaches ``amount``."""
        return max(0.0, (amount - self.level) * MINUTE / self.per_minute)


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that is used up: which (`requests` or `tokens`), its size, and seconds until it allows one more."""

    what: str
    limit: int
    retry_after: float


@dataclass(slots=True)
class Limiter:
    """Buckets by whoever is limited: an API key, a key at a workload."""

    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def take(self, who: str, rate: Rate, now: float) -> Exceeded | None:
        """Pay for one request of ``who``; return what is exceeded instead, and then nothing is paid."""
        requests = self._bucket(who, "requests", rate.requests, now)
        tokens = self._bucket(who, "tokens", rate.tokens, now)
        if requests is not None and requests.level < 1.0 - _DUST:
            return Exceeded("requests", rate.requests, requests.wait_for(1.0))
        if tokens is not None and tokens.level <= _DUST:
            return Exceeded("tokens", rate.tokens, tokens.wait_for(1.0))
        if requests is not None:
            requests.level -= 1.0
        return None

    def spend_tokens(self, who: str, rate: Rate, tokens: int, now: float) -> None:
        """Pay for the tokens of a finished request."""
        bucket = self._bucket(who, "tokens", rate.tokens, now)
        if bucket is not None:
            bucket.level -= tokens

    def forget_idle(self, now: float) -> None:
        """Drop buckets that are full again: a new one would be the same."""
        for key, bucket in list(self._buckets.items()):
            bucket.refill(now)
            if bucket.level >= bucket.per_minute:
                del self._buckets[key]

    def _bucket(self, who: str, what: str, per_minute: int, now: float) -> Bucket | None:
        if per_minute <= 0:
            return None
        bucket = self._buckets.get((who, what))
        if bucket is None:
            bucket = self._buckets[(who, what)] = Bucket(per_minute, float(per_minute), now)
        elif bucket.per_minute != per_minute:
            # The limit was changed: keep the share that is left.
            bucket.level *= per_minute / bucket.per_minute
            bucket.per_minute = per_minute
        bucket.refill(now)
        return bucket

"""Who sends a request: ServiceAccount tokens checked by TokenReview, remembered for a minute.

Tokens are remembered by their hash only. Each token nobody has seen costs the API server a request, so what strangers may
cause is bounded: per source, so that one of them does not lock the others out, and altogether. Tokens that are known
pass without either.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort, TokenIdentity

_K = TypeVar("_K")
_V = TypeVar("_V")
KNOWN_SECONDS = 60.0
UNKNOWN_SECONDS = 10.0
REMEMBERED = 10_000  # tokens of somebody
REFUSED = 1_000  # tokens of nobody: apart, so that a flood of them does not push out those of agents
NODE_EXTRA = "authentication.kubernetes.io/node-name"


class TooManyTokens(Retryable):
    """More unknown tokens than are reviewed. `of_source` says whose limit it was: the sender's own, or everybody's."""

    def __init__(self, message: str, *, of_source: bool) -> None:
        super().__init__(message, after=1.0)
        self.of_source = of_source


@dataclass(frozen=True, slots=True)
class ReviewLimits:
    """Reviews per second and in a burst, of one source and of all; sources remembered at once."""

    source_rate: float = 1.0
    source_burst: float = 20.0
    rate: float = 50.0
    burst: float = 500.0  # every agent of a large cluster asks at once when the operator has restarted
    sources: int = 4096


class _Bucket:
    """Tokens that refill with time."""

    __slots__ = ("at", "left")

    def __init__(self, burst: float, now: float) -> None:
        self.left, self.at = burst, now

    def refill(self, now: float, rate: float, burst: float) -> float:
        self.left, self.at = min(burst, self.left + (now - self.at) * rate), now
        return self.left


class Identities:
    """Answers who a bearer token belongs to."""

    def __init__(self, port: ClusterPort, clock: Clock, limits: ReviewLimits | None = None) -> None:
        self._port = port
        self._clock = clock
        self._limits = limits or ReviewLimits()
        self._known: OrderedDict[bytes, tuple[float, TokenIdentity]] = OrderedDict()
        self._nobodys: OrderedDict[bytes, float] = OrderedDict()
        self._all = _Bucket(self._limits.burst, clock.monotonic())
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()

    async def identify(self, token: str, source: str = "") -> TokenIdentity | None:
        """Return the token's identity, None if it is nobody's. Raises `TooManyTokens` and the port's errors.

        ``source`` is where the request came from: the peer's address.
        """
        key = hashlib.sha256(token.encode()).digest()
        now = self._clock.monotonic()
        answer = self._known.get(key)
        if answer is not None and now < answer[0]:
            return answer[1]
        if now < self._nobodys.get(key, now):
            return None
        self._take(source, now)
        identity = await self._port.token_review(token)
        if identity is None:
            self._known.pop(key, None)
            _remember(self._nobodys, key, now + UNKNOWN_SECONDS, REFUSED)
        else:
            self._nobodys.pop(key, None)
            _remember(self._known, key, (now + KNOWN_SECONDS, identity), REMEMBERED)
        return identity

    def _take(self, source: str, now: float) -> None:
        """Count one review. A source over its own limit takes nothing from the others."""
        limits = self._limits
        bucket = self._sources.get(source) or _Bucket(limits.source_burst, now)
        _remember(self._sources, source, bucket, limits.sources)
        if bucket.refill(now, limits.source_rate, limits.source_burst) < 1.0:
            raise TooManyTokens("too many unknown tokens from this address", of_source=True)
        if self._all.refill(now, limits.rate, limits.burst) < 1.0:
            raise TooManyTokens("too many unknown tokens", of_source=False)
        bucket.left -= 1.0
        self._all.left -= 1.0


def _remember(kept: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def account(namespace: str, name: str) -> str:
    """Return the user name of a ServiceAccount."""
    return f"system:serviceaccount:{namespace}:{name}"

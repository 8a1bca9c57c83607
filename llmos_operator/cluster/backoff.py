"""Waiting longer after each failure: pure arithmetic, per key.

Used for list/watch retries, for writes of one object and for container restarts. Jitter comes from the caller's
random generator, so that simulations repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable
    from random import Random

K = TypeVar("K", bound="Hashable")


@dataclass(frozen=True, slots=True)
class Curve:
    """Delays that double from `base` to `cap` seconds, each taken at random from its upper half."""

    base: float = 0.5
    cap: float = 30.0

    def delay(self, failures: int, rng: Random) -> float:
        """Return the seconds to wait after ``failures`` (>= 1) failures in a row."""
        full = min(self.cap, self.base * 2.0 ** min(failures - 1, 30))
        return full * (0.5 + rng.random() / 2)


class KeyedBackoff(Generic[K]):
    """When each key may be tried again. Keys without failures are not kept."""

    def __init__(self, curve: Curve, rng: Random) -> None:
        self._curve = curve
        self._rng = rng
        self._failures: dict[K, int] = {}
        self._ready_at: dict[K, float] = {}

    def fail(self, key: K, now: float, *, after: float = 0.0) -> float:
        """Note a failure of ``key`` and return when it may be tried again, at least ``after`` seconds from ``now``."""
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        ready_at = now + max(after, self._curve.delay(failures, self._rng))
        self._ready_at[key] = ready_at
        return ready_at

    def succeed(self, key: K) -> None:
        """Forget the failures of ``key``."""
        self._failures.pop(key, None)
        self._ready_at.pop(key, None)

    def ready(self, key: K, now: float) -> bool:
        """Return whether ``key`` may be tried at ``now``."""
        return self._ready_at.get(key, now) <= now

    def ready_at(self, key: K) -> float:
        """Return when ``key`` may be tried again; 0.0 if it has not failed."""
        return self._ready_at.get(key, 0.0)

    def failures(self, key: K) -> int:
        """Return the failures of ``key`` in a row."""
        return self._failures.get(key, 0)

    def next_ready(self) -> float | None:
        """Return the earliest time any key becomes ready, None if none waits."""
        return min(self._ready_at.values(), default=None)

    def forget_before(self, then: float) -> None:
        """Forget keys that could have been tried again before ``then``: for keys that nobody reports as gone."""
        for key in [key for key, ready_at in self._ready_at.items() if ready_at < then]:
            self.succeed(key)

    def keep_only(self, keys: set[K]) -> None:
        """Forget all keys but ``keys``: those of objects that are gone would pile up."""
        for key in [key for key in self._failures if key not in keys]:
            self.succeed(key)

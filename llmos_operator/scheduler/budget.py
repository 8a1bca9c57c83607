"""Time a cycle may take. The clock is an argument; without one a cycle runs to its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Budget:
    """A deadline on a monotonic clock, asked between decisions."""

    monotonic: Callable[[], float] | None = None
    deadline: float = math.inf

    @classmethod
    def seconds(cls, seconds: float, monotonic: Callable[[], float]) -> Budget:
        """Return a budget of `seconds` from now on `monotonic` (a clock's method, seconds)."""
        return cls(monotonic, monotonic() + seconds)

    def exhausted(self) -> bool:
        """Return whether the deadline has passed."""
        return self.monotonic is not None and self.monotonic() >= self.deadline


UNLIMITED = Budget()

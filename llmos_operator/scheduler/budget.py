"""Time a cycle may take. The clock is an argument; without one a cycle runs to its end.

Deciding and searching have a limit each. A search for victims may need seconds in a large cluster; were it cut off by
the limit of the cycle, everybody behind its claimant would wait for as long as that claimant does.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Budget:
    """Two limits on a monotonic clock: for a cycle without its searches, asked between decisions, and for all searches."""

    def __init__(
        self,
        monotonic: Callable[[], float] | None = None,
        deciding: float = math.inf,
        searching: float = math.inf,
    ) -> None:
        """Start the cycle's time. The limits are seconds on ``monotonic``, a clock's method."""
        self._monotonic = monotonic
        self._deciding = deciding
        self._searching = searching
        self._begun = self._read()
        self._searched = 0.0
        self._search_begun: float | None = None

    def exhausted(self) -> bool:
        """Return whether the time for deciding is over."""
        return self._read() - self._begun - self._spent() >= self._deciding

    def search_exhausted(self) -> bool:
        """Return whether the time for searches is over."""
        return self._spent() >= self._searching

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Count the time until the end of the block as search."""
        self._search_begun = self._read()
        try:
            yield
        finally:
            self._searched, self._search_begun = self._spent(), None

    def _spent(self) -> float:
        """Return the seconds of all searches so far, one under way included."""
        begun = self._search_begun
        return self._searched + (self._read() - begun if begun is not None else 0.0)

    def _read(self) -> float:
        return self._monotonic() if self._monotonic is not None else 0.0


UNLIMITED = Budget()  # without a clock: what it says never changes

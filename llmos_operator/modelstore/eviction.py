"""Which kept models go when room is needed: those whose return costs least, the longer unused the cheaper.

Pure: values and time are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry as eviction sees it."""

    key: str
    size: int  # bytes
    seconds: float  # that bringing it again takes
    used_at: float  # epoch seconds of its last use

    def worth(self, now: float) -> float:
        """Return seconds of reload for each second it has lain unused: what keeping it is expected to save."""
        return self.seconds / max(1.0, now - self.used_at)


def to_evict(kept: Iterable[Kept], needed: int, now: float) -> list[Kept]:
    """Return what has to go so that ``needed`` bytes come free, least worth first; all of it if that is not enough."""
    chosen: list[Kept] = []
    for one in sorted(kept, key=lambda entry: (entry.worth(now), entry.key)):
        if needed <= 0:
            break
        chosen.append(one)
        needed -= one.size
    # What was taken early may turn out to be unnecessary beside something larger taken later.
    for one in list(chosen):
        if needed + one.size <= 0:
            chosen.remove(one)
            needed += one.size
    return chosen

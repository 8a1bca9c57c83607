"""Places in a queue as they are told: exact for those who are next, rounded for those who are far behind.

Whenever the head of a line starts, everybody behind it moves up by one. Told exactly, that would be a write for each that
waits. The first `EXACT` places are exact, others are the nearest of eight steps to each power of two: a sixteenth off at
most, and never out of order, so a start changes 8 log2(n / 16) + 15 of n places.
"""

from __future__ import annotations

from typing import Final

EXACT: Final = 16  # a power of two
_STEP_BITS: Final = 4  # eight steps between a power of two and the next


def told(place: int) -> int:
    """Return a place in a queue, from 1, as it is told."""
    if place <= EXACT:
        return place
    step = 1 << (place.bit_length() - _STEP_BITS)
    return (place + step // 2) // step * step


def text(place: int) -> str:
    """Return a told place for people: with a tilde where it is rounded."""
    return str(place) if place <= EXACT else f"~{place}"

"""Observed device memory: from samples at 1 Hz to values that change only when a decision could change.

A rise beyond the band counts at once (it may be a leak or a stranger on the device), a fall must be seen twice in a
row, so that a momentary dip does not invite new work. Freshness is kept apart: hearing from a node costs one
dictionary write and rebuilds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import MIB
from llmos_operator.api.telemetry import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LEAST_BAND = 16 * MIB
_BAND_SHARE = 128  # of the device's memory

_SEVERITY = {Verdict.HEALTHY: 0, Verdict.DEGRADED: 1, Verdict.UNKNOWN: 2, Verdict.UNHEALTHY: 3}


@dataclass(frozen=True, slots=True)
class Observation:
    """What is believed of one device between two crossings. None: its memory use cannot be read."""

    used_bytes: int | None = None
    verdict: Verdict | None = None  # None: the sample did not judge
    reason: str = ""
    strange_bytes: int = 0  # of them, used by processes of nobody the ledger knows of there


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of one device, as ingest hands it over."""

    uuid: str
    used_bytes: int | None = None
    total_bytes: int | None = None
    verdict: Verdict = Verdict.UNKNOWN
    reason: str = ""
    busy_percent: int | None = None  # of the time since the sample before; of the whole device
    energy_millijoules: int | None = None  # since the driver was loaded


@dataclass(slots=True)
class _Track:
    """State of the smoothing of one device."""

    believed: Observation = field(default_factory=Observation)
    lower: int | None = None  # the last sample, if it was below the band


class Smoother:
    """Folds readings into observations, one per device UUID of one node."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def fold(self, readings: Iterable[Reading]) -> Mapping[str, Observation] | None:
        """Return all observations of the node if one of them changed, else None."""
        changed = False
        for reading in readings:
            track = self._tracks.setdefault(reading.uuid, _Track())
            used = _smooth(track, reading)
            verdict = None if reading.verdict is Verdict.UNKNOWN else reading.verdict
            new = Observation(used, verdict, reading.reason if verdict else "")
            if new != track.believed:
                track.believed = new
                changed = True
        if not changed:
            return None
        return {uuid: track.believed for uuid, track in self._tracks.items()}


def _smooth(track: _Track, reading: Reading) -> int | None:
    believed, sample = track.believed.used_bytes, reading.used_bytes
    if sample is None or believed is None:
        track.lower = None
        return sample
    band = max(_LEAST_BAND, (reading.total_bytes or 0) // _BAND_SHARE)
    if sample > believed + band:
        track.lower = None
        return sample
    if sample >= believed - band:
        track.lower = None
        return believed
    if track.lower is None:
        track.lower = sample
        return believed
    fallen = max(track.lower, sample)
    track.lower = None if fallen == sample else sample
    return fallen


def worse(one: Verdict, other: Verdict | None) -> Verdict:
    """Return the worse of two verdicts; None is no opinion."""
    if other is None or _SEVERITY[other] <= _SEVERITY[one]:
        return one
    return other

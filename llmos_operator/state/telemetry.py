"""Observed device memory: from samples at 1 Hz to values that change only when a decision could change.

A rise beyond the band counts at once (it may be a leak or a stranger on the device), a fall must be seen twice in a
row, so that a momentary dip does not invite new work. How much a device is held down, and how its memory ages, is believed
in steps. Freshness is kept apart: hearing from a node costs one
dictionary write and rebuilds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import MIB
from llmos_operator.api.telemetry import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LEAST_BAND = 16 * MIB
_BAND_SHARE = 128  # of the device's memory
_LEAST_STRAIN = 50  # thousandths
STRAIN_BAND = 100
HELD_DOWN_MILLI = 750  # of its time: it takes nothing new from here on,
LET_GO_MILLI = 250  # and again from here down

_SEVERITY = {Verdict.HEALTHY: 0, Verdict.DEGRADED: 1, Verdict.UNKNOWN: 2, Verdict.UNHEALTHY: 3}


@dataclass(frozen=True, slots=True)
class Observation:
    """What is believed of one device between two crossings. None: its memory use cannot be read."""

    used_bytes: int | None = None
    verdict: Verdict | None = None  # None: the sample did not judge
    reason: str = ""
    strange_bytes: int = 0  # of them, used by processes of nobody the ledger knows of there
    throttled_milli: int = 0  # of its time, held down by heat or a power brake
    risk_milli: int = 0  # how its memory ages
    held_down: bool = False  # for so much of its time that it takes nothing new


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
    throttled_milli: int | None = None
    risk_milli: int | None = None
    power_milliwatts: int | None = None
    sm_active_milli: int | None = None  # of its time, in thousandths: multiprocessors, mean over all
    dram_active_milli: int | None = None  # memory


@dataclass(slots=True)
class _Track:
    """State of the smoothing of one device."""

    believed: Observation = field(default_factory=Observation)
    lower: int | None = None  # the last sample, if it was below the band


class Smoother:
    """Folds readings into observations, one per device UUID of one node."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def believe(self, observed: Mapping[str, Observation]) -> None:
        """Take what was believed before, by another process."""
        for uuid, seen in observed.items():
            self._tracks.setdefault(uuid, _Track()).believed = replace(seen, strange_bytes=0)

    def fold(self, readings: Iterable[Reading]) -> Mapping[str, Observation] | None:
        """Return all observations of the node if one of them changed, else None."""
        changed = False
        for reading in readings:
            track = self._tracks.setdefault(reading.uuid, _Track())
            used = _smooth(track, reading)
            verdict = None if reading.verdict is Verdict.UNKNOWN else reading.verdict
            new = Observation(
                used,
                verdict,
                reading.reason if verdict else "",
                throttled_milli=_stepped(track.believed.throttled_milli, reading.throttled_milli),
                risk_milli=_stepped(track.believed.risk_milli, reading.risk_milli),
                held_down=_held_down(reading.throttled_milli, before=track.believed.held_down),
            )
            if new != track.believed:
                track.believed = new
                changed = True
        if not changed:
            return None
        return {uuid: track.believed for uuid, track in self._tracks.items()}


def memory_band(total_bytes: int | None) -> int:
    """Return how many bytes a device's used memory may change before a decision could."""
    return max(_LEAST_BAND, (total_bytes or 0) // _BAND_SHARE)


def _stepped(believed: int, told: int | None) -> int:
    """Return thousandths in steps: a change that is less than a band away is none; nothing told is no strain."""
    if told is None or told < _LEAST_STRAIN:
        return 0
    return believed if abs(told - believed) < STRAIN_BAND else told // _LEAST_STRAIN * _LEAST_STRAIN


def _held_down(told: int | None, *, before: bool) -> bool:
    """Return whether a device is held down for too much of its time; once it is, until that is rare."""
    return told is not None and (told >= HELD_DOWN_MILLI or (before and told > LET_GO_MILLI))


def _smooth(track: _Track, reading: Reading) -> int | None:
    believed, sample = track.believed.used_bytes, reading.used_bytes
    if sample is None or believed is None:
        track.lower = None
        return sample
    band = memory_band(reading.total_bytes)
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

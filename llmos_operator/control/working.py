"""Whether devices work: by the multiprocessors and the memory they keep busy, and by the power they draw.

The driver's utilisation says that some kernel ran in the last second; a server that polls, or one warp of thousands,
reads as 100 %. So it decides nothing here. What does, as means with a half-life of ten seconds:

    SM active, DRAM active    parts of the time in thousandths, where the agent has them (GPM, Hopper and newer)
    power                     (draw - idle) / (limit - idle), in thousandths; idle = limit / 10 (`state.power`)

A device works from the first of them that is high, and is quiet once all that are told are low again; in between it
stays what it was. What is not told says nothing, and nobody is quiet of whom nothing is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from llmos_operator.state import power

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.state.ledger import DeviceState
    from llmos_operator.state.telemetry import Reading

HALF_LIFE: Final = 10.0  # seconds
# A serving replica without a request counts as idle this long after its last token; settled runtimes are asked every 10 s.
QUIET_SECONDS: Final = 15.0
FRESH_SECONDS: Final = 15.0  # after which a sample says nothing any more
_MILLI: Final = 1000


class Work(StrEnum):
    """What a device does."""

    BUSY = "busy"
    QUIET = "quiet"
    UNCLEAR = "unclear"  # it does not tell, or neither is clear


class Sign(StrEnum):
    """What was measured."""

    SM = "sm"
    DRAM = "dram"
    POWER = "power"


# Thousandths from which a sign is high, and below which it is low. An accelerator with a model loaded and nothing to do
# draws up to a third of its range (small cards stay at high clocks), and does nothing with its multiprocessors.
_BOUNDS: Final = {Sign.SM: (100, 50), Sign.DRAM: (100, 50), Sign.POWER: (500, 400)}
_WORDS: Final = {
    Sign.SM: "multiprocessors active {} % of the time",
    Sign.DRAM: "memory active {} % of the time",
    Sign.POWER: "{} % of its range of power drawn",
}


class Judgement(NamedTuple):
    """What a device does, by which sign (None: by none), how that was, and which part of its time it works (0 to 1) if told."""

    work: Work
    sign: Sign | None = None
    evidence: str = ""
    share: float | None = None


_NOTHING: Final = Judgement(Work.UNCLEAR)


@dataclass(slots=True)
class _Track:
    """The means of one device; None: it does not tell. `draw` in milliwatts, the others in thousandths."""

    at: float
    sm: float | None = None
    dram: float | None = None
    draw: float | None = None
    busy: bool = False


class DeviceWork:
    """The devices of all nodes. Seconds are monotonic."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def sampled(self, readings: Iterable[Reading], now: float) -> None:
        """Take the samples of a node's devices."""
        for reading in readings:
            track = self._tracks.get(reading.uuid)
            if track is None or now - track.at > FRESH_SECONDS:
                busy = track is not None and track.busy
                track = self._tracks[reading.uuid] = _Track(now, busy=busy)
            kept = 2.0 ** (-max(0.0, now - track.at) / HALF_LIFE)
            track.sm = _mean(track.sm, reading.sm_active_milli, kept)
            track.dram = _mean(track.dram, reading.dram_active_milli, kept)
            track.draw = _mean(track.draw, reading.power_milliwatts, kept)
            track.at = now

    def judge(self, device: DeviceState, now: float) -> Judgement:
        """Return what a device does as of now."""
        track = self._tracks.get(device.uuid)
        if track is None or now - track.at > FRESH_SECONDS:
            return _NOTHING
        told = _told(track, device)
        if not told:
            return _NOTHING
        active = [told[sign] for sign in (Sign.SM, Sign.DRAM) if sign in told]
        share = min(1.0, max(active) / _MILLI) if active else None
        high = [sign for sign, value in told.items() if value >= _BOUNDS[sign][0]]
        low = all(value < _BOUNDS[sign][1] for sign, value in told.items())
        track.busy = bool(high) or (track.busy and not low)
        if track.busy:
            shown = high[0] if high else next(s for s, value in told.items() if value >= _BOUNDS[s][1])
            return Judgement(Work.BUSY, shown, _words(shown, told), share)
        evidence = ", ".join(_words(sign, told) for sign in told)
        return Judgement(Work.QUIET if low else Work.UNCLEAR, next(iter(told)), evidence, share)

    def forget(self, known: Iterable[str]) -> None:
        """Forget all devices but these."""
        kept = set(known)
        self._tracks = {uuid: track for uuid, track in self._tracks.items() if uuid in kept}


def _told(track: _Track, device: DeviceState) -> dict[Sign, float]:
    """Return the signs that a device tells, in thousandths."""
    found = {Sign.SM: track.sm, Sign.DRAM: track.dram, Sign.POWER: _range(track.draw, device)}
    return {sign: value for sign, value in found.items() if value is not None}


def _range(draw: float | None, device: DeviceState) -> float | None:
    """Return a draw as a part of what lies between idle and limit. A MIG instance is not measured by itself."""
    limit = device.device.limit_milliwatts
    if draw is None or not limit or device.device.mig:
        return None
    idle = power.idle(limit)
    return max(0.0, (draw - idle) / (limit - idle) * _MILLI)


def _mean(former: float | None, told: int | None, kept: float) -> float | None:
    if told is None:
        return None
    return float(told) if former is None else told + (former - told) * kept


def _words(sign: Sign, told: dict[Sign, float]) -> str:
    return _WORDS[sign].format(round(told[sign] / 10))

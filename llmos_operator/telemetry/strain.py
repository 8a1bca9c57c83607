"""How much less a device is worth than its like: how much of its time it is held down, and how its memory ages. Pure.

    throttled = mean over samples of "clocks are held down by heat or a power brake", half-life 2 minutes
    risk      = trend + rows, at most `MOST_RISK`
    trend     = 100 x log2(corrected errors an hour lately / in the long run), at most 200; half-lives 1 hour and 1 day
    rows      = 50 for each memory row remapped after an uncorrectable error, 10 after correctable ones, at most 100

All in thousandths of a device. Both go up and down without steps, so that one bad minute costs little; what a finding of
`health` does in steps comes on top. Power capping is normal and no strain. Less than ten corrected errors an hour are no
trend, nor is less than half as many again as in the long run, nor what has been watched for less than an hour. The
weights are ours: no published ones were found that relate corrected errors to failures of these devices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING, Final

from llmos_operator.telemetry.sample import ClockReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.telemetry.sample import Counters, DeviceInfo, Sample

HALF_LIFE: Final = 120.0  # seconds, of being held down
HOUR: Final = 3600.0
DAY: Final = 86_400.0
LEAST_ERRORS: Final = 10.0  # an hour
MOST_RISK: Final = 300
_RISING: Final = 1.5  # times the long run
_TREND: Final = 100
_MOST_TREND: Final = 200
_ROW_LOST, _ROW_WORN, _MOST_ROWS = 50, 10, 100
_MILLI: Final = 1000
_LONGEST_GAP: Final = 60.0  # seconds for which one sample stands at most
HOLDING: Final = frozenset(
    {ClockReason.HW_THERMAL, ClockReason.SW_THERMAL, ClockReason.POWER_BRAKE, ClockReason.HW_SLOWDOWN}
)


@dataclass(frozen=True, slots=True)
class Strain:
    """What is known of one device. None: it does not tell."""

    throttled: float | None = None  # 0 to 1
    at: float = 0.0  # seconds of the last sample
    errors: int | None = None  # the counter of corrected errors as it stood last
    errors_at: float = 0.0
    since: float | None = None  # when errors were first counted
    lately: float = 0.0  # errors an hour, not corrected for how short they have been counted
    long_run: float = 0.0
    rows: int | None = None  # thousandths

    @property
    def throttled_milli(self) -> int | None:
        """Thousandths of its time in which it is held down."""
        return None if self.throttled is None else round(self.throttled * _MILLI)

    @property
    def risk_milli(self) -> int | None:
        """Thousandths of a device that its memory's ageing counts for."""
        trend = self._trend()
        if trend is None and self.rows is None:
            return None
        return min(MOST_RISK, (trend or 0) + (self.rows or 0))

    def _trend(self) -> int | None:
        if self.since is None:
            return None
        watched = self.errors_at - self.since
        if watched < HOUR:
            return 0
        lately = self.lately / (1 - _left(watched, HOUR))
        long_run = self.long_run / (1 - _left(watched, DAY))
        if lately < LEAST_ERRORS or lately <= _RISING * long_run or not long_run:
            return 0
        return min(_MOST_TREND, round(_TREND * log2(lately / long_run)))


def fold(state: Strain, sample: Sample, now: float) -> Strain:
    """Return the strain after one sample; `now` in the agent's own seconds."""
    state = _clocks(state, sample, now)
    return _memory(state, sample.counters, now) if sample.counters is not None else state


class Strains:
    """The strain of a node's devices. An instance bears that of its GPU, too."""

    def __init__(self) -> None:
        self._states: dict[str, Strain] = {}
        self._parents: Mapping[str, str] = {}

    def observe(self, devices: Iterable[DeviceInfo], samples: Mapping[str, Sample], now: float) -> None:
        """Fold one round; devices that are gone are forgotten."""
        known = {device.uuid: device.parent for device in devices}
        self._parents = {uuid: parent for uuid, parent in known.items() if parent}
        states = {uuid: one for uuid, one in self._states.items() if uuid in known}
        for uuid, sample in samples.items():
            if uuid in known:
                states[uuid] = fold(states.get(uuid, Strain()), sample, now)
        self._states = states

    def of(self, uuid: str) -> tuple[int | None, int | None]:
        """Return (held down, risk) in thousandths, the larger of the device's own and its GPU's."""
        found = [self._states.get(one, Strain()) for one in (uuid, self._parents.get(uuid, uuid))]
        throttled = [one.throttled_milli for one in found if one.throttled_milli is not None]
        risk = [one.risk_milli for one in found if one.risk_milli is not None]
        return max(throttled, default=None), max(risk, default=None)


def _clocks(state: Strain, sample: Sample, now: float) -> Strain:
    if sample.clock_reasons is None:
        return replace(state, throttled=None, at=now)
    held = float(bool(sample.clock_reasons & HOLDING))
    if state.throttled is None:
        return replace(state, throttled=0.0, at=now)
    gap = min(_LONGEST_GAP, max(0.0, now - state.at))
    return replace(state, throttled=held + (state.throttled - held) * _left(gap, HALF_LIFE), at=now)


def _memory(state: Strain, counters: Counters, now: float) -> Strain:
    lost, worn = counters.remapped_uncorrectable, counters.remapped_correctable
    if lost is not None or worn is not None:
        rows = min(_MOST_ROWS, _ROW_LOST * (lost or 0) + _ROW_WORN * (worn or 0))
        state = replace(state, rows=rows)
    errors = counters.ecc_volatile_corrected
    if errors is None:
        return state
    before = state.errors
    if before is None or errors < before:  # first seen, or a driver that was loaded anew
        return replace(state, errors=errors, errors_at=now, since=now if before is None else state.since)
    passed = now - state.errors_at
    if passed <= 0:
        return state
    rate = (errors - before) / passed * HOUR
    return replace(
        state,
        errors=errors,
        errors_at=now,
        lately=rate + (state.lately - rate) * _left(passed, HOUR),
        long_run=rate + (state.long_run - rate) * _left(passed, DAY),
    )


def _left(passed: float, half_life: float) -> float:
    """Return the part of an average that is left of what was before."""
    part: float = 2.0 ** (-passed / half_life)
    return part

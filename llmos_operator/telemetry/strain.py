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

from dataclasses import dataclass
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


_UNKNOWN: Final = Strain()


def fold(state: Strain, sample: Sample, now: float) -> Strain:
    """Return the strain after one sample; `now` in the agent's own seconds."""
    counters = sample.counters
    return Strain(
        _throttled(state, sample, now),
        now,
        *_errors(state, counters.ecc_volatile_corrected if counters is not None else None, now),
        rows=_rows(state, counters),
    )


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
                states[uuid] = fold(states.get(uuid, _UNKNOWN), sample, now)
        self._states = states

    def of(self, uuid: str) -> tuple[int | None, int | None]:
        """Return (held down, risk) in thousandths, the larger of the device's own and its GPU's."""
        own = self._states.get(uuid, _UNKNOWN)
        parent = self._parents.get(uuid)
        if parent is None:
            return own.throttled_milli, own.risk_milli
        gpu = self._states.get(parent, _UNKNOWN)
        return _larger(own.throttled_milli, gpu.throttled_milli), _larger(own.risk_milli, gpu.risk_milli)


def _larger(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)


def _throttled(state: Strain, sample: Sample, now: float) -> float | None:
    """Return the part of its time in which the device is held down."""
    if sample.clock_reasons is None:
        return None
    if state.throttled is None:
        return 0.0
    held = 0.0 if HOLDING.isdisjoint(sample.clock_reasons) else 1.0
    gap = min(_LONGEST_GAP, max(0.0, now - state.at))
    return held + (state.throttled - held) * _left(gap, HALF_LIFE)


def _rows(state: Strain, counters: Counters | None) -> int | None:
    """Return what remapped rows count for, in thousandths; what it was where the device does not say."""
    lost = counters.remapped_uncorrectable if counters is not None else None
    worn = counters.remapped_correctable if counters is not None else None
    if lost is None and worn is None:
        return state.rows
    return min(_MOST_ROWS, _ROW_LOST * (lost or 0) + _ROW_WORN * (worn or 0))


def _errors(
    state: Strain, errors: int | None, now: float
) -> tuple[int | None, float, float | None, float, float]:
    """Return `errors` to `long_run` of the next state, in the order of :class:`Strain`."""
    before, passed = state.errors, now - state.errors_at
    if errors is not None and (before is None or errors < before):
        # First seen, or a driver that was loaded anew.
        return errors, now, now if before is None else state.since, state.lately, state.long_run
    if errors is None or before is None or passed <= 0:
        return before, state.errors_at, state.since, state.lately, state.long_run
    rate = (errors - before) / passed * HOUR
    lately = rate + (state.lately - rate) * _left(passed, HOUR)
    return errors, now, state.since, lately, rate + (state.long_run - rate) * _left(passed, DAY)


def _left(passed: float, half_life: float) -> float:
    """Return the part of an average that is left of what was before."""
    part: float = 2.0 ** (-passed / half_life)
    return part

"""The bars of the runtime: what is demanded, what was measured, and whether that is met."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MET, MISSED, UNKNOWN = "met", "**not met**", "not measured"


@dataclass(frozen=True, slots=True)
class Bar:
    """One demand on a ratio or a figure: at most or at least ``bound``; ``measured`` holds one value a round."""

    what: str
    bound: float
    measured: Sequence[float]
    most: bool = False  # the bound is the largest that is allowed
    unit: str = "x"
    digits: int = 2
    why: str = ""  # it was not measured

    @property
    def verdict(self) -> str:
        """Whether the median meets the bound."""
        if not self.measured:
            return UNKNOWN
        middle = median(self.measured)
        return MET if (middle <= self.bound if self.most else middle >= self.bound) else MISSED

    def cells(self) -> list[str]:
        """Return a row of the table."""
        demand = f"{'≤' if self.most else '≥'} {self._text(self.bound)}"
        if not self.measured:
            return [self.what, demand, self.why or "", "", UNKNOWN]
        spread = f"{self._number(min(self.measured))} to {self._number(max(self.measured))}"
        several = len(self.measured) > 1
        return [self.what, demand, self._text(median(self.measured)), spread if several else "", self.verdict]

    def _number(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    def _text(self, value: float) -> str:
        gap = "" if self.unit in ("x", "") else " "
        return f"{self._number(value)}{gap}{self.unit}"


def table(bars: Sequence[Bar], note: str) -> Table:
    """Return the table of all bars."""
    counts = {one: sum(bar.verdict == one for bar in bars) for one in (MET, MISSED, UNKNOWN)}
    said = f"{counts[MET]} met, {counts[MISSED]} not met, {counts[UNKNOWN]} not measured. {note}"
    return Table("Bars", ["bar", "demand", "median", "rounds", ""], [bar.cells() for bar in bars], said)


def absent(missing: Mapping[str, str]) -> Table:
    """Return who did not take part, and why."""
    rows = [[name, why.replace("|", "/").replace("\n", " ")] for name, why in missing.items()]
    return Table("Who did not take part", ["peer", "why"], rows)

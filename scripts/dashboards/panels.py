"""What a board is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``queries`` maps a PromQL expression to its legend."""

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; ``variables`` maps a variable's name to the series its values are read from."""

    uid: str
    title: str
    text: str
    variables: dict[str, str]
    rows: tuple[Row, ...]


def stat(title: str, text: str, unit: str, query: str) -> Panel:
    """Return a panel of one number."""
    return Panel(title, text, unit, {query: ""}, kind="stat", width=4)


def quantiles(metric: str, labels: str, by: str = "") -> dict[str, str]:
    """Return queries for the median and the 95th and 99th percentile of a histogram."""
    group = f"le, {by}" if by else "le"
    name = f"{{{{{by}}}}} " if by else ""
    return {
        f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket{labels}[$__rate_interval])))": f"{name}p{q * 100:.0f}"
        for q in ((0.95,) if by else (0.5, 0.95, 0.99))
    }

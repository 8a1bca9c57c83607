"""Draws a dashboard's panels from what Prometheus answered: a picture of the data, not of Grafana."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from scripts.dashboards.grafana import WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from scripts.dashboards.panels import Board, Panel, Row

    Answer = Callable[[str], Sequence["Series"]]

Series = tuple[dict[str, str], list[tuple[float, float]]]  # labels; epoch seconds and values
INCHES, DPI = 13.0, 80
SHOWN = 5  # entries of a legend
COLOURS = 48  # of the picture: text and lines need no more, and it is a third of the size
GREY = "#6b7280"
_LABEL = re.compile(r"\{\{(\w+)\}\}")
_HEIGHTS = {"stat": 1.1}  # inches; others:
_HEIGHT = 2.3
_HEADING = 0.35
_STYLE = {"font.size": 8.0, "axes.titlesize": 9.0, "axes.spines.top": False, "axes.spines.right": False}
_SIZES = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
_SUFFIXES = {"s": "s", "watt": "W", "celsius": " °C", "joule": "J"}


def draw(board: Board, answer: Answer, path: Path) -> int:
    """Write a picture of a board as PNG; return how many panels have data.

    ``answer`` gives the series of a query of a panel over the time that is shown.
    """
    lines = [line for row in board.rows for line in _lines(row)]
    heights = [_HEADING if isinstance(line, str) else max(_height(panel) for panel in line) for line in lines]
    drawn = 0
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(INCHES, sum(heights)), layout="constrained", facecolor="white")
        for part, line in zip(
            figure.subfigures(len(lines), 1, height_ratios=heights, squeeze=False)[:, 0], lines, strict=True
        ):
            if isinstance(line, str):
                part.text(0.005, 0.2, line, fontsize=11, fontweight="bold")
                continue
            widths = [panel.width for panel in line]
            rest = [WIDTH - sum(widths)] if sum(widths) < WIDTH else []
            spaces = part.subplots(1, len(widths) + len(rest), width_ratios=widths + rest, squeeze=False)[0]
            for axes, panel in zip(spaces, line, strict=False):
                drawn += _panel(axes, panel, answer)
            for axes in spaces[len(line) :]:
                axes.set_axis_off()
        _save(figure, path)
    return drawn


def _lines(row: Row) -> list[str | list[Panel]]:
    """Return the row's heading and its panels, as many on a line as Grafana's grid has room for."""
    lines: list[list[Panel]] = [[]]
    for panel in row.panels:
        if sum(one.width for one in lines[-1]) + panel.width > WIDTH:
            lines.append([])
        lines[-1].append(panel)
    return [row.title, *lines]


def _height(panel: Panel) -> float:
    return _HEIGHTS.get(panel.kind, _HEIGHT)


def _panel(axes: Axes, panel: Panel, answer: Answer) -> bool:
    axes.set_title(panel.title, loc="left", color="#111827")
    found = [
        (_legend(legend, labels), points)
        for query, legend in panel.queries.items()
        for labels, points in answer(query)
        if any(math.isfinite(value) for _, value in points)
    ]
    if panel.kind == "stat" or not found:
        axes.set_axis_off()
        text = said(found[0][1][-1][1], panel.unit) if found else "nothing to show in this cluster"
        size, colour = (17, "#111827") if found else (8, GREY)
        axes.text(0.0, 0.45, text, transform=axes.transAxes, fontsize=size, color=colour, va="center")
        return bool(found)
    begin = min(points[0][0] for _, points in found)
    for number, (name, points) in enumerate(found):
        times, values = zip(*points, strict=True)
        label = name if number < SHOWN and name else None
        axes.plot([at - begin for at in times], values, linewidth=1.2, label=label)
    top = max(value for _, points in found for _, value in points if math.isfinite(value))
    axes.set_ylim(0.0, panel.maximum or (None if top > 0 else 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value, panel.unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", linewidth=0.4, color="#d1d5db")
    if any(name for name, _ in found):
        more = f"and {len(found) - SHOWN} more" if len(found) > SHOWN else None
        axes.legend(
            fontsize=6.5, title=more, title_fontsize=6.5, loc="upper left", framealpha=0.8, borderpad=0.3
        )
    return True


def _legend(template: str, labels: dict[str, str]) -> str:
    return _LABEL.sub(lambda found: labels.get(found[1], ""), template).strip()


def said(value: float, unit: str) -> str:
    """Return a value as its panel tells it: `percentunit` in percent, `bytes` by powers of 1024, others by 1000."""
    if unit == "percentunit":
        return f"{value:.0%}" if value >= 0.1 or not value else f"{value:.1%}"
    if unit in {"bytes", "binBps"}:
        name, size = next(((name, size) for name, size in _SIZES if value >= size), ("", 1))
        return f"{value / size:.3g} {name}B{'/s' if unit == 'binBps' else ''}"
    scales = _SCALES if unit in _SUFFIXES else _SCALES[:4]  # no thousandths of what is counted
    scale, prefix = next(((one, name) for one, name in scales if abs(value) >= one), (1.0, ""))
    return (
        f"{value / scale:.3g}{' ' if prefix and unit in _SUFFIXES else ''}{prefix}{_SUFFIXES.get(unit, '')}"
    )


def _save(figure: Figure, path: Path) -> None:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    raw.seek(0)
    with Image.open(raw) as picture:
        flat = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        flat.save(path, format="PNG", optimize=True)

"""Curves of a replay as a picture file. Needs matplotlib, which only the extra `sim` installs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from llmos_operator.sim.trace_files import BadTrace

if TYPE_CHECKING:
    from llmos_operator.sim.report import Report

_WIDTH, _HEIGHT = 9.0, 3.4  # inches, of a panel
_DOTS: Final = 120  # an inch


def draw(report: Report, path: str) -> None:
    """Draw the panels of a report below each other into a PNG file. Raises `BadTrace` if it cannot be written."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(report.panels)), layout="constrained")
    for place, panel in zip(
        figure.subplots(len(report.panels), squeeze=False)[:, 0], report.panels, strict=True
    ):
        for name, values in panel.curves.items():
            place.plot(panel.x, values, label=name, linewidth=1.2)
        place.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        place.set_ylim(bottom=0)
        place.grid(alpha=0.3)
        place.legend(loc="best")
    figure.suptitle(report.title, fontsize="medium")
    try:
        figure.savefig(Path(path), format="png", dpi=_DOTS)
    except OSError as error:
        raise BadTrace(f"cannot write {path}: {error.strerror}") from error

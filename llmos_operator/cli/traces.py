"""`llmos simulate --trace`: public traces replayed in virtual time; needs the extra `sim`.

What that extra installs is loaded by name when it is needed, so that all other commands work without it.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmos_operator.cli import render
from llmos_operator.cli.failures import USAGE, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.sim.report import Options, Report

_EXTRA = "sim"


def replay(trace: str, options: Options, *, plot: str, as_json: bool) -> None:
    """Replay a trace, print what came of it, and draw its curves if asked to."""
    if not options.data:
        raise CommandFailed("--trace needs --data DIR, the folder that holds the traces", status=USAGE)
    with _extra():
        drawing = (
            importlib.import_module("llmos_operator.sim.plots") if plot else None
        )  # before minutes of replay
        report: Report = importlib.import_module("llmos_operator.sim.traces").run(trace, options)
    if drawing is not None:
        drawing.draw(report, plot)
    if as_json:
        render.print_json(report.figures)
        return
    console = render.console()
    console.print(f"{report.title}\n")
    console.print(render.table(report.columns, report.rows, right=report.columns[1:]))
    console.print()
    shown = {column for row in report.rows for column in row}
    for name, value in report.figures.items():
        if not isinstance(value, dict) and str(value) not in shown and name not in {"trace", "list", "model"}:
            console.print(f"{_words(name):26} {value}")
    if plot:
        console.print(f"\ndrawn: {plot}")


def days(text: str) -> tuple[float, float] | None:
    """Return (from, to) of "14-42", None of "". Raises `CommandFailed`."""
    if not text:
        return None
    begin, _, end = text.partition("-")
    try:
        found = float(begin), float(end)
    except ValueError:
        found = (0.0, 0.0)
    if not 0 <= found[0] < found[1]:
        raise CommandFailed(
            f"--days {text}: must be the first and the day after the last, like 14-42", status=USAGE
        )
    return found


@contextmanager
def _extra() -> Iterator[None]:
    """Say what to install where a package of the extra is missing; some are loaded only when they are used."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("llmos_operator"):
            raise
        raise CommandFailed(
            f"{missing.name} is not installed; replaying traces needs the extra {_EXTRA!r}: "
            f"pip install 'llmos-operator[cli,{_EXTRA}]'"
        ) from missing


def _words(name: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)

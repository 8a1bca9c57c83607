"""What the audience sees: stages with their times, commands, claims with their verdicts, and the table at the end."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIPE_WIDTH = 160


class DemoFailed(Exception):  # noqa: N818 - reads as what happened
    """The story cannot go on. The message says what was waited for and what was seen instead."""


@dataclass(slots=True)
class Claim:
    """Something the demo says is so, and whether it was."""

    text: str
    held: bool
    detail: str = ""


@dataclass(slots=True)
class StageRecord:
    """A stage of the story."""

    title: str
    seconds: float = 0.0
    claims: list[Claim] = field(default_factory=list)
    failure: str = ""

    @property
    def held(self) -> bool:
        """Whether it ended and all its claims held."""
        return not self.failure and all(claim.held for claim in self.claims)


class Screen:
    """Prints the story and keeps its record."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self.console = Console(width=width, highlight=False, markup=False)
        self.stages: list[StageRecord] = []
        self._started = time.monotonic()

    @contextmanager
    def stage(self, title: str) -> Iterator[StageRecord]:
        """Tell one stage; its time and failure go on record. A failure ends the story."""
        record = StageRecord(title)
        self.stages.append(record)
        self.console.print(f"\n━━ {len(self.stages)}. {title}", style="bold cyan")
        started = time.monotonic()
        try:
            yield record
        except Exception as error:
            record.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            record.seconds = time.monotonic() - started
            verdict = "failed" if record.failure else "done"
            self.console.print(f"   {verdict} in {record.seconds:.1f} s", style="dim")

    def say(self, text: str) -> None:
        """Print a line of the story with the time since its start."""
        self.console.print(f"   {self.elapsed():5.1f}s  {text}")

    def show(self, command: str, output: str) -> None:
        """Print a command as a user would type it, and what it printed."""
        self.console.print(f"\n   $ {command}", style="bold")
        for line in output.rstrip().splitlines():
            self.console.print(f"   {line.rstrip()}", soft_wrap=True)

    def write(self, text: str) -> None:
        """Print a piece of a line, at once."""
        self.console.out(text, end="", highlight=False)
        self.console.file.flush()

    def claim(self, text: str, held: bool, detail: str = "") -> None:
        """Say that something is so, and whether it was."""
        self.stages[-1].claims.append(Claim(text, held, detail))
        mark, style = ("✓", "green") if held else ("✗", "bold red")
        self.console.print(f"   {mark} {text}{f' ({detail})' if detail else ''}", style=style)

    def elapsed(self) -> float:
        """Return seconds since the story began."""
        return time.monotonic() - self._started

    def summary(self) -> bool:
        """Print the table of stages; return whether everything held."""
        table = Table(title="Summary", title_justify="left")
        for column in ("stage", "time", "claims", ""):
            table.add_column(column, justify="right" if column == "time" else "left")
        for record in self.stages:
            held = sum(claim.held for claim in record.claims)
            table.add_row(
                record.title,
                f"{record.seconds:.1f} s",
                f"{held} of {len(record.claims)}" if record.claims else "",
                "✓" if record.held else "✗",
            )
        table.add_row("all of it", f"{self.elapsed():.1f} s", "", "")
        self.console.print()
        self.console.print(table)
        for record in self.stages:
            for claim in record.claims:
                if not claim.held:
                    self.console.print(f"did not hold: {claim.text} ({claim.detail})", style="bold red")
            if record.failure:
                self.console.print(f"failed: {record.title}: {record.failure}", style="bold red")
        return bool(self.stages) and all(record.held for record in self.stages)

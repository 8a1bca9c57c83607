"""Tables of measurements, and the page they are kept on.

A benchmark is a module `tests/bench/bench_NAME.py` with a function `run() -> Sequence[Table]`. Its first docstring line
is the heading. Every table says what it was measured against in the same run; nothing here asserts anything.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench`; `make bench ONLY=name` runs one and replaces its section. Ratios are against a baseline measured in
the same run on the same machine, because absolute figures of a shared machine mean little.
`make bench-runtime` compares the runtime with other engines ([ADR 0032](adr/0032-measured-beside-peers.md)).
"""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: cells as text, and a note on how it was measured."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as the documentation keeps it."""
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)


def machine() -> str:
    """Return what the figures were taken on, without naming the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    cores = len(os.sched_getaffinity(0))
    today = datetime.now(tz=UTC).date()
    return f"{today}, {cores} cores of {platform.machine()}, {memory} GiB, Python {platform.python_version()}"


def section(name: str, heading: str, tables: Sequence[Table]) -> str:
    """Return the part of the page that one benchmark owns."""
    body = "\n\n".join(table.markdown() for table in tables)
    return f"<!-- bench:{name} -->\n## {heading}\n\nMeasured {machine()}.\n\n{body}\n<!-- /bench:{name} -->"


def put(page: str, name: str, text: str) -> str:
    """Return the page with the section of ``name`` replaced, or added at its end."""
    found = re.compile(rf"<!-- bench:{re.escape(name)} -->.*?<!-- /bench:{re.escape(name)} -->", re.DOTALL)
    if found.search(page):
        return found.sub(lambda _match: text, page)
    return page.rstrip("\n") + "\n\n" + text + "\n"


def save(name: str, text: str) -> None:
    """Write one benchmark's section into the page."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEAD
    PAGE.write_text(put(page, name, text), encoding="utf-8")

"""What docs/local-cluster.md says of the process kubelet's differences from a real one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "local-cluster.md"
SUITE = ROOT / "tests" / "node" / "contract"
_HEAD = "| what | on a real kubelet | here |"
_ROW = re.compile(r"\| (?P<what>[^|]+) \| (?P<real>[^|]+) \| (?P<here>[^|]+) \|")


def documented(page: str | None = None) -> dict[str, str]:
    """Return the table's rows: what differs, and how."""
    text = PAGE.read_text(encoding="utf-8") if page is None else page
    _, found, table = text.partition(f"{_HEAD}\n|---|---|---|\n")
    assert found, f"{PAGE.name} has no table headed {_HEAD}"
    rows = _rows(table)
    return {row["what"]: f"{row['real']}; here: {row['here']}" for row in rows}


def _rows(table: str) -> list[re.Match[str]]:
    """Return the rows up to the first line that is none."""
    rows = []
    for line in table.splitlines():
        row = _ROW.fullmatch(line)
        if row is None:
            break
        rows.append(row)
    return rows

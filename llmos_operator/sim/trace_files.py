"""Finding and reading the files of public traces: CSV, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator


class BadTrace(Permanent):
    """A trace cannot be read or replayed as asked. The message names file, line and what is expected."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadTrace")


def folder_of(data: str, name: str) -> Path:
    """Return `data`/`name` if there is such a folder, else `data` itself. Raises `BadTrace` if there is neither."""
    root = Path(data)
    if not root.is_dir():
        raise BadTrace(f"{data} is not a folder: --data names the one that holds the traces")
    return root / name if (root / name).is_dir() else root


def find(folder: Path, pattern: str, what: str) -> Path:
    """Return the first file of a pattern, gzipped or not. Raises `BadTrace` naming what was looked for."""
    found = sorted(path for ending in ("", ".gz") for path in folder.glob(pattern + ending))
    if not found:
        raise BadTrace(f"{folder} holds no {pattern} (or {pattern}.gz): {what}")
    return found[0]


def rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file that must have `columns`; others are passed on as they are."""
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = set(columns) - set(reader.fieldnames or ())
        if missing:
            raise BadTrace(f"{path}: the header lacks {', '.join(sorted(missing))}")
        for number, row in enumerate(reader, 2):
            short = [name for name in columns if row[name] is None]
            if short:
                raise BadTrace(f"{path}, line {number}: {short[0]} is missing")
            yield row


def whole(row: dict[str, str], name: str, path: Path) -> int:
    """Return a column as a whole number. Raises `BadTrace` with its value."""
    try:
        return int(row[name])
    except ValueError:
        raise BadTrace(f"{path}: {name} = {row[name]!r} is not a whole number") from None


def real(row: dict[str, str], name: str, path: Path) -> float:
    """Return a column as a number. Raises `BadTrace` with its value."""
    try:
        return float(row[name])
    except ValueError:
        raise BadTrace(f"{path}: {name} = {row[name]!r} is not a number") from None

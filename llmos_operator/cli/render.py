"""How values look: tables like kubectl's, sizes, ages, progress, and JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from llmos_operator.api.quantity import QuantityError, human_bytes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NONE = "-"
_PIPE_WIDTH = 240  # a pipe has no width; lines are cut nowhere
_STEPS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def console() -> Console:
    """Return a console on standard output: coloured on a terminal, plain and uncut in a pipe."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, soft_wrap=False, markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> Table:
    """Return a table without lines; columns named in ``right`` are aligned to the right."""
    aligned = set(right)
    result = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        result.add_column(
            column, justify="right" if column in aligned else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        result.add_row(*(cell or NONE for cell in row))
    return result


def print_json(value: Any) -> None:
    """Print dataclasses, mappings and lists as JSON, dataclass fields in camelCase."""
    json.dump(_plain(value), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_camel(field.name): _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def duration(seconds: float | None) -> str:
    """Return seconds as kubectl shows ages: the two largest units while they matter (`5m30s`, `3h`, `12d`)."""
    if seconds is None:
        return NONE
    whole = max(0, round(seconds))
    for position, (size, unit) in enumerate(_STEPS):
        if whole >= size:
            count, rest = divmod(whole, size)
            if count >= 10 or position + 1 == len(_STEPS):  # noqa: PLR2004 - two digits say enough
                return f"{count}{unit}"
            finer, name = _STEPS[position + 1]
            return f"{count}{unit}{rest // finer}{name}" if rest >= finer else f"{count}{unit}"
    return "0s"


def size(count: int | None) -> str:
    """Return bytes for people, `-` where they are not known."""
    return NONE if count is None else human_bytes(count)


def bytes_of(quantity: object) -> int | None:
    """Return the bytes of a quantity string of a status ("2Gi", "512"), or None for an absent or unreadable one."""
    if quantity in {None, ""}:
        return None
    try:
        return parse_bytes(str(quantity))
    except QuantityError:
        return None


def bar(done: int, total: int, width: int = 20) -> str:
    """Return a text progress bar with a percentage, or "" when the total is not known."""
    if total <= 0:
        return ""
    share = min(1.0, max(0.0, done / total))
    filled = round(share * width)
    return f"{'█' * filled}{'░' * (width - filled)} {share:4.0%}"


def dig(item: Mapping[str, Any] | None, *path: str, default: Any = None) -> Any:
    """Return the value at ``path`` inside nested mappings, ``default`` where a step is missing or null."""
    value: Any = item
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
        if value is None:
            return default
    return value

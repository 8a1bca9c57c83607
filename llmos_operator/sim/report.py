"""What a replay of a trace is asked for and what it answers: figures, a table, and curves to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Figures: TypeAlias = "dict[str, float | int | str | dict[str, float]]"


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay. 0, "" and None leave the choice to the trace."""

    data: str
    name: str = ""  # of the list of tasks, or of the model
    nodes: int = 0
    gpus: int = 0
    limit: int = 0  # tasks, jobs or steps of five seconds
    seed: int = 42
    days: tuple[float, float] | None = None
    known_mix: bool = False  # of requests: the placement knows it before they arrive


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing: several curves over the same axis."""

    title: str
    x_label: str
    x: Sequence[float]
    y_label: str
    curves: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Report:
    """The answer. `figures` are for scripts, `columns` and `rows` the same for people."""

    title: str
    figures: Figures
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    panels: tuple[Panel, ...]

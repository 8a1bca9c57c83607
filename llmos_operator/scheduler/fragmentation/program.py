"""Prices of shapes: a linear program over what is free and what is expected.

Nodes are pooled by device kind and by how much CPU goes with a free device. In a pool, nodes with as many idle
devices are cut into gangs, and devices into shares (columns of patterns, made where they pay: Gilmore and Gomory
1961). Shapes take what the patterns supply and CPU of the pool; what is placed of a shape serves its demand, segment
by segment of falling worth. The price of a shape is the dual of "served <= placed": what one more place for it is
worth. It is a relaxation (CPU of a pool is shared, tasks are divisible), so prices come from it, never placements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from llmos_operator.errors import Retryable
from llmos_operator.scheduler.fragmentation.demand import SEGMENTS
from llmos_operator.scheduler.fragmentation.shapes import CORE, FULL, Shape, Stock
from llmos_operator.scheduler.fragmentation.worth import unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.fragmentation.shapes import Floats, Ints

_CPU_CLASSES: Final = (0.5, 3.0, 5.0, 7.0, 9.0, 12.0, 16.0, 24.0, 64.0)  # cores per free device
_ROUNDS: Final = 4
_EASE: Final = 1e-6
_PAYS: Final = 1e-4  # devices that a further pattern has to bring

Cut: TypeAlias = tuple[int, ...]  # how often each size is cut


class NoSolution(Retryable):
    """The solver gave up; the former prices hold until they are too old."""


@dataclass(slots=True)
class Patterns:
    """Cuts of a device that paid before, by free units; kept between solutions, which then need few new ones."""

    sizes: tuple[int, ...] = ()
    cuts: dict[int, dict[Cut, None]] = field(default_factory=dict)

    def of(self, sizes: tuple[int, ...], room: int) -> list[Cut]:
        """Return the cuts known for a free amount; at first as many as fit of each single size."""
        if sizes != self.sizes:
            self.sizes, self.cuts = sizes, {}
        if room not in self.cuts:
            self.cuts[room] = {
                tuple((room // size) * (i == j) for j in range(len(sizes))): None
                for i, size in enumerate(sizes)
                if size <= room
            }
        return list(self.cuts[room])


def gangs(idle: int, sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the ways to cut `idle` devices into gangs of `sizes` (descending) and single devices, largest first."""
    if not sizes:
        return [(idle,)]
    return [
        (count, *rest)
        for count in range(idle // sizes[0], -1, -1)
        for rest in gangs(idle - count * sizes[0], sizes[1:])
    ]


class _Rows:
    """Coefficients of a sparse program: columns with their cost, rows with their right sides."""

    def __init__(self) -> None:
        self.right: list[float] = []
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.starts: list[int] = []  # of each column, the first of its entries
        self.rows: list[int] = []
        self.values: list[float] = []

    def row(self, right: float = 0.0) -> int:
        self.right.append(right)
        return len(self.right) - 1

    def column(self, entries: list[tuple[int, float]], cost: float = 0.0, upper: float = np.inf) -> None:
        self.starts.append(len(self.rows))
        self.rows += [row for row, _ in entries]
        self.values += [value for _, value in entries]
        self.cost.append(cost)
        self.upper.append(upper)

    def duals(self) -> Floats:
        """Solve; return what one more on the right side of each row would bring. Raises NoSolution."""
        import highspy  # noqa: PLC0415 - slow import, wanted where prices are made only
        from highspy._core import _Highs as Highs  # noqa: PLC0415 - highspy.Highs adds callbacks, and prints a line

        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(self.cost), len(self.right)
        program.col_cost_ = np.array(self.cost)
        program.col_lower_, program.col_upper_ = np.zeros(len(self.upper)), np.array(self.upper)
        program.row_lower_, program.row_upper_ = np.full(len(self.right), -np.inf), np.array(self.right)
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = np.array([*self.starts, len(self.rows)])
        program.a_matrix_.index_, program.a_matrix_.value_ = np.array(self.rows), np.array(self.values)
        solver = Highs()
        solver.setOptionValue("output_flag", False)  # noqa: FBT003 - the library's own way
        solver.setOptionValue("threads", 1)
        solver.passModel(program)
        solver.run()
        state = solver.getModelStatus()
        if state != highspy.HighsModelStatus.kOptimal:
            raise NoSolution(f"no prices: {solver.modelStatusToString(state)}")
        duals: Floats = -np.array(solver.getSolution().row_dual)
        return duals


def pools(stock: Stock) -> Ints:
    """Return the pool of each node: its kind and its class of free CPU per free device; -1 without free devices."""
    amount = stock.free.sum(axis=1) / FULL
    ratio = stock.cpu / CORE / np.maximum(amount, 1e-9)
    of = stock.kind * (len(_CPU_CLASSES) + 1) + np.searchsorted(_CPU_CLASSES, ratio)
    return np.where(amount > 0, of, -1)


def price(stock: Stock, demand: Mapping[Shape, float], patterns: Patterns) -> dict[Shape, float]:
    """Return the price of each shape with devices, in devices. Fills `patterns`. Raises NoSolution."""
    wanted = {shape: demand[shape] for shape in sorted(demand) if shape.devices and demand[shape] > 0}
    return _Program(stock, wanted, patterns).prices() if wanted else {}


class _Program:
    """The linear program of one stock and one demand."""

    def __init__(self, stock: Stock, demand: Mapping[Shape, float], patterns: Patterns) -> None:
        self._patterns = patterns
        self._shared = sorted({s.share for s in demand if not s.whole})
        self._unit = unit_of(self._shared)
        self._sizes = tuple(-(-share // self._unit) for share in self._shared)
        self._wide = tuple(sorted({s.devices for s in demand if s.whole and s.devices > 1}, reverse=True))
        self._rows = _Rows()
        self._served = {shape: self._rows.row() for shape in demand}
        self._slots: dict[tuple[int, int], int] = {}  # (pool, room in units) -> row of devices to cut
        self._supply: dict[int, list[int]] = {}  # pool -> rows of shares, by size
        self._cut: set[tuple[int, int, Cut]] = set()
        for shape, count in demand.items():
            before = 0.0
            for until, worth in SEGMENTS:
                self._rows.column(
                    [(self._served[shape], 1.0)], -worth * shape.amount, count * (until - before)
                )
                before = until
        pool_of = pools(stock)
        for pool in np.unique(pool_of[pool_of >= 0]):
            self._add_pool(int(pool), stock, np.flatnonzero(pool_of == pool))

    def _add_pool(self, pool: int, stock: Stock, nodes: Ints) -> None:
        rows = self._rows
        cpu = rows.row(float(stock.cpu[nodes].sum()) / CORE)
        single, large = rows.row(), [rows.row() for _ in self._wide]
        supply = self._supply[pool] = [rows.row() for _ in self._sizes]
        free = stock.free[nodes]
        for idle, count in enumerate(np.bincount((free == FULL).sum(axis=1))):
            if not idle or not count:
                continue
            row = rows.row(float(count))
            for cut in gangs(idle, self._wide):
                made = [(large[i], -float(many)) for i, many in enumerate(cut[:-1]) if many]
                rows.column([(row, 1.0), (single, -float(cut[-1])), *made])
        self._slots[pool, FULL // self._unit] = single
        if self._sizes:
            units = free[free < FULL] // self._unit
            for room, count in zip(
                *np.unique(units[units >= self._sizes[0]], return_counts=True), strict=True
            ):
                if room < FULL // self._unit:
                    self._slots[pool, int(room)] = rows.row(float(count))
        for shape, served in self._served.items():
            if shape.takes(int(stock.kind[nodes[0]])):
                if not shape.whole:
                    source = supply[self._shared.index(shape.share)]
                else:
                    source = single if shape.devices == 1 else large[self._wide.index(shape.devices)]
                taken = float(shape.devices) if not shape.whole else 1.0
                rows.column([(served, -1.0), (source, taken), (cpu, shape.cpu / CORE)])

    def prices(self) -> dict[Shape, float]:
        """Solve, with further patterns as long as some pay."""
        duals: Floats = np.zeros(0)
        for _ in range(_ROUNDS):
            self._cut_devices()
            duals = self._rows.duals()
            if not self._sizes or not self._found_better(duals):
                break
        return {shape: max(0.0, float(duals[row])) for shape, row in self._served.items()}

    def _cut_devices(self) -> None:
        for (pool, room), row in self._slots.items():
            for cut in self._patterns.of(self._sizes, room):
                if (pool, room, cut) not in self._cut:
                    self._cut.add((pool, room, cut))
                    made = [(self._supply[pool][i], -float(many)) for i, many in enumerate(cut) if many]
                    self._rows.column([(row, 1.0), *made])

    def _found_better(self, duals: Floats) -> bool:
        """Add patterns that pay at the duals; return whether there were any."""
        added = False
        for pool, supply in self._supply.items():
            gain = [float(duals[row]) for row in supply]
            rooms = [(room, row) for (owner, room), row in self._slots.items() if owner == pool]
            if max(gain) <= _EASE or not rooms:
                continue
            best, cut = knapsack(self._sizes, gain, max(room for room, _ in rooms))
            for room, row in rooms:
                known = self._patterns.cuts[room]
                if best[room] > duals[row] + _PAYS and cut[room] not in known:
                    known[cut[room]] = None
                    added = True
        return added


def knapsack(sizes: tuple[int, ...], gain: list[float], room: int) -> tuple[list[float], list[Cut]]:
    """Return the best gain and its cut for every free amount up to `room` (unbounded knapsack over integers)."""
    best, cut = [0.0], [(0,) * len(sizes)]
    for level in range(1, room + 1):
        value, pattern = best[-1], cut[-1]
        for i, size in enumerate(sizes):
            if size <= level and best[level - size] + gain[i] > value + _EASE:
                value = best[level - size] + gain[i]
                former = cut[level - size]
                pattern = (*former[:i], former[i] + 1, *former[i + 1 :])
        best.append(value)
        cut.append(pattern)
    return best, cut

"""Chooses the node and the devices of one replica.

`Placer.best` keeps, for each request it has seen, the waste of every node, and after a placement asks again only for
the nodes that changed. Where a score offers a quick lower bound, a node's waste is not worked out before its bound is
the least there is: most nodes never are looked at closely. The outcome is the same as if all were. `pick` then chooses devices on exact integers; it is the
authority on whether a node fits, the arrays only propose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler import power
from llmos_operator.scheduler.feasibility import KEPT_REQUESTS
from llmos_operator.scheduler.scene import Candidates
from llmos_operator.scheduler.scores.best_fit import BestFit
from llmos_operator.scheduler.scores.fragmentation import Fragmentation
from llmos_operator.scheduler.table import ALL, CAPACITY, EXCESS, FREE_BYTES, FREE_MILLI, IDLE, STRANGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import numpy.typing as npt

    from llmos_operator.scheduler.feasibility import Feasibility
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.policy import ScoreKind
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.table import Bools, Ints, NodeTable, Rows
    from llmos_operator.state.ledger import DeviceState, NodeState

INFEASIBLE: Final = int(np.iinfo(np.int64).max)
_SINGLY: Final = 8  # rows that are looked at one by one before all that may be better are looked at together
_PERCENT: Final = 100


@dataclass(slots=True)
class _Ranking:
    """Waste of every row for one request, and how much of the table's log it has seen.

    A waste that is not exact is a lower bound: the row was not looked at closely, nor whether it can take the request.
    """

    waste: Ints
    exact: Bools
    column: Ints  # of the device that should give a share, -1 where any will do; only where exact
    version: tuple[int, int]
    seen: int


class Placer:
    """Best rows by waste, remembered per request.

    With prices the waste is what a placement destroys of the value of the node (`scores.fragmentation`), where that
    score has an opinion; else it is how badly the request fits (`scores.best_fit`).
    """

    def __init__(self, scene: Scene, feasibility: Feasibility, prices: Prices | None = None) -> None:
        self._scene = scene
        self._feasibility = feasibility
        self._best_fit = BestFit()
        self._fragmentation = Fragmentation(prices) if prices is not None else None
        self._rankings: dict[Request, _Ranking] = {}

    def best(self, request: Request, handicaps: Mapping[int, int] | None = None) -> tuple[int, int] | None:
        """Return (row, waste) of the least waste, the first row of equals; None if no row can take the request.

        `handicaps` adds to the waste of single rows; INFEASIBLE rules a row out.
        """
        ranking = self._current(request)
        if not ranking.waste.size:
            return None
        closely = 0
        while True:
            waste = _handicapped(ranking.waste, handicaps)
            row = int(waste.argmin())
            if ranking.exact[row]:
                return None if waste[row] == INFEASIBLE else (row, int(waste[row]))
            closely += 1
            if closely <= _SINGLY and self._look_at(request, ranking, row):
                continue
            # Whatever is bounded by less than the best exact waste has to be looked at: better all at once.
            found = waste[ranking.exact].min(initial=INFEASIBLE)
            self._look(request, ranking, np.flatnonzero(~ranking.exact & (waste <= found)))

    def column(self, request: Request, row: int) -> int | None:
        """Return which device of the best row the score would take, by column; None if it leaves that to `pick`."""
        ranking = self._rankings.get(request)
        if ranking is None or not ranking.exact[row] or ranking.column[row] < 0:
            return None
        return int(ranking.column[row])

    def wastes(self, request: Request) -> Ints:
        """Return the waste of every row, INFEASIBLE where it cannot take the request now. Not to be changed."""
        ranking = self._current(request)
        bounded = np.flatnonzero(~ranking.exact)
        if bounded.size:
            self._look(request, ranking, bounded)
        return ranking.waste

    def count(self, request: Request) -> int:
        """Return how many rows can take the request."""
        return int(self._feasibility.fitting(request).sum())

    def scored_by(self, request: Request) -> ScoreKind:
        """Return which score ranks the rows for a request."""
        return self._score(request).kind

    def _current(self, request: Request) -> _Ranking:
        table = self._scene.table
        ranking, version = self._rankings.get(request), (table.generation, table.static_version)
        if ranking is not None and ranking.version == version:
            if ranking.seen < len(table.log):
                self._update(request, ranking, table.changed_since(ranking.seen))
                ranking.seen = len(table.log)
            return ranking
        if len(self._rankings) >= KEPT_REQUESTS:
            del self._rankings[next(iter(self._rankings))]
        rows = len(table)
        ranking = _Ranking(
            np.full(rows, INFEASIBLE, np.int64),
            np.ones(rows, np.bool_),
            np.full(rows, -1),
            version,
            len(table.log),
        )
        self._update(request, ranking, ALL)
        self._rankings[request] = ranking
        return ranking

    def _update(self, request: Request, ranking: _Ranking, rows: Rows) -> None:
        """Take in rows that have changed: by bounds where the score has some."""
        score = self._score(request)
        if isinstance(score, BestFit):
            self._look(request, ranking, rows)
            return
        possible = self._feasibility.possible(request, rows)
        ranking.waste[rows] = np.where(possible, score.least(self._scene, request, rows), INFEASIBLE)
        ranking.exact[rows] = ~possible

    def _look_at(self, request: Request, ranking: _Ranking, row: int) -> bool:
        """Make the waste of one row exact, on the ledger's values. Returns False where only `_look` can."""
        score, table = self._score(request), self._scene.table
        if isinstance(score, BestFit):
            return False
        state, acceptable = table.states[row], self._feasibility.acceptable(request).devices[row]
        overuse = self._scene.policy.overuse_percent
        usable = [False] * table.width
        for column, device in enumerate(state.devices if request.devices else ()):
            usable[column] = (
                bool(acceptable[column])
                and device_fits(device, request, overuse)
                and obtainable(state, device, request)
            )
        judged: tuple[int, int] | None = (INFEASIBLE, -1)
        if host_fits(state, request) and sum(usable) >= request.devices:
            judged = score.judge_one(self._scene, request, row, usable)
        if judged is None:
            return False
        ranking.waste[row], ranking.column[row] = judged
        ranking.exact[row] = True
        return True

    def _look(self, request: Request, ranking: _Ranking, rows: Rows) -> None:
        """Make the waste of rows exact."""
        fits, candidates = self._feasibility.check(request, rows)
        at = np.flatnonzero(fits)
        waste, column = np.full(len(fits), INFEASIBLE, np.int64), np.full(len(fits), -1)
        if at.size:
            chosen = Candidates(self._scene.table, _rows_of(rows, at), candidates.devices[at])
            waste[at], preferred = self._score(request).judge(self._scene, request, chosen)
            if preferred is not None:
                column[at] = preferred
        ranking.waste[rows], ranking.column[rows], ranking.exact[rows] = waste, column, True

    def _score(self, request: Request) -> BestFit | Fragmentation:
        if self._fragmentation is not None and self._fragmentation.judges(request):
            return self._fragmentation
        return self._best_fit


def _rows_of(rows: Rows, at: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return at + (rows.start or 0) if isinstance(rows, slice) else rows[at]


def _handicapped(waste: Ints, handicaps: Mapping[int, int] | None) -> Ints:
    if not handicaps:
        return waste
    waste = waste.copy()
    for row, extra in handicaps.items():
        waste[row] = INFEASIBLE if INFEASIBLE - extra < waste[row] else waste[row] + extra
    return waste


def pick(
    state: NodeState, request: Request, acceptable: Bools, overuse_percent: int, prefer: int | None = None
) -> tuple[DeviceState, ...] | None:
    """Return the devices a node would give, best first; None if it cannot take the request. Empty for CPU-only work.

    `acceptable` are the node's devices that pass the static filters, by column; the device in column `prefer` comes
    first if it will do.
    """
    if not host_fits(state, request):
        return None
    if not request.devices:
        return ()
    usable = [
        (_to_change_hands(d, request), column != prefer, d)
        for column, d in enumerate(state.devices)
        if acceptable[column] and device_fits(d, request, overuse_percent) and obtainable(state, d, request)
    ]
    if len(usable) < request.devices:
        return None
    usable.sort(key=lambda one: (one[0], one[1], _device_order(one[2], request)))
    devices = tuple(d for _, _, d in usable[: request.devices])
    return devices if _units_suffice(state, devices, request) else None


def host_fits(state: NodeState, request: Request) -> bool:
    """Return whether CPU, host memory, pod count, device-plugin units and the power budget of a node suffice."""
    node = state.node
    return (
        node is not None
        and node.cpu_milli - state.cpu_milli >= request.cpu_milli
        and node.memory_bytes - state.memory_bytes >= request.memory_bytes
        and node.pods - state.pod_count >= 1
        and state.free_gpus() >= request.plugin_gpus
        and power.fits(state, request)
    )


def device_fits(device: DeviceState, request: Request, overuse_percent: int) -> bool:
    """Return whether one device suffices as it is held and observed now."""
    if request.whole:
        if not device.idle:
            return False
    elif not device.idle and (device.exclusive or device.foreign or device.domain != request.domain):
        return False
    excess = (device.observed_bytes or 0) - device.reserved_bytes
    return (
        not device.strange_bytes
        and excess <= device.device.memory_bytes * overuse_percent // _PERCENT
        and device.headroom_milli() >= request.compute_milli
        and device.headroom_bytes() >= request.bytes_per_device
    )


def whole_fitting(table: NodeTable, request: Request, overuse_percent: int) -> Bools:
    """Return :func:`device_fits` of every device of the table, for a request of whole devices."""
    device = table.device
    fits: Bools = (device[IDLE] > 0) & (device[STRANGE] == 0)
    fits &= device[EXCESS] <= table.fixed[CAPACITY] * overuse_percent // _PERCENT
    fits &= (device[FREE_MILLI] >= request.compute_milli) & (device[FREE_BYTES] >= request.bytes_per_device)
    return fits & table.exists


def obtainable(state: NodeState, device: DeviceState, request: Request) -> bool:
    """Return whether a device is, or can be made, one of those that such work may use: shared, or whole."""
    return request.whole or device.open or device.shareable(state.free_gpus())


def _to_change_hands(device: DeviceState, request: Request) -> bool:
    """Return whether a holder pod has to be made, or to go, before the device can be used so."""
    return device.secured if request.whole else not device.open


def _units_suffice(state: NodeState, devices: Iterable[DeviceState], request: Request) -> bool:
    """Return whether the device plugin has enough units for those of the devices that have to be taken from it."""
    if request.whole or not state.plugged:
        return True
    return sum(not one.open and not one.claims for one in devices) <= state.free_gpus()


def fits_on(state: NodeState, request: Request, uuids: Collection[str], overuse_percent: int) -> bool:
    """Return whether the request fits on exactly these devices of a node."""
    if not host_fits(state, request):
        return False
    found = [d for uuid in uuids if (d := state.device(uuid)) is not None]
    if len(found) < len(uuids):
        return False
    fit = all(device_fits(d, request, overuse_percent) and obtainable(state, d, request) for d in found)
    return fit and _units_suffice(state, found, request)


def _device_order(device: DeviceState, request: Request) -> tuple[bool, int, bool, int, int, int]:
    size = device.device.memory_bytes if request.whole else device.headroom_bytes()
    used_first = device.idle and not request.whole
    worn = device.verdict is Verdict.DEGRADED
    part = device.device.part_milli  # the same for all but MIG instances
    return (worn, device.strain_milli, used_first, part, size, device.device.index)

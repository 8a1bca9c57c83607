"""Chooses the node and the devices of one replica.

`Placer.best` keeps, for each request it has seen, the waste of every node, and after a placement asks again only for
the nodes that changed: identical work costs one row each. `pick` then chooses devices on exact integers; it is the
authority on whether a node fits, the arrays only propose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler.scene import Candidates
from llmos_operator.scheduler.scores.best_fit import BestFit
from llmos_operator.scheduler.scores.fragmentation import Fragmentation
from llmos_operator.scheduler.table import ALL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.scheduler.feasibility import Feasibility
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.policy import ScoreKind
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.table import Bools, Ints, Rows
    from llmos_operator.state.ledger import DeviceState, NodeState

INFEASIBLE: Final = np.iinfo(np.int64).max
_KEPT_REQUESTS: Final = 256
_RECHECK_SHARE: Final = 2  # recheck all rows once half of them have changed
_PERCENT: Final = 100


@dataclass(slots=True)
class _Ranking:
    """Waste of every row for one request, and how much of the table's log it has seen."""

    waste: Ints
    seen: int
    generation: int
    static_version: int


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
        waste = self._current(request)
        if not waste.size:
            return None
        if handicaps:
            waste = waste.copy()
            for row, extra in handicaps.items():
                waste[row] = INFEASIBLE if INFEASIBLE - extra < waste[row] else waste[row] + extra
        row = int(waste.argmin())
        return None if waste[row] == INFEASIBLE else (row, int(waste[row]))

    def column(self, request: Request, row: int, acceptable: Bools) -> int | None:
        """Return which device of a row the score would take, by column; None if it leaves that to `pick`."""
        if self._fragmentation is None or not self._fragmentation.judges(request):
            return None
        return self._fragmentation.column(self._scene, request, row, acceptable)

    def count(self, request: Request) -> int:
        """Return how many rows can take the request."""
        return int((self._current(request) != INFEASIBLE).sum())

    def _current(self, request: Request) -> Ints:
        table = self._scene.table
        ranking = self._rankings.get(request)
        if ranking is not None and (
            ranking.generation == table.generation and ranking.static_version == table.static_version
        ):
            changed = table.log[ranking.seen :]
            ranking.seen = len(table.log)
            if len(changed) * _RECHECK_SHARE > len(table):
                ranking.waste = self._waste(request, ALL)
            elif len(changed) == 1:
                rows = np.array(changed)
                ranking.waste[rows] = self._waste(request, rows)
            elif changed:
                rows = np.unique(np.array(changed))
                ranking.waste[rows] = self._waste(request, rows)
            return ranking.waste
        if len(self._rankings) >= _KEPT_REQUESTS:
            del self._rankings[next(iter(self._rankings))]
        waste = self._waste(request, ALL)
        self._rankings[request] = _Ranking(waste, len(table.log), table.generation, table.static_version)
        return waste

    def _waste(self, request: Request, rows: Rows) -> Ints:
        fits, candidates = self._feasibility.check(request, rows)
        waste = np.full(len(fits), INFEASIBLE, np.int64)
        at = np.flatnonzero(fits)
        if at.size:
            chosen = Candidates(at if isinstance(rows, slice) else rows[at], candidates.devices[at])
            waste[at] = self._score(request).waste(self._scene, request, chosen)
        return waste

    def scored_by(self, request: Request) -> ScoreKind:
        """Return which score ranks the rows for a request."""
        return self._score(request).kind

    def _score(self, request: Request) -> BestFit | Fragmentation:
        if self._fragmentation is not None and self._fragmentation.judges(request):
            return self._fragmentation
        return self._best_fit


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
        (column != prefer, d)
        for column, d in enumerate(state.devices)
        if acceptable[column] and device_fits(d, request, overuse_percent)
    ]
    if len(usable) < request.devices:
        return None
    usable.sort(key=lambda one: (one[0], _device_order(one[1], request)))
    return tuple(d for _, d in usable[: request.devices])


def host_fits(state: NodeState, request: Request) -> bool:
    """Return whether CPU, host memory, pod count and device-plugin units of a node suffice."""
    node = state.node
    return (
        node is not None
        and node.cpu_milli - state.cpu_milli >= request.cpu_milli
        and node.memory_bytes - state.memory_bytes >= request.memory_bytes
        and node.pods - state.pod_count >= 1
        and node.gpus - state.gpus >= request.plugin_gpus
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
        excess <= device.device.memory_bytes * overuse_percent // _PERCENT
        and device.headroom_milli() >= request.compute_milli
        and device.headroom_bytes() >= request.bytes_per_device
    )


def fits_on(state: NodeState, request: Request, uuids: Iterable[str], overuse_percent: int) -> bool:
    """Return whether the request fits on exactly these devices of a node."""
    if not host_fits(state, request):
        return False
    found = (state.device(uuid) for uuid in uuids)
    return all(d is not None and device_fits(d, request, overuse_percent) for d in found)


def _device_order(device: DeviceState, request: Request) -> tuple[bool, bool, int, int]:
    size = device.device.memory_bytes if request.whole else device.headroom_bytes()
    used_first = device.idle and not request.whole
    return (device.verdict is Verdict.DEGRADED, used_first, size, device.device.index)

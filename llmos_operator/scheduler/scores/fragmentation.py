"""Fragmentation: destroy the least of what the cluster can still do for the work that is expected.

    waste = value of the node before - value after        (`fragmentation.worth`, in millionths of a device)

Values come from prices that are made between cycles. Equal waste goes to the node with the fewest idle devices, then
breaks in row order; on a node a share goes to the device whose loss is least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.fragmentation.losses import Asked, Nodes, losses
from llmos_operator.scheduler.policy import ScoreKind
from llmos_operator.scheduler.shares import asked_of, kind_rows, shares
from llmos_operator.scheduler.table import ALL, CPU, IDLE
from llmos_operator.state.types import Placement, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Floats, Scene
    from llmos_operator.scheduler.table import Bools, Ints, NodeTable, Rows

_MILLIONTHS: Final = 1_000_000
_UNPRICED: Final = 1 << 30  # millionths: room that the filters see and rounding of shares does not
_DEGRADED: Final = 1 << 36  # millionths: a degraded device is taken only when no other will do
_TIES: Final = 8  # bits below the loss, for idle devices


def loss_of(waste: int) -> float | None:
    """Return the loss that a waste stands for, in devices; None where the prices say nothing of the room."""
    loss = waste >> _TIES
    return None if loss >= _UNPRICED else loss / _MILLIONTHS


class Fragmentation:
    """Loss of value of the best placement on each candidate."""

    kind: Final = ScoreKind.FRAGMENTATION

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._asked: dict[Request, Asked] = {}
        self._seen = (-1, -1, 0)  # generation and static version of the table, entries of its log

    @staticmethod
    def judges(request: Request) -> bool:
        """Return whether the score has an opinion: not on work that wants to be spread, nor on MIG instances."""
        return request.placement is not Placement.SPREAD and request.constraints.sharing is not Sharing.MIG

    def waste(self, scene: Scene, request: Request, candidates: Candidates) -> Ints:
        """Return the waste of each candidate, in units that only compare within one request."""
        rows, table = candidates.rows, scene.table
        self._follow(table)
        loss, _ = self._losses(request, rows, candidates.devices & ~table.degraded[rows])
        whole = np.where(np.isfinite(loss), np.rint(loss * _MILLIONTHS).clip(0), _UNPRICED).astype(np.int64)
        if request.devices and table.degraded[rows].any():
            worse, _ = self._losses(request, rows, candidates.devices)
            at_all = np.where(np.isfinite(worse), np.rint(worse * _MILLIONTHS).clip(0), _UNPRICED).astype(
                np.int64
            )
            whole = np.where(np.isfinite(loss), whole, at_all + _DEGRADED)
        idle = table.device[IDLE][rows].sum(axis=1)
        waste: Ints = (whole << _TIES) + idle
        return waste

    def column(self, scene: Scene, request: Request, row: int, devices: Bools) -> int | None:
        """Return the column of the device that should give a share; None if any will do. `devices` are acceptable."""
        if request.whole or request.devices != 1:
            return None
        table, rows = scene.table, np.array([row])
        self._follow(table)
        for usable in (devices & ~table.degraded[row], devices):
            loss, column = self._losses(request, rows, usable[None, :])
            if np.isfinite(loss[0]):
                return int(column[0])
        return None

    def _losses(self, request: Request, rows: Rows, usable: Bools) -> tuple[Floats, Ints]:
        asked = self._asked.get(request)
        if asked is None:
            asked = self._asked[request] = asked_of(request, self._prices.kinds)
        nodes = Nodes(self._kind[rows], self._free[rows], self._held[rows], usable)
        return losses(self._prices.worth, asked, nodes)

    def _follow(self, table: NodeTable) -> None:
        """Bring kinds, free shares and bounds up to the table."""
        generation, static, seen = self._seen
        now = (table.generation, table.static_version, len(table.log))
        if now == self._seen:
            return
        worth = self._prices.worth
        if (generation, static) != now[:2]:
            self._kind = kind_rows(table, self._prices.kinds)
            self._free = self._shares(table, ALL)
            self._held = worth.bounds(self._kind, table.node[CPU].clip(0), self._free)
        else:
            rows = np.unique(np.array(table.log[seen:]))
            self._free[rows] = self._shares(table, rows)
            self._held[rows] = worth.bounds(self._kind[rows], table.node[CPU][rows].clip(0), self._free[rows])
        self._seen = now

    def _shares(self, table: NodeTable, rows: Rows) -> Ints:
        free = shares(table, rows)
        free[:, self._prices.worth.width :] = 0  # columns that came after the prices are not known to them
        return free

"""Fragmentation: destroy the least of what the cluster can still do for the work that is expected.

    waste = value of the node before - value after        (`fragmentation.worth`, in millionths of a device)

Values come from prices that are made between cycles. Equal waste goes to the node with the fewest idle devices, then
breaks in row order; on a node a share goes to the device whose loss is least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.fragmentation.holdings import Holdings
from llmos_operator.scheduler.locality import lacking, lacks_copy
from llmos_operator.scheduler.policy import ScoreKind
from llmos_operator.scheduler.shares import asked_of, kind_rows, shares, shares_of
from llmos_operator.scheduler.table import ALL, CPU, IDLE
from llmos_operator.state.types import FULL_MILLI, Placement, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.losses import Asked
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Floats, Scene
    from llmos_operator.scheduler.table import Bools, Ints, NodeTable, Rows

_MILLIONTHS: Final = 1_000_000
_UNPRICED: Final = 1 << 30  # millionths: room that the filters see and rounding of shares does not
_DEGRADED: Final = 1 << 36  # millionths: a degraded device is taken only when no other will do
_OUT: Final = 1 << 40  # millionths: nothing is known
_TIES: Final = 9  # bits below the loss, for idle devices, and the last for a copy of the model
_SLACK: Final = 1e-3  # millionths: by as much, and a thousandfold more than it does, rounding may move a loss


def loss_of(waste: int) -> float | None:
    """Return the loss that a waste stands for, in devices; None where the prices say nothing of the room."""
    loss = waste >> _TIES
    return None if loss >= _UNPRICED else loss / _MILLIONTHS


def _least_strained(usable: Bools, strain: Ints, devices: int) -> tuple[Bools, Ints]:
    """Return the `devices` least strained of each row, with all that are strained no more, and what they lose, in millionths."""
    worn = np.where(usable, strain, _OUT)
    if devices > worn.shape[1]:
        return np.zeros_like(usable), np.zeros(len(worn), np.int64)
    first = np.partition(worn, devices - 1, axis=1)[:, :devices]
    lost: Ints = first.sum(axis=1).clip(max=_OUT >> _TIES) * (_MILLIONTHS // FULL_MILLI)
    return usable & (worn <= first.max(axis=1)[:, None]), lost


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

    def least(self, scene: Scene, request: Request, rows: Rows) -> Ints:
        """Return a waste that no placement on a row falls below, and most often its waste. Asks much less than `judge`."""
        self._follow(scene.table)
        loss = self._holdings.least(self._asked_of(request), rows) * _MILLIONTHS - _SLACK
        least: Ints = np.minimum(np.maximum(np.rint(loss), 0), _UNPRICED).astype(np.int64) << _TIES
        return least + (self._holdings.idle(rows) << 1) + lacking(scene.table, rows, request)

    def judge(self, scene: Scene, request: Request, candidates: Candidates) -> tuple[Ints, Ints]:
        """Return the waste of each candidate, and the column of the device that should give a share.

        Wastes only compare within one request. The column is -1 where any device will do.
        """
        rows, table = candidates.rows, scene.table
        self._follow(table)
        degraded, strain, harm = table.degraded[rows], table.strain[rows], scene.harm_of(request, rows)
        if harm is not None:
            strain = strain + harm
        whole, column = self._whole(request, rows, candidates.devices & ~degraded & (strain == 0))
        if harm is not None:
            least, lost = _least_strained(
                candidates.devices & ~degraded & (strain > 0), strain, request.devices
            )
            whole, column = self._or_less(whole, column, request, rows, least, lost)
        elif request.devices and strain.any():
            least, lost = _least_strained(candidates.devices & ~degraded, strain, request.devices)
            whole, column = self._or_else(whole, column, request, rows, least, lost)
        if request.devices and degraded.any():
            worn = np.full(len(whole), _DEGRADED, np.int64)
            whole, column = self._or_else(whole, column, request, rows, candidates.devices, worn)
        scarce = (candidates.devices & ~degraded).sum(axis=1) < request.devices
        whole = np.where(whole == _OUT, _UNPRICED + scarce * _DEGRADED, whole)
        idle = candidates.device[IDLE].sum(axis=1)
        return (whole << _TIES) + (idle << 1) + lacking(table, rows, request), column

    def judge_one(
        self, scene: Scene, request: Request, row: int, usable: list[bool]
    ) -> tuple[int, int] | None:
        """Return what `judge` does for a single row, faster; None for what only `judge` can do.

        ``usable`` says by column which devices passed the filters; the table's width long.
        """
        asked, table = self._asked_of(request), scene.table
        if (asked.devices > 1 and not asked.whole) or table.degraded[row].any() or row in table.strained:
            return None
        if scene.harm is not None and scene.harm.concerns(request):
            return None
        self._follow(table)
        loss, column = self._holdings.loss_one(asked, row, usable)
        whole = max(0, round(loss * _MILLIONTHS)) if loss < np.inf else _UNPRICED
        state = table.states[row]
        idle = sum(d.idle for d in state.devices)
        return (whole << _TIES) + (idle << 1) + lacks_copy(state, request), column

    def _whole(self, request: Request, rows: Rows, usable: Bools) -> tuple[Ints, Ints]:
        """Return losses in millionths, _OUT where the prices say nothing, and the columns."""
        loss, column = self._losses(request, rows, usable)
        return np.where(np.isfinite(loss), np.rint(loss * _MILLIONTHS).clip(0), _OUT).astype(np.int64), column

    def _or_else(
        self, whole: Ints, column: Ints, request: Request, rows: Rows, usable: Bools, more: Ints
    ) -> tuple[Ints, Ints]:
        """Return the losses, and where there are none those on other devices, which cost so much more."""
        worse, other = self._whole(request, rows, usable)
        out = whole == _OUT
        return np.where(out, np.where(worse == _OUT, _OUT, worse + more), whole), np.where(out, other, column)

    def _or_less(
        self, whole: Ints, column: Ints, request: Request, rows: Rows, usable: Bools, more: Ints
    ) -> tuple[Ints, Ints]:
        """Return the losses, or those on other devices, which cost so much more, where these are less all the same."""
        others, other = self._whole(request, rows, usable)
        others = np.where(others == _OUT, _OUT, others + more)
        less = others < whole
        return np.where(less, others, whole), np.where(less, other, column)

    def _losses(self, request: Request, rows: Rows, usable: Bools) -> tuple[Floats, Ints]:
        return self._holdings.losses(self._asked_of(request), rows, usable)

    def _asked_of(self, request: Request) -> Asked:
        asked = self._asked.get(request)
        if asked is None:
            asked = self._asked[request] = asked_of(request, self._prices.kinds)
        return asked

    def _follow(self, table: NodeTable) -> None:
        """Bring what nodes are worth up to the table."""
        now = (table.generation, table.static_version, len(table.log))
        if now == self._seen:
            return
        if self._seen[:2] != now[:2]:
            kind, cpu = kind_rows(table, self._prices.kinds), table.node[CPU].clip(0)
            self._holdings = Holdings(self._prices.worth, kind, cpu, self._shares(table, ALL))
        else:
            rows = table.changed_since(self._seen[2])
            if isinstance(rows, slice):
                free = shares_of(table.states[rows.start], table.width)
                free[self._prices.worth.width :] = [0] * (table.width - self._prices.worth.width)
                self._holdings.update_one(rows.start, max(0, int(table.node[CPU, rows.start])), free)
                self._seen = now
                return
            self._holdings.update(rows, table.node[CPU][rows].clip(0), self._shares(table, rows))
        self._seen = now

    def _shares(self, table: NodeTable, rows: Rows) -> Ints:
        free = shares(table, rows)
        free[:, self._prices.worth.width :] = 0  # columns that came after the prices are not known to them
        return free

"""What every node is worth at given prices, kept up as nodes change, and a quick lower bound of what a request destroys.

A loss is `before - min over l of after(l)` (`losses`). At the price of CPU where the node's bound is least now, `l*`,

    loss >= before - after(l*) = CPU asked x l* + value at l* of what is taken        (less what stays of a device)

which takes one look-up a node or device instead of one for each price of CPU. Most nodes are out by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.fragmentation.losses import Nodes, losses
from llmos_operator.scheduler.fragmentation.shapes import CORE, FULL

if TYPE_CHECKING:
    import numpy.typing as npt

    from llmos_operator.scheduler.fragmentation.losses import Asked
    from llmos_operator.scheduler.fragmentation.shapes import Bools, Floats, Ints
    from llmos_operator.scheduler.fragmentation.worth import Worth

    Rows = npt.NDArray[np.intp] | slice


ALL: Final = slice(None)
_ROUNDING: Final = 1e9  # losses that differ by less are equal, as in `losses`
_MANY: Final = 64  # rows from which on it pays to look for those that are alike


def alike(rows: Ints) -> tuple[Ints, Ints]:
    """Return (a number for each row, the same for equal rows; the first row of each number)."""
    odd = np.random.default_rng(0).integers(1 << 62, size=rows.shape[1], dtype=np.int64) * 2 + 1
    _, first, number = np.unique((rows * odd).sum(axis=1), return_index=True, return_inverse=True)
    if not np.array_equal(
        rows, rows[first][number]
    ):  # two different rows with one sum: all count as different
        return np.arange(len(rows)), np.arange(len(rows))
    return number, first


class Holdings:
    """All nodes, one row each."""

    def __init__(self, worth: Worth, kind: Ints, cpu: Ints, free: Ints) -> None:
        """``kind`` and ``cpu`` (thousandths of a core) by row; ``free`` [rows, devices] as in `Stock.free`."""
        width = free.shape[1]
        self._worth = worth
        self._after: dict[tuple[int, ...], tuple[Floats, Floats]] = {}
        self._kind, self._free = kind, free
        self._alike, first = alike(np.column_stack([kind, cpu, free]))
        self._numbers = len(first)
        # Of rows that are alike one is worked out, the others take over what it has.
        self._held = np.zeros((len(first), len(worth.lambdas)))
        self._price = np.zeros(len(first))  # of a thousandth of a core, at l*
        self._idle_at = np.zeros(len(first), np.intp)  # place of (idle devices, l*) in the table of gangs
        self._breaks = np.zeros(len(first))  # worth at l* of one idle device among the others
        self._full_at = np.zeros(len(first), np.intp)  # place of (a whole device, l*) in the table of shares
        self._part_at = np.zeros(
            (width, len(first)), np.intp
        )  # place of (a free share, l*); the end: free or idle
        self._work_out(ALL, kind[first], cpu[first], free[first])
        self._held, self._price = self._held[self._alike], self._price[self._alike]
        self._idle_at, self._breaks = self._idle_at[self._alike], self._breaks[self._alike]
        self._full_at, self._part_at = self._full_at[self._alike], self._part_at[:, self._alike]

    def update(self, rows: Rows, cpu: Ints, free: Ints) -> None:
        """Take the free CPU and the free shares of rows that have changed."""
        self._free[rows] = free
        self._alike[rows] = np.arange(self._numbers, self._numbers + len(free))
        self._numbers += len(free)
        self._work_out(rows, self._kind[rows], cpu, free)

    def _work_out(self, rows: Rows, kind: Ints, cpu: Ints, free: Ints) -> None:
        worth = self._worth
        prices = len(worth.lambdas)
        held = worth.bounds(kind, cpu, free)
        least = held.argmin(axis=1)
        idle = free == FULL
        count = idle.sum(axis=1)
        self._held[rows] = held
        self._price[rows] = worth.lambdas[least] / CORE
        at = (kind * (worth.width + 1) + count) * prices + least
        self._idle_at[rows] = at
        self._breaks[rows] = np.where(count > 0, worth.gangs[at] - worth.gangs[at - prices], np.inf)
        level = kind * worth.levels
        self._full_at[rows] = (level + worth.levels - 1) * prices + least
        part = (level[:, None] + free // worth.unit) * prices + least[:, None]
        self._part_at[:, rows] = np.where((free > 0) & ~idle, part, len(worth.shares)).T

    def update_one(self, row: int, cpu: int, free: list[int]) -> None:
        """Do what `update` does for a single row, faster."""
        worth, kind = self._worth, int(self._kind[row])
        prices, count = len(worth.lambdas), free.count(FULL)
        held = worth.gang_of(kind, count).copy()
        for share in free:
            if 0 < share < FULL:
                held += worth.share_of(kind, share)
        held += (cpu / CORE) * worth.lambdas
        least = int(held.argmin())
        at = (kind * (worth.width + 1) + count) * prices + least
        level = kind * worth.levels
        end = len(worth.shares)
        self._free[row], self._held[row] = free, held
        self._price[row] = worth.lambdas[least] / CORE
        self._idle_at[row] = at
        self._breaks[row] = worth.gangs[at] - worth.gangs[at - prices] if count else np.inf
        self._full_at[row] = (level + worth.levels - 1) * prices + least
        self._part_at[:, row] = [
            (level + share // worth.unit) * prices + least if 0 < share < FULL else end for share in free
        ]
        self._alike[row] = self._numbers
        self._numbers += 1

    def loss_one(self, asked: Asked, row: int, usable: list[bool]) -> tuple[float, int]:
        """Return what `losses` does for a single row, faster. Not for parts of several devices."""
        worth, kind, held = self._worth, int(self._kind[row]), self._held[row]
        free: list[int] = self._free[row].tolist()
        before, left = held.min(), held - self._spent(asked)
        if not asked.devices:
            return float(before - left.min()), -1
        idle = free.count(FULL)
        if asked.whole:
            if sum(u and share == FULL for u, share in zip(usable, free, strict=True)) < asked.devices:
                return np.inf, -1
            after = left - worth.gang_of(kind, idle) + worth.gang_of(kind, idle - asked.devices)
            return float(before - after.min()), -1
        taken, best, column = int(asked.share[kind]), (np.inf, 0), -1
        found = np.inf
        for room in sorted({share for u, share in zip(usable, free, strict=True) if u and share >= taken}):
            if room == FULL:
                gone = worth.gang_of(kind, idle) - worth.gang_of(kind, idle - 1)
            else:
                gone = worth.share_of(kind, room)
            loss = float(before - (left - gone + worth.share_of(kind, room - taken)).min())
            rank = (round(loss * _ROUNDING) / _ROUNDING, room)
            if rank < best:
                best, found = rank, loss
                column = next(c for c, share in enumerate(free) if share == room and usable[c])
        return found, column

    def _spent(self, asked: Asked) -> Floats:
        """Return the CPU asked for at each price."""
        spent: Floats = self._worth.lambdas * (asked.cpu / CORE)
        return spent

    def losses(self, asked: Asked, rows: Rows, usable: Bools) -> tuple[Floats, Ints]:
        """Return what `losses.losses` does; ``usable`` are the devices to choose from. Rows that are alike are judged once."""
        numbers = self._alike[rows]
        if len(numbers) < _MANY:
            return losses(self._worth, asked, self._nodes(rows, usable))
        places = np.arange(len(numbers))
        first = np.empty(self._numbers, np.intp)
        first[numbers[::-1]] = places[::-1]
        stands_for = first[numbers]
        stands_for = np.where((usable == usable[stands_for]).all(axis=1), stands_for, places)
        chosen = np.flatnonzero(stands_for == places)
        at = chosen + (rows.start or 0) if isinstance(rows, slice) else rows[chosen]
        loss, column = losses(self._worth, asked, self._nodes(at, usable[chosen]))
        where = np.empty(len(numbers), np.intp)
        where[chosen] = np.arange(len(chosen))
        where = where[stands_for]
        return loss[where], column[where]

    def _nodes(self, rows: Rows, usable: Bools) -> Nodes:
        return Nodes(self._kind[rows], self._free[rows], self._held[rows], usable)

    def least(self, asked: Asked, rows: Rows) -> Floats:
        """Return a lower bound of the loss of each row, infinite where no device has room.

        Of several parts nothing is known: the bound is below every loss.
        """
        loss = self._price[rows] * asked.cpu
        if not asked.devices:
            return loss
        worth = self._worth
        if asked.whole:
            at, step = self._idle_at[rows], asked.devices * len(worth.lambdas)
            room = at // len(worth.lambdas) % (worth.width + 1) >= asked.devices
            taken = worth.gangs[at] - worth.gangs[np.where(room, at - step, at)]
            return np.where(room, loss + taken, np.inf)
        if asked.devices > 1:
            return np.full(len(loss), -1.0)
        gone, stays = self._part(asked)
        part = gone[self._part_at[:, rows]].min(axis=0)
        bound: Floats = loss + np.minimum(part, self._breaks[rows] - stays[self._full_at[rows]])
        return bound

    def _part(self, asked: Asked) -> tuple[Floats, Floats]:
        """Return (loss at each place of the table of shares, what stays of a whole device), for one share by kind.

        Both are rounded in favour of the row: a remainder is valued as if it were a whole number of units.
        """
        key = tuple(asked.share.tolist())
        found = self._after.get(key)
        if found is None:
            worth, prices = self._worth, len(self._worth.lambdas)
            table = worth.shares.reshape(-1, worth.levels, prices)
            gone, stays = np.full_like(table, np.inf), np.zeros_like(table)
            for kind, share in enumerate(asked.share):
                units = int(share) // worth.unit
                if units < worth.levels:
                    gone[kind, units:] = table[kind, units:] - table[kind, : worth.levels - units]
                    stays[kind, -1] = table[kind, worth.levels - 1 - units]
            found = np.append(gone.ravel(), np.inf), stays.ravel()
            self._after[key] = found
        return found

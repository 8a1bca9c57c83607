"""What every node is worth at given prices, kept up as nodes change, and a quick lower bound of what a request destroys.

A loss is `before - min over l of after(l)` (`losses`). At any one price of CPU,

    loss >= before - after(l) = CPU asked x l + value at l of what is taken - (value at l - before)   (less what stays of a device)

which takes one look-up a node or device instead of one for each price of CPU. A node's value is convex in `l`, and what
is taken seldom moves its least by more than one price: the largest of three bounds, around the price where the value is
least now, is nearly always the loss itself. So hardly any node is looked at closely but the one that is chosen.
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
_NEAR: Final = 3  # prices of CPU at which bounds are looked up, one after the other
# Planes of `_near`, amounts at these three: price of a thousandth of a core, value of the node above its least one,
# worth of one idle device among the others.
_PRICE, _ABOVE, _BREAKS = range(3)
# Rows of `_at`: idle devices, then places at the first of the three prices in a flat table: of the idle devices in that
# of gangs, of a whole device in that of shares, and from here on of each device's free share there (its end: none, or
# an idle device).
_IDLE, _GANG, _WHOLE, _PARTS = range(4)
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
        """``kind`` and ``cpu`` (thousandths of a core) by row; ``free`` [rows, devices] as in `Stock.free`.

        ``worth`` has tables for three prices of CPU at least.
        """
        width = free.shape[1]
        self._worth = worth
        self._after: dict[tuple[int, ...], tuple[Floats, Floats]] = {}
        self._kind, self._free = kind, free
        self._alike, first = alike(np.column_stack([kind, cpu, free]))
        self._numbers = len(first)
        # Of rows that are alike one is worked out, the others take over what it has.
        self._held = np.zeros((len(first), len(worth.lambdas)))
        self._near = np.zeros((3, _NEAR, len(first)))
        self._at = np.zeros((_PARTS + width, len(first)), np.intp)
        self._work_out(ALL, kind[first], cpu[first], free[first])
        # `take` keeps the values of a plane beside each other, which indexing does not: three times the speed of `least`.
        self._held, self._near = self._held[self._alike], self._near.take(self._alike, axis=2)
        self._at = self._at.take(self._alike, axis=1)

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
        first = (held.argmin(axis=1) - 1).clip(0, prices - _NEAR)
        idle = free == FULL
        count = idle.sum(axis=1)
        gang = (kind * (worth.width + 1) + count) * prices + first
        level = kind * worth.levels
        part = (level[:, None] + free // worth.unit) * prices + first[:, None]
        self._held[rows] = held
        self._at[_IDLE, rows], self._at[_GANG, rows] = count, gang
        self._at[_WHOLE, rows] = (level + worth.levels - 1) * prices + first
        self._at[_PARTS:, rows] = np.where((free > 0) & ~idle, part, len(worth.shares)).T
        before, here = held.min(axis=1), np.arange(len(held))
        for near in range(_NEAR):
            breaks = worth.gangs[gang + near] - worth.gangs[gang - prices + near]
            self._near[_PRICE, near, rows] = worth.lambdas[first + near] / CORE
            self._near[_ABOVE, near, rows] = held[here, first + near] - before
            self._near[_BREAKS, near, rows] = np.where(count > 0, breaks, np.inf)

    def update_one(self, row: int, cpu: int, free: list[int]) -> None:
        """Do what `update` does for a single row, faster."""
        worth, kind = self._worth, int(self._kind[row])
        prices, count = len(worth.lambdas), free.count(FULL)
        held = worth.gang_of(kind, count).copy()
        for share in free:
            if 0 < share < FULL:
                held += worth.share_of(kind, share)
        held += (cpu / CORE) * worth.lambdas
        first = min(max(int(held.argmin()) - 1, 0), prices - _NEAR)
        level, near, none = kind * worth.levels, slice(first, first + _NEAR), len(worth.shares)
        self._free[row], self._held[row] = free, held
        self._at[:, row] = [
            count,
            (kind * (worth.width + 1) + count) * prices + first,
            (level + worth.levels - 1) * prices + first,
            *((level + s // worth.unit) * prices + first if 0 < s < FULL else none for s in free),
        ]
        self._near[_PRICE, :, row] = worth.lambdas[near] / CORE
        self._near[_ABOVE, :, row] = held[near] - held.min()
        breaks = worth.gang_of(kind, count) - worth.gang_of(kind, count - 1) if count else None
        self._near[_BREAKS, :, row] = np.inf if breaks is None else breaks[near]
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

    def idle(self, rows: Rows) -> Ints:
        """Return how many devices of each row are idle."""
        found: Ints = self._at[_IDLE, rows]
        return found

    def least(self, asked: Asked, rows: Rows) -> Floats:
        """Return a lower bound of the loss of each row, infinite where no device has room.

        Of several parts nothing is known: the bound is below every loss.
        """
        loss: Floats = self._near[_PRICE][:, rows] * asked.cpu - self._near[_ABOVE][:, rows]
        if not asked.devices:
            found: Floats = loss.max(axis=0)
            return found
        if asked.whole:
            return self._least_whole(asked, rows, loss)
        return self._least_part(asked, rows, loss) if asked.devices == 1 else np.full(loss.shape[1], -1.0)

    def _least_whole(self, asked: Asked, rows: Rows, loss: Floats) -> Floats:
        gangs, before = self._worth.gangs, self._at[_GANG, rows]
        room = self._at[_IDLE, rows] >= asked.devices
        after = before - room * (asked.devices * len(self._worth.lambdas))
        for near in range(_NEAR):
            loss[near] += gangs[near:][before] - gangs[near:][after]
        return np.where(room, loss.max(axis=0), np.inf)

    def _least_part(self, asked: Asked, rows: Rows, loss: Floats) -> Floats:
        """Return the least, over the devices in use and an idle one, of the largest of the three bounds."""
        gone, stays = self._part(asked)
        parts, whole = self._at[_PARTS:, rows], self._at[_WHOLE, rows]
        breaks = self._near[_BREAKS][:, rows] + loss
        of_parts = np.full(parts.shape, -np.inf)
        for near in range(_NEAR):
            breaks[near] -= stays[near:][whole]
            bound = gone[near:][parts]
            bound += loss[near]
            np.maximum(of_parts, bound, out=of_parts)
        found: Floats = np.minimum(of_parts.min(axis=0), breaks.max(axis=0))
        return found

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
            found = np.append(gone.ravel(), [np.inf] * _NEAR), stays.ravel()
            self._after[key] = found
        return found

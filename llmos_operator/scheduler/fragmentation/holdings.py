"""What every node is worth at given prices, kept up as nodes change, and a quick lower bound of what a request destroys.

A loss is `before - min over l of after(l)` (`losses`). At the price of CPU where the node's bound is least now, `l*`,

    loss >= before - after(l*) = CPU asked x l* + value at l* of what is taken        (less what stays of a device)

which takes one look-up a node or device instead of one for each price of CPU. Most nodes are out by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.scheduler.fragmentation.losses import Nodes
from llmos_operator.scheduler.fragmentation.shapes import CORE, FULL

if TYPE_CHECKING:
    import numpy.typing as npt

    from llmos_operator.scheduler.fragmentation.losses import Asked
    from llmos_operator.scheduler.fragmentation.shapes import Bools, Floats, Ints
    from llmos_operator.scheduler.fragmentation.worth import Worth

    Rows = npt.NDArray[np.intp] | slice


class Holdings:
    """All nodes, one row each."""

    def __init__(self, worth: Worth, kind: Ints, cpu: Ints, free: Ints) -> None:
        """``kind`` and ``cpu`` (thousandths of a core) by row; ``free`` [rows, devices] as in `Stock.free`."""
        rows, width = free.shape
        self._worth = worth
        self._kind, self._free = kind, np.zeros_like(free)
        self._held = np.zeros((rows, len(worth.lambdas)))
        self._price = np.zeros(rows)  # of a thousandth of a core, at l*
        self._idle_at = np.zeros(rows, np.intp)  # place of (idle devices, l*) in the table of gangs
        self._breaks = np.zeros(rows)  # worth at l* of one idle device among the others
        self._full_at = np.zeros(rows, np.intp)  # place of (a whole device, l*) in the table of shares
        self._part_at = np.zeros(
            (width, rows), np.intp
        )  # place of (a free share, l*); its end: nothing free, or idle
        self._after: dict[tuple[int, ...], tuple[Floats, Floats]] = {}
        self.update(slice(None), cpu, free)

    def update(self, rows: Rows, cpu: Ints, free: Ints) -> None:
        """Take the free CPU and the free shares of rows that have changed."""
        worth = self._worth
        kind, prices = self._kind[rows], len(worth.lambdas)
        held = worth.bounds(kind, cpu, free)
        least = held.argmin(axis=1)
        idle = free == FULL
        count = idle.sum(axis=1)
        self._free[rows], self._held[rows] = free, held
        self._price[rows] = worth.lambdas[least] / CORE
        at = (kind * (worth.width + 1) + count) * prices + least
        self._idle_at[rows] = at
        self._breaks[rows] = np.where(count > 0, worth.gangs[at] - worth.gangs[at - prices], np.inf)
        level = kind * worth.levels
        self._full_at[rows] = (level + worth.levels - 1) * prices + least
        part = (level[:, None] + free // worth.unit) * prices + least[:, None]
        self._part_at[:, rows] = np.where((free > 0) & ~idle, part, len(worth.shares)).T

    def nodes(self, rows: Rows, usable: Bools) -> Nodes:
        """Return rows for `losses`, with the devices that may be chosen."""
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

"""Values of nodes at given prices: the best fill with what may still come.

    value(node) = min over l of  cpu x l + sum over shared devices of fill(free share, l) + gang(idle devices, l)

`l` is a price of CPU: for every l the right side bounds what the node can still hold from above (Lagrangian
relaxation of its CPU), so the least of them is the tightest. `fill` is an exact unbounded knapsack over the shares of
shared shapes, `gang` the same over the devices of whole ones, where a single device may also be filled with shares.
A shape brings its price less its CPU times l, or nothing. All tables are computed once per set of prices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.fragmentation.shapes import CORE, FULL, Floats, Ints, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

CPU_PRICES: Final = 24  # besides 0
_CHEAPEST, _DEAREST = 0.002, 1.0  # devices per core
_LEAST_UNIT: Final = 5  # thousandths: finer shares are rounded up to it, so that a table stays small


def cpu_prices(count: int = CPU_PRICES) -> Floats:
    """Return prices of a core in devices: 0 and a geometric row."""
    return np.concatenate([np.zeros(1), np.geomspace(_CHEAPEST, _DEAREST, count)])


def unit_of(shares: list[int]) -> int:
    """Return the largest unit, in thousandths, that measures all shares; at least the least unit."""
    return max(_LEAST_UNIT, int(np.gcd.reduce(np.array([*shares, FULL]))))


class Worth:
    """Tables of what shares of a device and idle devices are worth, by kind and price of CPU."""

    def __init__(
        self, prices: Mapping[Shape, float], kinds: int, width: int, lambdas: Floats | None = None
    ) -> None:
        """`prices` are in devices; `kinds` says how many kinds of devices there are, `width` how many a node may have."""
        self.lambdas = cpu_prices() if lambdas is None else lambdas
        self.width = width
        shared = sorted({s.share for s in prices if s.devices and not s.whole})
        self.unit = unit_of(shared)
        self.levels = FULL // self.unit + 1
        gains = self._gains(prices, kinds)
        self._share = self._fill(gains, kinds)
        self._gang = self._gangs(gains, kinds)

    def _gains(self, prices: Mapping[Shape, float], kinds: int) -> list[dict[tuple[int, int], Floats]]:
        """Return, for each kind, what the best shape of each size brings at each price of CPU."""
        found: list[dict[tuple[int, int], Floats]] = [{} for _ in range(kinds)]
        for shape, price in sorted(prices.items()):
            if not shape.devices or price <= 0:
                continue
            gain = np.maximum(price - self.lambdas * (shape.cpu / CORE), 0.0)
            if not shape.whole:
                gain /= shape.devices
            size = (1, -(-shape.share // self.unit)) if not shape.whole else (shape.devices, self.levels)
            for kind in range(kinds):
                if shape.takes(kind):
                    former = found[kind].get(size)
                    found[kind][size] = gain if former is None else np.maximum(former, gain)
        return found

    def _fill(self, gains: list[dict[tuple[int, int], Floats]], kinds: int) -> Floats:
        """Return what each free share is worth to shared work: [kind x level, price of CPU]."""
        levels = self.levels
        table = np.zeros((kinds, levels, len(self.lambdas)))
        for kind in range(kinds):
            sizes = [(level, gain) for (_, level), gain in gains[kind].items() if level < levels]
            if not sizes:
                continue
            mine = table[kind]
            steps = np.array([level for level, _ in sizes])
            gain = np.array([g for _, g in sizes])
            for level in range(1, levels):
                fits = steps <= level
                if fits.any():
                    np.maximum(
                        mine[level - 1], (mine[level - steps[fits]] + gain[fits]).max(axis=0), out=mine[level]
                    )
        return table.reshape(kinds * levels, -1)

    def _gangs(self, gains: list[dict[tuple[int, int], Floats]], kinds: int) -> Floats:
        """Return what a number of idle devices is worth: [kind x (width + 1), price of CPU]."""
        table = np.zeros((kinds, self.width + 1, len(self.lambdas)))
        for kind in range(kinds):
            alone = self._share[(kind + 1) * self.levels - 1]
            whole = [(count, gain) for (count, level), gain in gains[kind].items() if level == self.levels]
            for count in range(1, self.width + 1):
                best = table[kind, count - 1] + alone
                for size, gain in whole:
                    if size <= count:
                        best = np.maximum(best, table[kind, count - size] + gain)
                table[kind, count] = best
        return table.reshape(kinds * (self.width + 1), -1)

    @property
    def shares(self) -> Floats:
        """The table behind `share`, flat: kind, then level of free share, then price of CPU."""
        return self._share.ravel()

    @property
    def gangs(self) -> Floats:
        """The table behind `gang`, flat: kind, then idle devices (0 to `width`), then price of CPU."""
        return self._gang.ravel()

    def share(self, kind: Ints, free: Ints) -> Floats:
        """Return what free shares of devices are worth, for each price of CPU; a whole free device is not one of them."""
        found: Floats = self._share[kind * self.levels + free // self.unit]
        return found

    def gang(self, kind: Ints, idle: Ints) -> Floats:
        """Return what idle devices of one node are worth together, for each price of CPU."""
        found: Floats = self._gang[kind * (self.width + 1) + idle]
        return found

    def share_of(self, kind: int, free: int) -> Floats:
        """Return `share` of one device."""
        found: Floats = self._share[kind * self.levels + free // self.unit]
        return found

    def gang_of(self, kind: int, idle: int) -> Floats:
        """Return `gang` of one node."""
        found: Floats = self._gang[kind * (self.width + 1) + idle]
        return found

    def devices(self, kind: Ints, free: Ints) -> Floats:
        """Return what the devices of nodes are worth, for each price of CPU: [nodes, prices of CPU]."""
        idle = free == FULL
        held = self.gang(kind, idle.sum(axis=1))
        rows, columns = np.nonzero((free > 0) & ~idle)
        if rows.size:
            np.add.at(held, rows, self.share(kind[rows], free[rows, columns]))
        return held

    def bounds(self, kind: Ints, cpu: Ints, free: Ints) -> Floats:
        """Return what nodes can bring at each price of CPU: [nodes, prices of CPU]."""
        return self.devices(kind, free) + (cpu / CORE)[:, None] * self.lambdas

    def value(self, kind: Ints, cpu: Ints, free: Ints) -> Floats:
        """Return what nodes are worth, in devices."""
        found: Floats = self.bounds(kind, cpu, free).min(axis=1)
        return found

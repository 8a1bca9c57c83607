"""Makes prices: the mean over draws of an uncertain demand, with the tables made from them.

One set of prices comes from one draw and jumps from draw to draw; the mean of the last few does not. Solving takes a
tenth of a second and more, so it is done beside decisions, never in one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.fragmentation.demand import expected, frequent
from llmos_operator.scheduler.fragmentation.prices import Prices
from llmos_operator.scheduler.fragmentation.program import Patterns, price
from llmos_operator.scheduler.fragmentation.worth import Worth

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import DeviceKind
    from llmos_operator.scheduler.fragmentation.shapes import Mix, Shape, Stock

DRAWS: Final = 8  # draws a price is the mean of
_OUTDATED: Final = 2  # a draw is dropped once this many times as many requests are known
_SEED: Final = 5_2023


@dataclass(frozen=True, slots=True)
class Draw:
    """Prices for one draw of the demand, and how many requests were known then."""

    known: float
    of: dict[Shape, float]


@dataclass(slots=True)
class Pricer:
    """Makes prices, and remembers the draws and cutting patterns of earlier ones. The same calls give the same prices."""

    draws: int = DRAWS
    solved: int = 0  # draws so far, over all prices
    _history: list[Draw] = field(default_factory=list)
    _kinds: tuple[DeviceKind, ...] = ()
    _patterns: Patterns = field(default_factory=Patterns)

    def price(self, stock: Stock, mix: Mix, kinds: tuple[DeviceKind, ...], now: float) -> Prices | None:
        """Return prices for what is free and asked for now; None as long as nothing was ever asked for.

        The first call solves all draws, later ones one, and those that were made knowing less than half of the
        requests again. Raises NoSolution if the solver gives up.
        """
        known = float(sum(mix.values()))
        former = self._history if kinds == self._kinds else []
        self._kinds = kinds
        self._history = [draw for draw in former if draw.known * _OUTDATED > known][1 - self.draws :]
        mix = frequent(mix)
        while len(self._history) < self.draws:
            demand = expected(mix, stock.total(), np.random.default_rng([_SEED, self.solved]))
            if not demand:
                break
            self.solved += 1
            self._history.append(Draw(known, price(stock, demand, self._patterns)))
        if not self._history:
            return None
        shapes = sorted({shape for draw in self._history for shape in draw.of})
        mean = {
            shape: sum(d.of.get(shape, 0.0) for d in self._history) / len(self._history) for shape in shapes
        }
        return Prices(mean, kinds, Worth(mean, len(kinds) + 1, stock.free.shape[1]), now)


def priced(
    pricer: Pricer, stock: Stock, mix: Mix, kinds: tuple[DeviceKind, ...], now: float
) -> tuple[Pricer, Prices | None]:
    """Return the pricer after `Pricer.price` and its prices: for a worker process, which keeps nothing itself."""
    found = pricer.price(stock, mix, kinds, now)
    return pricer, found

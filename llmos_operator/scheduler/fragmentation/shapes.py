"""What the fragmentation value knows of requests and nodes: a few integers each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]

FULL: Final = 1000  # share of a whole device, in thousandths
ANY: Final = 0  # `Shape.kinds` of work that takes devices of every kind
CORE: Final = 1000  # thousandths of a core


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A kind of request: `devices` of which it takes `share` thousandths each, and `cpu` thousandths of a core.

    `kinds` is a bit mask over device kinds, ANY for all. A shared shape takes part of one device; several devices are
    taken whole.
    """

    devices: int
    share: int
    cpu: int
    kinds: int = ANY

    @property
    def whole(self) -> bool:
        """Whether it takes devices as a whole."""
        return self.devices > 0 and self.share >= FULL

    @property
    def amount(self) -> float:
        """Devices it takes, shared ones by their part."""
        return self.devices * self.share / FULL

    def takes(self, kind: int) -> bool:
        """Return whether devices of that kind will do."""
        return self.kinds == ANY or bool(self.kinds >> kind & 1)


@dataclass(frozen=True, slots=True)
class Stock:
    """What is free, one row a node: the kind of its devices, CPU in thousandths of a core, each device's free share.

    A share of FULL is an idle device; a column without a device holds 0.
    """

    kind: Ints
    cpu: Ints
    free: Ints  # [nodes, devices]

    def total(self) -> float:
        """Return how many devices' worth is free."""
        return float(self.free.sum()) / FULL


Mix: TypeAlias = Mapping[Shape, float]  # how often each shape comes, in any unit

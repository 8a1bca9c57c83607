"""What filters and scores may look at: the table, when nodes were last heard of, and the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from llmos_operator.scheduler.table import NEVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.table import Bools, NodeTable

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(slots=True)
class Scene:
    """One plan's surroundings. `heard` is the receive time of each row's last telemetry."""

    table: NodeTable
    policy: Policy
    now: float
    heard: Floats

    @classmethod
    def of(cls, table: NodeTable, policy: Policy, now: float, heard: Mapping[str, float]) -> Scene:
        """Return the scene of a table that has been synchronised."""
        times = np.fromiter((heard.get(name, NEVER) for name in table.names), np.float64, len(table.names))
        return cls(table, policy, now, times)


@dataclass(slots=True)
class Candidates:
    """Nodes under consideration, narrowed by one filter after another.

    `rows` are table rows; `devices[i]` are the devices of `rows[i]` that are still acceptable.
    """

    rows: npt.NDArray[np.intp] | slice
    devices: Bools

"""What filters and scores may look at: the table, when nodes were last heard of, and the policy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from llmos_operator.scheduler.power import RackRows, Racks
from llmos_operator.scheduler.table import NEVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.interference import Harm
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import Bools, Ints, NodeTable, Rows

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(slots=True)
class Scene:
    """One plan's surroundings. `heard` is the receive time of each row's last telemetry."""

    table: NodeTable
    policy: Policy
    now: float
    heard: Floats
    racks: RackRows | None = None  # those with a power budget
    harm: Harm | None = None  # where something was learned of interference

    @classmethod
    def of(cls, table: NodeTable, policy: Policy, now: float, heard: Mapping[str, float]) -> Scene:
        """Return the scene of a table that has been synchronised."""
        times = np.fromiter(map(heard.get, table.names, repeat(NEVER)), np.float64, len(table.names))
        table.mates = {}
        racks = Racks.among(table.states, policy.rack_label) if table.rack_budgets.any() else None
        return cls(table, policy, now, times, RackRows(racks, table) if racks and racks.of else None)

    def harm_of(self, request: Request, rows: Rows) -> Ints | None:
        """Return what is lost to interference where a request goes to each device of rows, None where nothing is known."""
        return self.harm.of(request, rows) if self.harm is not None else None

    def heard_lately(self, node: str) -> bool:
        """Return whether what is known of a node's devices is not stale."""
        row = self.table.row_of.get(node)
        return row is not None and bool(self.heard[row] >= self.now - self.policy.stale_seconds)


class Candidates:
    """Nodes under consideration, narrowed by one filter after another.

    `rows` are table rows; `devices[i]` are the devices of `rows[i]` that are still acceptable. What the table says of
    them is taken out of it once, with the first filter that asks.
    """

    __slots__ = ("_device", "_fixed", "_node", "_table", "devices", "rows")

    def __init__(self, table: NodeTable, rows: Rows, devices: Bools) -> None:
        self._table = table
        self.rows = rows
        self.devices = devices
        self._node: Ints | None = None
        self._device: Ints | None = None
        self._fixed: Ints | None = None

    @property
    def node(self) -> Ints:
        """`NodeTable.node` of the rows."""
        if self._node is None:
            self._node = self._table.node[:, self.rows]
        return self._node

    @property
    def device(self) -> Ints:
        """`NodeTable.device` of the rows."""
        if self._device is None:
            self._device = self._table.device[:, self.rows]
        return self._device

    @property
    def fixed(self) -> Ints:
        """`NodeTable.fixed` of the rows."""
        if self._fixed is None:
            self._fixed = self._table.fixed[:, self.rows]
        return self._fixed

    def enough(self, devices: int) -> Bools:
        """Return which of the rows have so many acceptable devices left."""
        found: Bools = self.devices.sum(axis=1) >= devices
        return found

"""Power budgets of nodes and racks: what is expected to be drawn there with one more pod stays within them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.power import NODE_LABEL, RACK_LABEL, asked, shortage, unreadable
from llmos_operator.scheduler.table import POWER

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class NodePower:
    """Turns away nodes whose power budget would be exceeded."""

    reason = "PowerBudgetExceeded"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools | None:
        """Return which candidates stay; all where no node has a budget."""
        if not scene.table.budgeted:
            return None
        within: Bools = asked(scene.table, request, candidates.rows) <= candidates.node[POWER]
        return within

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the smallest shortage, or what of a budget or a device cannot be read."""
        table = scene.table
        room, needed = table.node[POWER][rows], asked(table, request, rows)
        best = int((room - needed).argmax())
        state = table.states[int(rows[best])]
        return unreadable(state, NODE_LABEL) or shortage(
            state, int(room[best]), int(needed[best]), f"the power budget of {state.name}"
        )


class RackPower:
    """Turns away nodes in racks whose power budget would be exceeded."""

    reason = "RackPowerBudgetExceeded"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools | None:
        """Return which candidates stay; all where no rack has a budget."""
        if scene.racks is None:
            return None
        within: Bools = asked(scene.table, request, candidates.rows) <= scene.racks.room()[candidates.rows]
        return within

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the smallest shortage, or what of a budget or a device cannot be read."""
        if scene.racks is None:
            return ""
        table, racks = scene.table, scene.racks
        room, needed = racks.room()[rows], asked(table, request, rows)
        best = int((room - needed).argmax())
        row = int(rows[best])
        rack = racks.names[int(racks.number[row])]
        members = [table.states[table.row_of[name]] for name in racks.racks.members[rack]]
        wrong = next((text for one in members if (text := unreadable(one, RACK_LABEL))), "")
        silent = next((one for one in members if one.power_draw() is None), table.states[row])
        return wrong or shortage(
            silent, int(room[best]), int(needed[best]), f"the power budget of rack {rack}"
        )

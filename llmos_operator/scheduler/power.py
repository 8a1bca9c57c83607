"""What a request is expected to draw, and racks whose devices share a power budget.

A pod is judged by the hungriest device of a node, so that it does not depend on which of them it is given. What counts
afterwards is what its claim adds on the devices it got, which is no more. `state.power` has the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api import names
from llmos_operator.scheduler.table import LIMIT, PRODUCT
from llmos_operator.state import power
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import Ints, NodeTable, Rows
    from llmos_operator.state.ledger import NodeState

_MILLI: Final = 1000
NO_RACK: Final = -1


def asked(table: NodeTable, request: Request, rows: Rows) -> Ints:
    """Return the milliwatts one pod of a request would add on each of the rows."""
    limit = table.fixed[LIMIT][rows]
    idle = power.idle(limit)
    most = limit - idle
    added = -(-most * request.compute_milli // FULL_MILLI)
    if request.compute_milli == FULL_MILLI:
        for product, measured in request.draws:
            number = table.products.get(product, NO_RACK)
            added = np.where(table.fixed[PRODUCT][rows] == number, np.clip(measured - idle, 0, most), added)
    total: Ints = added.max(axis=1) * request.devices
    return total


def asked_on(state: NodeState, request: Request) -> int:
    """Return the same for one node, from the ledger's values."""
    known = dict(request.draws)
    return request.devices * max(
        (
            power.added(limit, request.compute_milli, known.get(one.device.product))
            for one in state.devices
            if (limit := one.device.limit_milliwatts) is not None
        ),
        default=0,
    )


def fits(state: NodeState, request: Request) -> bool:
    """Return whether the power budget of a node takes one more pod of a request."""
    if not request.devices:
        return True
    room = state.power_room()
    return room == power.NO_BUDGET or asked_on(state, request) <= room


@dataclass(frozen=True, slots=True)
class Racks:
    """Racks with a power budget: the least that the labels of their nodes say."""

    of: Mapping[str, str]  # node -> its rack, if that has a budget
    members: Mapping[str, tuple[str, ...]]
    budgets: Mapping[str, int]  # milliwatts

    @classmethod
    def among(cls, states: Iterable[NodeState], label: str) -> Racks:
        """Return the racks that `label` of nodes names and that have a budget."""
        members: dict[str, list[str]] = {}
        budgets: dict[str, int] = {}
        for state in states:
            rack = state.node.labels.get(label, "") if state.node is not None else ""
            if not rack or state.node is None:
                continue
            members.setdefault(rack, []).append(state.name)
            told = state.node.rack_milliwatts
            if told is not None:
                budgets[rack] = min(told, budgets.get(rack, told))
        found = {rack: tuple(members[rack]) for rack in sorted(budgets)}
        return cls({name: rack for rack, names in found.items() for name in names}, found, budgets)

    def room(self, node: str, draws: Mapping[str, int | None]) -> int:
        """Return the milliwatts the budget of a node's rack leaves; `draws` are those of its members."""
        rack = self.of.get(node)
        if rack is None:
            return power.NO_BUDGET
        found = [draws[name] for name in self.members[rack]]
        known = [one for one in found if one is not None]
        return power.room(self.budgets[rack], sum(known) if len(known) == len(found) else None)


class RackRows:
    """The racks of a table's rows, and what they leave as the table stands."""

    def __init__(self, racks: Racks, table: NodeTable) -> None:
        self.racks = racks
        self.names = tuple(racks.members)
        numbers = {rack: number for number, rack in enumerate(self.names)}
        self.number = np.array(
            [numbers.get(racks.of.get(name, ""), NO_RACK) for name in table.names], np.intp
        )
        self._table = table
        self._rows = tuple(
            tuple(table.row_of[name] for name in racks.members[rack] if name in table.row_of)
            for rack in self.names
        )
        table.mates = {row: rows for rows in self._rows for row in rows}
        self._draws = [state.power_draw() for state in table.states]
        self._seen = (table.generation, len(table.log))
        left = [self._left(number) for number in range(len(self.names))]
        self._room = np.array([*left, power.NO_BUDGET], np.int64)  # NO_RACK is the last

    def room(self) -> Ints:
        """Return the milliwatts that the rack of each row leaves."""
        table = self._table
        if self._seen != (table.generation, len(table.log)):
            changed = {row for row in table.log[self._seen[1] :] if self.number[row] != NO_RACK}
            for row in changed:
                self._draws[row] = table.states[row].power_draw()
            for number in {int(self.number[row]) for row in changed}:
                self._room[number] = self._left(number)
            self._seen = (table.generation, len(table.log))
        found: Ints = self._room[self.number]
        return found

    def _left(self, number: int) -> int:
        draws = [self._draws[row] for row in self._rows[number]]
        known = [one for one in draws if one is not None]
        budget = self.racks.budgets[self.names[number]]
        return power.room(budget, sum(known) if len(known) == len(draws) else None)


def shortage(state: NodeState, room: int, needed: int, what: str) -> str:
    """Return in words what is missing of a budget, `what` it is of."""
    silent = power.silent(state)
    if room == power.UNKNOWN:
        device = f"{silent.uuid} on {state.name}" if silent is not None else f"a device beside {state.name}"
        return f"{device} does not tell its power limit, so what {what} draws is not known"
    return f"{what} leaves {watts(room)} of the {watts(needed)} needed"


def unreadable(state: NodeState, label: str) -> str:
    """Return what is wrong with a node's budget label, "" if it can be read."""
    text = state.node.labels.get(label) if state.node is not None else None
    if text is None or power.is_watts(text):
        return ""
    return f"label {label} of {state.name} is {text!r}: give whole watts, such as 5600"


def watts(milliwatts: int) -> str:
    """Return an amount in words, in whole watts rounded down."""
    return f"{milliwatts // _MILLI} W"


NODE_LABEL: Final = names.LABEL_POWER_BUDGET
RACK_LABEL: Final = names.LABEL_RACK_POWER_BUDGET

"""What nodes and racks with a power budget may draw, are expected to draw, and do draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.scheduler.power import Racks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Budget:
    """A node or rack with a power budget. Milliwatts; None: a device does not tell."""

    level: str  # "node" or "rack"
    name: str
    budget: int
    expected: int | None  # with everything at work that is placed there
    drawn: int | None  # by the devices' own word


def budgets(snapshot: Snapshot, rack_label: str, draw: Callable[[str], int | None]) -> list[Budget]:
    """Return every budget, racks first, by name. ``draw`` returns what a device draws now, by UUID, None if it does not tell."""
    racks = Racks.among(snapshot.nodes.values(), rack_label)
    found = []
    for rack, members in racks.members.items():
        states = [snapshot.nodes[name] for name in members]
        expected, drawn = (
            _sum(state.power_draw() for state in states),
            _sum(_drawn(s, draw) for s in states),
        )
        found.append(Budget("rack", rack, racks.budgets[rack], expected, drawn))
    for name, state in sorted(snapshot.nodes.items()):
        if state.node is not None and state.node.power_milliwatts is not None:
            found.append(
                Budget("node", name, state.node.power_milliwatts, state.power_draw(), _drawn(state, draw))
            )
    return found


def _drawn(state: NodeState, draw: Callable[[str], int | None]) -> int | None:
    return _sum(draw(one.uuid) for one in state.devices)


def _sum(amounts: Iterable[int | None]) -> int | None:
    found = list(amounts)
    known = [one for one in found if one is not None]
    return sum(known) if len(known) == len(found) else None

"""Domains of the cluster: which nodes, or which devices of a node, lie together at a level of the topology.

Levels from tight to wide: `nvlink`, `pcie` and `numa` group the devices of one node by the links its agent reports;
`node`; then the levels an administrator maps to node labels (`Policy.topology_labels`: rack, block and zone). A node
without the label of a level lies in no domain of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import Workload

NODE: Final = "node"
LEVELS: Final = ("nvlink", "pcie", "numa", NODE, "rack", "block", "zone")  # from tight to wide
INSIDE: Final = frozenset({"nvlink", "pcie", "numa"})
# Links that keep two devices in one domain. A tighter link holds at a wider level, too.
_JOINING: Final = {
    "nvlink": frozenset({"NVLink"}),
    "pcie": frozenset({"NVLink", "PCIeSwitch"}),
    "numa": frozenset({"NVLink", "PCIeSwitch", "PCIeHost", "NUMA"}),
}


@dataclass(frozen=True, slots=True)
class Domain:
    """A part of the cluster. `rows` are rows of the table in order; `columns` its devices, None for all of them."""

    name: str
    rows: tuple[int, ...]
    columns: Bools | None = None  # of the one row

    def usable(self, acceptable: Bools) -> Bools:
        """Return which of a row's acceptable devices lie in the domain."""
        return acceptable if self.columns is None else acceptable & self.columns


@dataclass(frozen=True, slots=True)
class Spot:
    """The row one pod goes to, and the domain it has to stay in."""

    row: int
    domain: Domain


def matters(workload: Workload) -> bool:
    """Return whether a topology is asked for that a single pod on any node does not keep by itself."""
    asked = (workload.topology.required, workload.topology.preferred)
    if workload.members > 1:
        return any(asked)
    return workload.accelerators > 1 and any(level in INSIDE for level in asked)


def width(level: str) -> int:
    """Return a number that grows with the width of a level; the whole cluster ("") is the widest."""
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


class Map:
    """The domains of one scene, found when first asked for."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._domains: dict[str, tuple[Domain, ...]] = {}
        self._by_row: dict[str, dict[int, list[Domain]]] = {}
        self._version = scene.table.static_version

    def domains(self, level: str) -> tuple[Domain, ...]:
        """Return the domains of a level in order of name; the whole cluster for level ""."""
        if self._version != self._scene.table.static_version:
            self._domains.clear()
            self._version = self._scene.table.static_version
        found = self._domains.get(level)
        if found is None:
            found = self._domains[level] = self._find(level)
            if level in INSIDE:
                by_row = self._by_row[level] = {}
                for domain in found:
                    by_row.setdefault(domain.rows[0], []).append(domain)
        return found

    def on_row(self, level: str, row: int) -> list[Domain]:
        """Return the domains of a level inside one node."""
        self.domains(level)
        return self._by_row[level].get(row, [])

    def _find(self, level: str) -> tuple[Domain, ...]:
        table = self._scene.table
        if not level:
            return (Domain("cluster", tuple(range(len(table)))),)
        if level == NODE:
            return tuple(Domain(name, (row,)) for row, name in enumerate(table.names))
        if level in INSIDE:
            return tuple(
                domain for row, state in enumerate(table.states) for domain in self._inside(level, row, state)
            )
        rows: dict[str, list[int]] = {}
        key = self._scene.policy.topology_labels.get(level, "")
        for row, state in enumerate(table.states):
            value = state.node.labels.get(key) if state.node is not None else None
            if value:
                rows.setdefault(value, []).append(row)
        return tuple(Domain(name, tuple(rows[name])) for name in sorted(rows))

    def _inside(self, level: str, row: int, state: NodeState) -> Iterable[Domain]:
        if not state.devices:
            yield Domain(state.name, (row,))  # a node without devices is as close as can be
        for number, island in enumerate(islands(state.devices, level)):
            columns = np.zeros(self._scene.table.width, np.bool_)
            columns[list(island)] = True
            yield Domain(f"{state.name}/{level}-{number}", (row,), columns)


def islands(devices: Sequence[DeviceState], level: str) -> list[tuple[int, ...]]:
    """Return the places of devices that hang together at a level inside a node, by first place.

    At level numa devices whose NUMA node is known are grouped by it. A device that reports no link is alone.
    """
    place = {one.device.uuid: i for i, one in enumerate(devices)}
    group = list(range(len(devices)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        group[high] = low

    first_on: dict[int, int] = {}
    for i, one in enumerate(devices):
        numa = one.device.numa
        if level == "numa" and numa is not None and numa >= 0:
            join(first_on.setdefault(numa, i), i)
            continue
        for link in one.device.links:
            if link.kind in _JOINING[level] and link.uuid in place:
                join(i, place[link.uuid])
    found: dict[int, list[int]] = {}
    for i in range(len(devices)):
        found.setdefault(root(i), []).append(i)
    return [tuple(found[first]) for first in sorted(found)]


def allot(
    rows: Sequence[int],
    capacity: Mapping[int, int],
    waste: Ints,
    groups: Sequence[Sequence[int]],
    needed: int,
) -> list[tuple[int, int]]:
    """Return (row, pods) that hold `needed` pods on few groups and few nodes; `capacity` must suffice.

    While some group (then some node of it) can take all that is left, the one with the least capacity is taken, so that
    larger ones stay whole; else the largest. This is how Kueue's topology aware scheduling orders domains (KEP-2724,
    "BestFit"). Of equals the least waste wins, then the first row.
    """
    wanted = set(rows)
    rest = [[row for row in group if row in wanted] for group in groups]
    listed = {row for group in rest for row in group}
    rest.append([row for row in rows if row not in listed])
    found: list[tuple[int, int]] = []
    for group in _in_turn([(sum(capacity[r] for r in g), 0, g) for g in rest if g], needed):
        nodes = [(capacity[row], int(waste[row]), [row]) for row in group if capacity[row] > 0]
        for (row,) in _in_turn(nodes, needed):
            taken = min(needed, capacity[row])
            found.append((row, taken))
            needed -= taken
        if not needed:
            break
    return found


def _in_turn(parts: list[tuple[int, int, list[int]]], needed: int) -> Iterable[list[int]]:
    """Yield the rows of (capacity, waste, rows) in the order in which they are filled, until `needed` is reached."""
    while parts and needed > 0:
        enough = [part for part in parts if part[0] >= needed]
        chosen = min(enough) if enough else min(parts, key=lambda part: (-part[0], part[1:]))
        parts.remove(chosen)
        needed -= chosen[0]
        yield chosen[2]

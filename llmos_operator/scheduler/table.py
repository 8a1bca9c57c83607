"""Nodes and devices as arrays, so that a filter looks at all of them at once.

Rows are nodes in name order (the fixed order in which equal scores break), columns are devices in index order. Exact:
all amounts are int64 bytes or thousandths. The table follows a view: `sync` compares values by identity and rewrites
only rows whose value is another one, so a table kept between cycles costs what has changed.
"""

from __future__ import annotations

from itertools import compress
from operator import is_not
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from llmos_operator.api.telemetry import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmos_operator.api.mig import MigProfile
    from llmos_operator.state.ledger import DeviceState, NodeState

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.intp] | slice

ALL: Final = slice(None)
NEVER: Final = float("-inf")

# Planes of `node` (what is free on a node) and of `device` (what is free on a device).
CPU, MEMORY, PODS, GPUS, POWER = range(5)
# EXCESS: observed beyond reserved, STRANGE: used by nobody known, both in bytes.
# ENTRY: whether shared work may be planned on it, as DeviceState.entry.
FREE_BYTES, FREE_MILLI, IDLE, DOMAIN, EXCESS, CLAIMS, STRANGE, ENTRY = range(8)
# Planes of `fixed` (what a device is).
# LIMIT: power limit in milliwatts, 0 where a device does not tell. PART: thousandths of a GPU. PROFILE: of a MIG instance, 0 unknown.
CAPACITY, CAPABILITY, PRODUCT, INDEX, LIMIT, PART, PROFILE = range(7)
_CAPABILITY_BASE = 1000


def capability_number(capability: tuple[int, int]) -> int:
    """Return a compute capability as one number that compares in the right order."""
    return capability[0] * _CAPABILITY_BASE + capability[1]


class NodeTable:
    """A cache for `cycle.plan`; it holds no decision."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.row_of: dict[str, int] = {}
        self.states: list[NodeState] = []
        self.log: list[int] = []  # rows in the order in which they were rewritten since the last rebuild
        self.generation = 0  # grows with every rebuild
        self.static_version = 0  # grows when anything but free amounts changed
        # Rows that share a power budget with a row, itself included.
        self.mates: Mapping[int, Sequence[int]] = {}
        self.budgeted: set[int] = set()  # rows with a power budget of their own
        self.strained: set[int] = set()  # rows with a strained device
        self.tainted: set[int] = set()  # rows with taints
        self.plugged: set[int] = (
            set()
        )  # rows whose devices have to be taken before work shares them, or cannot be
        self._products: dict[str, int] = {}
        self._profiles: dict[MigProfile | None, int] = {None: 0}
        self._domains: dict[str, int] = {"": 0}
        self._without_copy: dict[str, Ints] = {}
        self._allocate(0, 1)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        """Columns: the most devices any node has."""
        return int(self.exists.shape[1])

    @property
    def products(self) -> Mapping[str, int]:
        """Product names and their numbers."""
        return self._products

    @property
    def profiles(self) -> Mapping[MigProfile | None, int]:
        """MIG profiles and their numbers; None stands for those that are not known."""
        return self._profiles

    def domain_number(self, domain: str) -> int:
        """Return the number that stands for a sharing domain."""
        return self._domains.setdefault(domain, len(self._domains))

    def without_copy(self, model: str) -> Ints:
        """Return 1 for each row whose node has no copy of a model, else 0; kept as long as the fixed part stays the same."""
        found = self._without_copy.get(model)
        if found is None:
            lacks = (state.gpu is None or model not in state.gpu.models for state in self.states)
            found = self._without_copy[model] = np.fromiter(lacks, np.int64, len(self.states))
        return found

    def changed_since(self, seen: int) -> Rows:
        """Return the rows rewritten since the log was `seen` long; a single one as a slice, which numpy reads fastest."""
        if len(self.log) == seen + 1:
            return slice(self.log[seen], self.log[seen] + 1)
        return np.unique(np.array(self.log[seen:], np.intp))

    def sync(self, nodes: Mapping[str, NodeState]) -> None:
        """Make the table equal to `nodes`."""
        if nodes.keys() != self.row_of.keys():
            self._rebuild(nodes)
            return
        states = [nodes[name] for name in self.names]
        changed = list(compress(range(len(states)), map(is_not, states, self.states)))
        if any(len(states[row].devices) > self.width for row in changed):
            self._rebuild(nodes)
            return
        for row in changed:
            self.write(row, states[row])

    def write(self, row: int, state: NodeState) -> None:
        """Rewrite one row."""
        former = self.states[row]
        same_devices = len(former.devices) == len(state.devices) and (
            former.observed is state.observed and former.gpu is state.gpu
        )
        if former.node is not state.node or not same_devices:
            self._write_fixed(row, state)
            self.static_version += 1
            self._without_copy.clear()
            self._write_free(row, state)
        else:
            self._write_host(row, state)
            for column, device in enumerate(state.devices):
                if device is not former.devices[column]:  # values: what is the same object has not changed
                    self.device[:, row, column] = self._free_of(device)
        self.states[row] = state
        self.log.append(row)
        if row in self.mates and former.power_draw() != state.power_draw():
            self.log.extend(mate for mate in self.mates[row] if mate != row)

    def _rebuild(self, nodes: Mapping[str, NodeState]) -> None:
        self.names = sorted(nodes)
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self.states = [nodes[name] for name in self.names]
        self._allocate(len(self.names), max([1, *(len(s.devices) for s in self.states)]))
        for row, state in enumerate(self.states):
            self._write_fixed(row, state)
            self._write_free(row, state)
        self._without_copy.clear()
        self.log, self.mates = [], {}
        self.generation += 1
        self.static_version += 1

    def _allocate(self, rows: int, width: int) -> None:
        self.node: Ints = np.zeros((5, rows), np.int64)
        self.device: Ints = np.zeros((8, rows, width), np.int64)
        self.fixed: Ints = np.zeros((7, rows, width), np.int64)
        self.schedulable: Bools = np.zeros(rows, np.bool_)
        self.budgeted.clear()
        self.strained.clear()
        self.tainted.clear()
        self.plugged.clear()
        self.rack_budgets: Bools = np.zeros(rows, np.bool_)  # nodes that tell one of their rack
        self.exists: Bools = np.zeros((rows, width), np.bool_)
        self.mig: Bools = np.zeros((rows, width), np.bool_)
        self.healthy: Bools = np.zeros((rows, width), np.bool_)
        self.degraded: Bools = np.zeros((rows, width), np.bool_)
        self.strain: Ints = np.zeros((rows, width), np.int64)  # thousandths
        self.device_count: Ints = np.zeros(rows, np.int64)

    def _write_fixed(self, row: int, state: NodeState) -> None:
        node, devices = state.node, state.devices
        self.schedulable[row] = node is not None and node.ready and not node.unschedulable
        _note(self.budgeted, row, present=node is not None and node.power_milliwatts is not None)
        _note(self.tainted, row, present=node is not None and bool(node.taints))
        _note(self.plugged, row, present=state.plugged or state.claims_devices)
        _note(self.strained, row, present=any(d.strain_milli for d in devices))
        self.rack_budgets[row] = node is not None and node.rack_milliwatts is not None
        count = len(devices)
        self.device_count[row] = count
        for plane in (self.exists, self.mig, self.healthy, self.degraded):
            plane[row] = False
        self.strain[row] = 0
        self.fixed[:, row] = 0
        if not count:
            return
        self.exists[row, :count] = True
        self.mig[row, :count] = [d.device.mig for d in devices]
        self.healthy[row, :count] = [d.usable for d in devices]
        self.degraded[row, :count] = [d.verdict is Verdict.DEGRADED for d in devices]
        self.strain[row, :count] = [d.strain_milli for d in devices]
        self.fixed[:, row, :count] = np.array([self._fixed_of(d) for d in devices], np.int64).T

    def _fixed_of(self, state: DeviceState) -> tuple[int, int, int, int, int, int, int]:
        device = state.device
        product = self._products.setdefault(device.product, len(self._products))
        capability, limit = capability_number(device.compute_capability), device.limit_milliwatts or 0
        profile = self._profiles.setdefault(device.profile, len(self._profiles))
        return device.memory_bytes, capability, product, device.index, limit, device.part_milli, profile

    def _write_free(self, row: int, state: NodeState) -> None:
        self._write_host(row, state)
        self.device[:, row] = 0
        for column, device in enumerate(state.devices):
            self.device[:, row, column] = self._free_of(device)

    def _write_host(self, row: int, state: NodeState) -> None:
        node = state.node
        if node is None:
            self.node[:, row] = 0
        else:
            self.node[:, row] = (
                node.cpu_milli - state.cpu_milli,
                node.memory_bytes - state.memory_bytes,
                node.pods - state.pod_count,
                state.free_gpus(),
                state.power_room(),
            )

    def _free_of(self, state: DeviceState) -> tuple[int, int, int, int, int, int, int, int]:
        return (
            state.headroom_bytes(),
            state.headroom_milli(),
            int(state.idle),
            self.domain_number(state.domain),
            max(0, (state.observed_bytes or 0) - state.reserved_bytes),
            state.claims,
            state.strange_bytes,
            state.entry,
        )


def _note(rows: set[int], row: int, *, present: bool) -> None:
    if present:
        rows.add(row)
    else:
        rows.discard(row)

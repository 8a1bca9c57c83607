"""How many pods of one request each node could take: now, once those have left who are leaving, and if it were empty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.scheduler.feasibility import matching_devices
from llmos_operator.scheduler.placement import device_fits, host_fits, obtainable
from llmos_operator.scheduler.power import asked, asked_on
from llmos_operator.scheduler.table import (
    ALL,
    CAPACITY,
    CPU,
    FREE_BYTES,
    FREE_MILLI,
    GPUS,
    MEMORY,
    PODS,
    POWER,
)
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    import numpy.typing as npt

    from llmos_operator.scheduler.feasibility import Feasibility
    from llmos_operator.scheduler.power import RackRows
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.scheduler.topology import Domain
    from llmos_operator.scheduler.world import World, Worlds
    from llmos_operator.state.ledger import DeviceState, NodeState

_ANY = 1 << 30  # pods: more than a rack takes


@dataclass(slots=True)
class Room:
    """For every row how many pods its host could take, and for every device how many parts of that size."""

    request: Request
    host: Ints  # rows
    slots: Ints  # rows x columns
    racks: RackRows | None = None  # those with a power budget
    rack_pods: tuple[int, ...] = ()  # how many pods each of them could take

    def pods(self, domain: Domain) -> Ints:
        """Return how many pods each row of a domain could take."""
        rows = np.array(domain.rows, np.intp)
        host = self.host[rows]
        if not self.request.devices:
            return host
        slots = self.slots[rows] if domain.columns is None else self.slots[rows] * domain.columns
        fit: Ints = np.minimum(slots.sum(axis=1) // self.request.devices, host)
        return self._within_racks(rows, fit)

    def _within_racks(self, rows: npt.NDArray[np.intp], fit: Ints) -> Ints:
        """Return how many pods rows take so that no rack goes beyond its power budget; where most fit they stay."""
        for number, most in enumerate(self.rack_pods if self.racks is not None else ()):
            left = most
            members = np.flatnonzero(self.racks.number[rows] == number) if self.racks is not None else ()
            for at in sorted(members, key=lambda at: (-int(fit[at]), int(at))):
                fit[at] = min(int(fit[at]), left)
                left -= int(fit[at])
        return fit

    def total(self, domain: Domain) -> int:
        """Return how many pods a domain could take."""
        return int(self.pods(domain).sum())


def room_now(scene: Scene, feasibility: Feasibility, worlds: Worlds, request: Request) -> Room:
    """Return the room that is there now and that nobody waits for."""
    room = _of_table(scene, feasibility, request)
    acceptable = feasibility.acceptable(request)
    for name in worlds.differing:
        row = scene.table.row_of[name]
        host, slots = _of_state(worlds.later.node(name), request, acceptable.devices[row], scene)
        room.host[row] = min(int(room.host[row]), host)
        room.slots[row] = np.minimum(room.slots[row], slots)
    return _with_racks(room, scene, worlds.now, worlds.later)


def room_later(
    scene: Scene, feasibility: Feasibility, worlds: Worlds, request: Request, *, measured: bool = True
) -> Room:
    """Return the room that will be there; without `measured` the ledger alone says what is free."""
    room = _of_table(scene, feasibility, request)
    acceptable = feasibility.acceptable(request)
    names = worlds.differing if measured else [scene.table.names[r] for r in np.flatnonzero(acceptable.nodes)]
    for name in names:
        row = scene.table.row_of[name]
        room.host[row], room.slots[row] = 0, 0
        if acceptable.nodes[row]:
            state = worlds.later.node(name)
            state = state if measured else unobserved(state)
            room.host[row], room.slots[row] = _of_state(state, request, acceptable.devices[row], scene)
    return _with_racks(room, scene, worlds.later)


def _with_racks(room: Room, scene: Scene, *worlds: World) -> Room:
    """Tell a room what racks with a power budget could take in all of the worlds."""
    if scene.racks is None or not room.request.devices:
        return room
    racks, draws = scene.racks, asked(scene.table, room.request, ALL)
    found = []
    for number, rack in enumerate(racks.names):
        draw = int(draws[racks.number == number].max(initial=0))
        left = min(world.rack_room(racks.racks.members[rack][0]) for world in worlds)
        found.append(max(0, left // draw) if draw else _ANY)
    room.racks, room.rack_pods = scene.racks, tuple(found)
    return room


def room_if_empty(scene: Scene, request: Request) -> Room:
    """Return the room there would be if nothing ran at all, on nodes of any condition."""
    table = scene.table
    host = np.array([_host_if_empty(state, request) for state in table.states], np.int64)
    large = matching_devices(scene, request) & (table.fixed[CAPACITY] >= request.bytes_per_device)
    return Room(request, host, large * _parts(request, table.fixed[CAPACITY], np.int64(FULL_MILLI)))


def _host_if_empty(state: NodeState, request: Request) -> int:
    node = state.node
    if node is None:
        return 0
    found = [node.pods]
    for whole, amount in (
        (node.cpu_milli, request.cpu_milli),
        (node.memory_bytes, request.memory_bytes),
        (state.whole_units, request.plugin_gpus),
    ):
        if amount:
            found.append(whole // amount)
    return min(found)


def unobserved(state: NodeState) -> NodeState:
    """Return a node as its reservations alone say."""
    return replace(state, devices=tuple(replace(d, observed_bytes=None) for d in state.devices))


def _of_table(scene: Scene, feasibility: Feasibility, request: Request) -> Room:
    fits, candidates = feasibility.check(request, ALL)
    table = scene.table
    host = table.node[PODS].copy()
    for plane, amount in (
        (CPU, request.cpu_milli),
        (MEMORY, request.memory_bytes),
        (GPUS, request.plugin_gpus),
    ):
        if amount:
            np.minimum(host, table.node[plane] // amount, out=host)
    if table.budgeted and request.devices:
        np.minimum(host, table.node[POWER] // asked(table, request, ALL).clip(1), out=host)
    slots = candidates.devices * _parts(request, table.device[FREE_BYTES], table.device[FREE_MILLI])
    return Room(request, np.where(fits, host.clip(0), 0), slots)


def _of_state(state: NodeState, request: Request, acceptable: Bools, scene: Scene) -> tuple[int, Ints]:
    """Return (pods the host can take, parts of each device) of one node, from exact values."""
    slots = np.zeros(scene.table.width, np.int64)
    if not host_fits(state, request) or state.node is None:
        return 0, slots
    for column, device in enumerate(state.devices):
        fits = acceptable[column] and device_fits(device, request, scene.policy.overuse_percent)
        if fits and obtainable(state, device, request):
            slots[column] = _parts_of(device, request)
    node = state.node
    free = [node.pods - state.pod_count]
    for left, amount in (
        (node.cpu_milli - state.cpu_milli, request.cpu_milli),
        (node.memory_bytes - state.memory_bytes, request.memory_bytes),
        (state.free_gpus(), request.plugin_gpus),
        (state.power_room(), asked_on(state, request)),
    ):
        if amount:
            free.append(left // amount)
    return max(0, min(free)), slots


def _parts(request: Request, free_bytes: Ints, free_milli: Ints | np.int64) -> Ints:
    if request.whole:
        return np.ones(free_bytes.shape, np.int64)
    by_memory = free_bytes // max(1, request.bytes_per_device)
    parts: Ints = np.minimum(by_memory, free_milli // max(1, request.compute_milli)).clip(0)
    return parts


def _parts_of(device: DeviceState, request: Request) -> int:
    if request.whole:
        return 1
    by_memory = device.headroom_bytes() // max(1, request.bytes_per_device)
    return min(by_memory, device.headroom_milli() // max(1, request.compute_milli))

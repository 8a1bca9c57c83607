"""What a DRA driver publishes of a node, and which claims have its devices (resource.k8s.io/v1).

A ResourceSlice names devices by pool and name; our devices have UUIDs, which NVIDIA's driver publishes as an attribute. A
ResourceClaim with an allocation has devices by those names, whoever wrote it. Devices that take from the same counter set (a
GPU and the instances it could be cut into) exclude each other: one claim has all of them.
https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DRIVER: Final = "gpu.nvidia.com"


@dataclass(frozen=True, slots=True)
class Handle:
    """The name of a device among all that drivers publish."""

    driver: str
    pool: str
    device: str


@dataclass(frozen=True, slots=True)
class SliceDevice:
    """One device of a slice."""

    name: str
    uuid: str = ""  # "" where the driver does not tell, as of MIG instances that are not cut yet
    counter_sets: frozenset[str] = frozenset()  # of its pool, from which it takes
    reserved: bool = False  # tainted, given to several claims at once, or ready only under conditions


@dataclass(frozen=True, slots=True)
class Slice:
    """A ResourceSlice with devices of one node."""

    name: str
    node: str
    pool: str
    driver: str = DRIVER
    generation: int = 0
    devices: tuple[SliceDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class Allocation:
    """The devices a ResourceClaim has, () before it is allocated."""

    key: str  # "namespace/name"
    handles: tuple[Handle, ...] = ()
    pod: str = ""  # "namespace/name" of the pod the operator made it for; "": it is not the operator's
    users: tuple[str, ...] = ()  # of the operator's: UIDs of the pods it is reserved for


@dataclass(frozen=True, slots=True)
class Published:
    """All that is published of one node."""

    handles: Mapping[str, Handle] = field(default_factory=dict)  # by UUID
    overlaps: Mapping[Handle, frozenset[Handle]] = field(default_factory=dict)  # itself included
    plain: frozenset[Handle] = frozenset()  # that a claim has alone, and that nothing else excludes


def published(slices: Iterable[Slice]) -> Published:
    """Return what the slices of a node say. Of each pool only its newest generation counts."""
    pools: defaultdict[tuple[str, str], list[Slice]] = defaultdict(list)
    for one in slices:
        pools[one.driver, one.pool].append(one)
    handles: dict[str, Handle] = {}
    overlaps: dict[Handle, frozenset[Handle]] = {}
    plain: set[Handle] = set()
    for (driver, pool), found in pools.items():
        newest = max(one.generation for one in found)
        current = [one for one in found if one.generation == newest]
        devices = {device.name: device for one in current for device in one.devices}
        sharing: defaultdict[str, set[Handle]] = defaultdict(set)
        for device in devices.values():
            handle = Handle(driver, pool, device.name)
            for counters in device.counter_sets:
                sharing[counters].add(handle)
            if device.uuid:
                handles[device.uuid] = handle
        for device in devices.values():
            handle = Handle(driver, pool, device.name)
            others = (sharing[counters] for counters in device.counter_sets)
            overlaps[handle] = frozenset({handle}).union(*others)
            if len(overlaps[handle]) == 1 and not device.reserved:
                plain.add(handle)
    return Published(handles, overlaps, frozenset(plain))


def takers(handle: Handle, told: Published, allocations: Iterable[Allocation]) -> tuple[str, ...]:
    """Return the keys of the claims that have a device, or one that excludes it, sorted."""
    wanted = told.overlaps.get(handle, frozenset({handle}))
    return tuple(sorted(one.key for one in allocations if not wanted.isdisjoint(one.handles)))

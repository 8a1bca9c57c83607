"""The part of the store that knows ResourceSlices and ResourceClaims, and says which nodes they concern."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.state.slices import published, takers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.state.slices import Allocation, Handle, Published, Slice
    from llmos_operator.state.types import Device, GpuNode

_Pool = tuple[str, str]  # driver, pool


class SliceBook:
    """Slices by name, claims by key. Methods that take a value say by their result whether a node's devices changed."""

    def __init__(self) -> None:
        super().__init__()
        self._slices: dict[str, Slice] = {}
        self._published: dict[str, Published] = {}  # by node
        self._pool_node: dict[_Pool, str] = {}
        self._allocations: dict[str, Allocation] = {}
        self._own: set[str] = set()  # keys of claims that the operator made
        self._claims_devices = False  # whether it makes any
        self._in_pool: defaultdict[_Pool, dict[str, Allocation]] = defaultdict(dict)

    def allocation(self, key: str) -> Allocation | None:
        """Return what a ResourceClaim has, None if there is none of that key."""
        return self._allocations.get(key)

    def own_allocations(self) -> list[Allocation]:
        """Return what the ResourceClaims have that the operator made, by key."""
        return [self._allocations[key] for key in sorted(self._own)]

    def published_nodes(self) -> list[str]:
        """Return the names of the nodes with slices."""
        return sorted(self._published)

    def handle(self, node: str, uuid: str) -> Handle | None:
        """Return the name under which a device may be claimed, None where it may not."""
        told = self._published.get(node)
        handle = told.handles.get(uuid) if told is not None else None
        return handle if told is not None and handle in told.plain else None

    def takers(self, node: str, uuids: Iterable[str]) -> set[str]:
        """Return the keys of all ResourceClaims that have one of these devices, or what excludes it."""
        told = self._published.get(node)
        handles = (told.handles.get(uuid) for uuid in uuids) if told is not None else ()
        return {
            key
            for handle in handles
            if told is not None and handle is not None
            for key in takers(handle, told, self._in_pool[handle.driver, handle.pool].values())
        }

    def apply_slice(self, one: Slice) -> bool:
        """Take a slice of a node's devices."""
        old = self._slices.get(one.name)
        if old == one:
            return False
        self._slices[one.name] = one
        return self._renew({one.node, *([old.node] if old is not None else ())})

    def delete_slice(self, name: str) -> bool:
        """Forget a slice."""
        old = self._slices.pop(name, None)
        return old is not None and self._renew({old.node})

    def apply_allocation(self, one: Allocation) -> bool:
        """Take the devices of a claim as they are now."""
        old = self._allocations.get(one.key)
        if old == one:
            return False
        self._drop_allocation(one.key)
        self._allocations[one.key] = one
        if one.pod:
            self._own.add(one.key)
        for handle in one.handles:
            self._in_pool[handle.driver, handle.pool][one.key] = one
        return self._retell(old, one)

    def delete_allocation(self, key: str) -> bool:
        """Forget a claim: it has no devices any more."""
        old = self._drop_allocation(key)
        return old is not None and self._retell(old)

    def _drop_allocation(self, key: str) -> Allocation | None:
        old = self._allocations.pop(key, None)
        self._own.discard(key)
        for handle in old.handles if old is not None else ():
            self._in_pool[handle.driver, handle.pool].pop(key, None)
        return old

    def _retell(self, *changed: Allocation | None) -> bool:
        handles = [handle for one in changed if one is not None for handle in one.handles]
        nodes = {self._pool_node.get((handle.driver, handle.pool), "") for handle in handles}
        return self._tell(nodes - {""})

    def _renew(self, nodes: set[str]) -> bool:
        """Read the slices of some nodes again."""
        for node in nodes:
            found = [one for one in self._slices.values() if one.node == node]
            if found:
                self._published[node] = published(found)
            else:
                self._published.pop(node, None)
        self._pool_node = {(one.driver, one.pool): one.node for one in self._slices.values()}
        return self._tell(nodes)

    def _tell(self, nodes: set[str]) -> bool:
        changed = [node for node in sorted(nodes) if self._claims_told(node)]
        return bool(changed)

    def _claims_told(self, node: str) -> bool:  # noqa: ARG002 - who keeps nodes says whether that changed one
        """Take note that what is published of a node, or who has it, is different now."""
        return False

    def _with_claims(self, gpu: GpuNode) -> GpuNode:
        """Return a node with its devices as the slices and claims say, itself where no slice names one of them."""
        told = self._published.get(gpu.name)
        if told is None or not any(one.uuid in told.handles for one in gpu.devices):
            return gpu
        return replace(gpu, devices=tuple(self._with_handle(one, told) for one in gpu.devices))

    def _with_handle(self, device: Device, told: Published) -> Device:
        handle = told.handles.get(device.uuid)
        if handle is None:
            return device
        claims = self._in_pool[handle.driver, handle.pool].values()
        claimable = self._claims_devices and handle in told.plain
        return replace(device, published=True, claimed_by=takers(handle, told, claims), claimable=claimable)

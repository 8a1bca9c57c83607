"""What a node has, what its pods asked for, and whether one more fits. Pure.

Source: Kubernetes docs "Resource Management for Pods"; KEP-753 for the sum over sidecars; kubelet 1.36 for the reasons
(`OutOfcpu`, `OutOfmemory`, `OutOfpods`, `UnexpectedAdmissionError` from the device manager).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.api.names import ENV_DEVICES
from llmos_operator.api.quantity import parse_bytes, parse_milli

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmos_operator.local.kubelet.model import Json

Amounts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a node refuses a pod: `reason` and `message` of its status."""

    reason: str
    message: str


def amounts(quantities: Mapping[str, str] | None) -> Amounts:
    """Return quantities as integers: CPU in thousandths, all else in units or bytes."""
    return {
        name: parse_milli(text) if name == "cpu" else parse_bytes(text)
        for name, text in (quantities or {}).items()
    }


def pod_requests(spec: Json) -> Amounts:
    """Return what a pod asks of its node: the most it uses at any moment of its start and life."""
    total: Amounts = {}
    peak: Amounts = {}
    for container in spec.get("initContainers") or []:
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            total = _plus(total, asked)
            peak = _most(peak, total)
        else:
            peak = _most(peak, _plus(total, asked))
    for container in spec["containers"]:
        total = _plus(total, _requests(container))
    asked = _most(peak, total) | amounts((spec.get("resources") or {}).get("requests"))
    return _plus(asked, amounts(spec.get("overhead")))


def _requests(container: Json) -> Amounts:
    resources = container.get("resources") or {}
    return amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _plus(left: Amounts, right: Amounts) -> Amounts:
    return {name: left.get(name, 0) + right.get(name, 0) for name in left.keys() | right.keys()}


def _most(left: Amounts, right: Amounts) -> Amounts:
    return {name: max(left.get(name, 0), right.get(name, 0)) for name in left.keys() | right.keys()}


@dataclass(slots=True)
class NodeLedger:
    """Pods a node has admitted, by UID, and who holds which device."""

    allocatable: Amounts
    max_pods: int
    devices: Mapping[str, Sequence[str]]  # UUIDs that a device plugin would hand out, by resource
    labels: Mapping[str, str]
    _requests: dict[str, Amounts] = field(default_factory=dict)
    _held: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def admit(self, pod: Json) -> Rejection | None:
        """Take a pod in, or say why not."""
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        if uid in self._requests:
            return None
        asked = pod_requests(spec)
        rejection = self._misplaced(spec) or self._no_devices(asked) or self._too_full(asked)
        if rejection is None:
            self._requests[uid] = asked
            chosen = [self._choose(spec, resource, asked.get(resource, 0)) for resource in self.devices]
            self._held[uid] = tuple(uuid for devices in chosen for uuid in devices)
        return rejection

    def release(self, uid: str) -> None:
        """Forget a pod that no longer uses anything."""
        self._requests.pop(uid, None)
        self._held.pop(uid, None)

    def devices_of(self, uid: str) -> tuple[str, ...]:
        """Return the UUIDs of the devices a pod holds: whole ones and MIG instances."""
        return self._held.get(uid, ())

    def _misplaced(self, spec: Json) -> Rejection | None:
        wanted = spec.get("nodeSelector") or {}
        if all(self.labels.get(key) == value for key, value in wanted.items()):
            return None
        message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        return Rejection("NodeAffinity", message)

    def _no_devices(self, asked: Amounts) -> Rejection | None:
        for resource, devices in self.devices.items():
            wanted, available = asked.get(resource, 0), len(self._free(devices))
            if wanted > available:
                message = (
                    f"Allocate failed due to requested number of devices unavailable for {resource}. "
                    f"Requested: {wanted}, Available: {available}, which is unexpected"
                )
                return Rejection("UnexpectedAdmissionError", message)
        return None

    def _free(self, devices: Sequence[str]) -> list[str]:
        taken = {uuid for held in self._held.values() for uuid in held}
        return [uuid for uuid in devices if uuid not in taken]

    def _too_full(self, asked: Amounts) -> Rejection | None:
        if len(self._requests) >= self.max_pods:
            return _out_of("pods", 1, len(self._requests), self.max_pods)
        for name, wanted in sorted(asked.items()):
            used = sum(amounts.get(name, 0) for amounts in self._requests.values())
            capacity = self.allocatable.get(name, 0)
            if wanted and used + wanted > capacity:
                return _out_of(name, wanted, used, capacity)
        return None

    def _choose(self, spec: Json, resource: str, count: int) -> tuple[str, ...]:
        """Return the devices the pod names in its environment as far as they are free, else the first free ones."""
        free = self._free(self.devices[resource])
        named = [uuid for uuid in named_devices(spec) if uuid in free]
        return tuple([*named, *(uuid for uuid in free if uuid not in named)][:count])


def _out_of(name: str, wanted: int, used: int, capacity: int) -> Rejection:
    message = (
        f"Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
    )
    return Rejection(f"OutOf{name}", message)


def named_devices(spec: Json) -> list[str]:
    """Return the device UUIDs a pod's containers name themselves."""
    values = [
        entry.get("value") or ""
        for container in spec["containers"] + (spec.get("initContainers") or [])
        for entry in container.get("env") or []
        if entry["name"] == ENV_DEVICES
    ]
    return [uuid for value in values for uuid in value.split(",") if uuid]

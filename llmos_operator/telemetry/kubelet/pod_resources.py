"""The kubelet's pod-resources API, version 1: which container of which pod was given which device.

Source: k8s.io/kubelet/pkg/apis/podresources/v1/api.proto; the numbers below are its field numbers. It is the only place
where Kubernetes says which device a pod got: the API server knows how many.
https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/#monitoring-device-plugin-resources
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llmos_operator.telemetry.kubelet import wire
from llmos_operator.telemetry.kubelet.call import CallFailed, unary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIST: Final = "/v1.PodResourcesLister/List"
ALLOCATABLE: Final = "/v1.PodResourcesLister/GetAllocatableResources"
# Device plugins that share a device in time hand it out under several ids: "GPU-…::0", "GPU-…::1".
# https://github.com/NVIDIA/k8s-device-plugin/blob/main/internal/rm/devices.go (AnnotatedID)
_REPLICA = "::"


@dataclass(frozen=True, slots=True)
class Holder:
    """A container that was given a device."""

    pod: str  # "namespace/name"
    container: str
    resource: str  # the extended resource it asked for, such as nvidia.com/gpu


@dataclass(frozen=True, slots=True)
class Allocations:
    """Devices by id, as the kubelet hands them out."""

    holders: Mapping[str, tuple[Holder, ...]] = field(default_factory=dict)
    offered: Mapping[str, str] = field(default_factory=dict)  # device -> resource under which pods get it


async def read(socket: str) -> Allocations:
    """Ask the kubelet that listens on ``socket``. Raises :class:`CallFailed`, and `Malformed` for nonsense."""
    holders = holders_of(await unary(socket, LIST))
    try:
        offered = offered_of(await unary(socket, ALLOCATABLE))
    except CallFailed as error:
        if error.status <= 0:
            raise
        offered = {}  # it answers, but not this: before Kubernetes 1.28 the call could be switched off
    return Allocations(holders, offered)


def holders_of(answer: bytes) -> dict[str, tuple[Holder, ...]]:
    """Return who holds which device, from a ListPodResourcesResponse. Raises `Malformed`."""
    found: dict[str, list[Holder]] = {}
    for pod in wire.parts(answer, 1):
        key = f"{wire.text(pod, 2)}/{wire.text(pod, 1)}"
        for container in wire.parts(pod, 3):
            name = wire.text(container, 1)
            for resource, device in _devices(container, 2):
                holder = Holder(key, name, resource)
                known = found.setdefault(device, [])
                if holder not in known:
                    known.append(holder)
    order = lambda one: (one.pod, one.container, one.resource)  # noqa: E731 - of the key only
    return {device: tuple(sorted(known, key=order)) for device, known in found.items()}


def offered_of(answer: bytes) -> dict[str, str]:
    """Return the resource of each device that can be handed out, from an AllocatableResourcesResponse."""
    return {device: resource for resource, device in _devices(answer, 1)}


def _devices(message: bytes, number: int) -> Iterator[tuple[str, str]]:
    """Yield resource and device of each id in the ContainerDevices of a message."""
    for devices in wire.parts(message, number):
        resource = wire.text(devices, 1)
        for device in wire.parts(devices, 2):
            yield resource, device.decode(errors="replace").partition(_REPLICA)[0]

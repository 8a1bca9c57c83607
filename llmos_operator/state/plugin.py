"""Who has which device of a node from its device plugin: pods of others, and the holder pods that take devices for shared work.

The kubelet tells which pod it gave a device to (`Device.holders`); of what pods of others ask for beside, which ones is a
guess. Shared work may use a device the plugin offers only while a holder pod has it, so that nobody else is given it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import Pod, PodKey


@dataclass(frozen=True, slots=True)
class Holder:
    """A holder pod that takes a device, or is about to give it back."""

    pod: Pod
    device: str  # UUID; "" while nobody has told which one it got
    used: bool  # shared work is on its device
    leaving: bool


def holders(state: NodeState) -> list[Holder]:
    """Return the holder pods of a node that take a device, by key."""
    found = []
    for key in sorted(key for key, pod in state.pods.items() if pod.holder and _takes(pod)):
        one = next((one for one in state.devices if key in one.device.holders), None)
        leaving = state.pods[key].phase is PodPhase.TERMINATING
        used = one is not None and one.claims > 0
        found.append(Holder(state.pods[key], one.uuid if one is not None else "", used, leaving))
    return found


def bare(state: NodeState) -> tuple[str, ...]:
    """Return the devices with shared work that a holder pod has to take again, as far as nobody else has them."""
    return tuple(
        one.uuid for one in state.devices if one.bare and not one.foreign and not one.device.withdrawn
    )


def lost(state: NodeState) -> tuple[str, ...]:
    """Return the devices with shared work that the kubelet has given to a pod of others."""
    return tuple(one.uuid for one in state.devices if one.bare and one.foreign)


def secured(devices: Sequence[DeviceState], pods: Mapping[PodKey, Pod]) -> set[int]:
    """Return which devices holder pods have that stay."""
    return {i for i, one in enumerate(devices) if any(_secures(pods.get(key)) for key in one.device.holders)}


def unsecured(devices: Sequence[DeviceState], pods: Mapping[PodKey, Pod], held: set[int]) -> set[int]:
    """Return which of the devices the plugin offers shared work uses though no holder pod has them.

    Claims whose pods do not exist yet do not count: their devices are taken before the pods are created.
    """
    suspects = {
        one.uuid: i
        for i, one in enumerate(devices)
        if one.device.offered and one.claims and not one.exclusive and i not in held
    }
    if not suspects:
        return set()
    used = (
        uuid
        for pod in pods.values()
        if pod.claim is not None and pod.phase in {PodPhase.BOUND, PodPhase.TERMINATING}
        for uuid in pod.claim.devices
    )
    return {suspects[uuid] for uuid in used if uuid in suspects}


def _secures(pod: Pod | None) -> bool:
    """Return whether a pod is a holder that stays."""
    return pod is not None and pod.holder and pod.phase is PodPhase.BOUND


def _takes(pod: Pod) -> bool:
    return pod.phase is not PodPhase.FINISHED

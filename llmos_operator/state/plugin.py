"""Who has which device of a node from its device plugin: pods of others, and the holder pods that take devices for shared work.

The kubelet tells which pod it gave a device to (`Device.holders`); of what pods of others ask for beside, which ones is a
guess. Shared work may use a device the plugin offers only while a holder pod has it, so that nobody else is given it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def marked(
    devices: tuple[DeviceState, ...], pods: Mapping[PodKey, Pod], foreign: int
) -> tuple[DeviceState, ...]:
    """Return the devices with those marked that others hold, that holder pods have, and that shared work uses without one.

    `foreign` is how many devices pods of others ask for.
    """
    secured = {
        i for i, one in enumerate(devices) if any(_secures(pods.get(key)) for key in one.device.holders)
    }
    taken = _taken(devices, pods, foreign, secured)
    bare_ones = _bare(devices, pods, secured)
    return tuple(
        _with(one, foreign=i in taken, secured=i in secured, bare=i in bare_ones)
        for i, one in enumerate(devices)
    )


def _with(one: DeviceState, *, foreign: bool, secured: bool, bare: bool) -> DeviceState:
    if (one.foreign, one.secured, one.bare) == (foreign, secured, bare):
        return one
    return replace(one, foreign=foreign, secured=secured, bare=bare)


def _taken(
    devices: tuple[DeviceState, ...], pods: Mapping[PodKey, Pod], count: int, secured: set[int]
) -> set[int]:
    """Return which devices others hold: those the kubelet gave them, and of the rest as many as they asked for beside.

    Which ones of the rest is a guess: those without claims, the most used first, then the highest index.
    """
    known: Counter[PodKey] = Counter()
    taken = set()
    for i, one in enumerate(devices):
        others = [key for key in one.device.holders if _is_foreign(pods.get(key))]
        if others:
            taken.add(i)
            known.update(others)
    count -= sum(min(number, pods[key].gpus) for key, number in known.items())
    order = sorted(
        (i for i in range(len(devices)) if i not in taken and i not in secured),
        key=lambda i: (devices[i].claims > 0, -(devices[i].observed_bytes or 0), -devices[i].device.index),
    )
    taken.update(i for i in order[: max(0, count)] if devices[i].claims == 0)
    return taken


def _bare(devices: tuple[DeviceState, ...], pods: Mapping[PodKey, Pod], secured: set[int]) -> set[int]:
    """Return which of the devices the plugin offers shared work uses though no holder pod has them.

    Claims whose pods do not exist yet do not count: their devices are taken before the pods are created.
    """
    suspects = {
        one.uuid: i
        for i, one in enumerate(devices)
        if one.device.offered and one.claims and not one.exclusive and i not in secured
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


def _is_foreign(pod: Pod | None) -> bool:
    """Return whether a pod is somebody else's and holds something. One nobody knows of is on its way out."""
    return pod is not None and pod.claim is None and not pod.holder and _takes(pod)


def _secures(pod: Pod | None) -> bool:
    """Return whether a pod is a holder that stays."""
    return pod is not None and pod.holder and pod.phase is PodPhase.BOUND


def _takes(pod: Pod) -> bool:
    return pod.phase is not PodPhase.FINISHED

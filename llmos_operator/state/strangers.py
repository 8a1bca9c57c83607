"""Whose processes use a device: its tenants', or those of nobody the ledger knows of there.

A stranger is a process of a pod without a claim on the device (a pod of ours that strayed to it, one that outlived its
claim), or of no pod at all on a device nobody holds. Process lists come every ten seconds and may run ahead of the watch by
moments, so a stranger is believed when two lists in a row show it, and forgotten with the first that does not. Memory
below the margin of observation is the noise of drivers and monitors, and no stranger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from llmos_operator.state.handouts import foreign_units
from llmos_operator.state.ledger import observation_margin
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.ledger import DeviceState, NodeState

# Memory by pod UID, "" for processes of no pod; None: one of its processes does not tell. By device UUID.
Uses: TypeAlias = "Mapping[str, Mapping[str, int | None]]"


def strange_bytes(state: NodeState, device: DeviceState, by_pod: Mapping[str, int | None]) -> int:
    """Return the memory that strangers use on a device, 0 if it is too little to matter."""
    tenants = set(_tenants(state, device.uuid))
    # A pod of ours that the watch has not shown yet has no UID here: any pod nobody knows may be it.
    on_node = {pod.uid for pod in state.pods.values()} if "" in tenants else set()
    total = 0
    for pod_uid, used in by_pod.items():
        # Beside tenants a process that could not be attributed may be one of theirs.
        known = pod_uid in tenants if pod_uid else device.claims > 0 or device.foreign
        known = known or ("" in tenants and pod_uid not in on_node)
        total += 0 if known else used or 0
    return total if total >= observation_margin(device.device.memory_bytes) else 0


def _tenants(state: NodeState, uuid: str) -> Iterable[str]:
    """Yield the UIDs of pods that may be on a device. What others have of the device plugin may be any."""
    for pod in state.pods.values():
        if pod.claim is None:
            if foreign_units(pod) and pod.phase is not PodPhase.FINISHED:
                yield pod.uid
        elif uuid in pod.claim.devices and pod.phase is not PodPhase.FINISHED:
            yield pod.uid


class Strangers:
    """What strangers are believed to use on the devices of one node."""

    def __init__(self, believed: Mapping[str, int] | None = None) -> None:
        """`believed`: what was believed before, in bytes by device UUID."""
        self._believed = {uuid: used for uuid, used in (believed or {}).items() if used}
        self._suspected = dict(self._believed)  # as the last list said

    def fold(self, state: NodeState, uses: Uses) -> bool:
        """Take process lists of devices. Returns whether what is believed of any changed."""
        before = dict(self._believed)
        for device in state.devices:
            if device.uuid not in uses:
                continue
            found = strange_bytes(state, device, uses[device.uuid])
            suspected = self._suspected.pop(device.uuid, 0)
            self._believed.pop(device.uuid, None)
            if found:
                self._suspected[device.uuid] = found
                believed = before.get(device.uuid, 0)
                # One that moves by less than the margin is the same as before: no reason to plan anew.
                if believed and abs(found - believed) < observation_margin(device.device.memory_bytes):
                    self._believed[device.uuid] = believed
                elif suspected:
                    self._believed[device.uuid] = found
        return self._believed != before

    def on(self, uuid: str) -> int:
        """Return what strangers are believed to use on a device."""
        return self._believed.get(uuid, 0)

"""Devices that shared work can have: those a holder pod has, or can still take from the node's device plugin.

Where no device plugin offers devices, or nobody tells, every device is one; where the operator claims them of a DRA driver, none is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.table import ENTRY, GPUS

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class Holders:
    """Turns away nodes whose acceptable devices cannot be taken from the device plugin for shared work."""

    reason = "DevicesNotHeld"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:
        """Keep devices that are held, or can be."""
        if request.whole or not scene.table.plugged:
            return
        unit = (candidates.node[GPUS] > 0).astype(int)
        candidates.devices &= candidates.device[ENTRY] + unit[:, None] > 1

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return what the device plugin of the row with most devices has left."""
        row = int(rows[int(devices.sum(axis=1).argmax())])
        state = scene.table.states[row]
        if state.claims_devices:
            return f"the devices of {state.name} are given by ResourceClaims, to one pod each: nothing is shared there"
        if state.refusing:
            return f"the kubelet of {state.name} refused nvidia.com/gpu to a pod within the last minute"
        bare = sum(one.bare for one in state.devices)
        text = f"{state.free_gpus()} nvidia.com/gpu free on {state.name} for a holder pod"
        return f"{text}; {bare} devices with shared work have lost theirs" if bare else text

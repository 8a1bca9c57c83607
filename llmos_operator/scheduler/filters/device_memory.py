"""Memory and compute left on the devices, by reservation and by observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.api.quantity import human_bytes
from llmos_operator.scheduler.table import FREE_BYTES, FREE_MILLI

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class DeviceCompute:
    """Turns away nodes whose shared devices have too many tenants."""

    reason = "InsufficientDeviceCompute"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep devices with enough compute."""
        candidates.devices &= candidates.device[FREE_MILLI] >= request.compute_milli

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:
        """Return the most compute left on a device."""
        best = int(np.where(devices, scene.table.device[FREE_MILLI][rows], 0).max())
        return f"{best} of {request.compute_milli} thousandths of a device free at best"


class DeviceMemory:
    """Turns away nodes whose devices have too little memory left."""

    reason = "InsufficientDeviceMemory"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep devices with enough memory."""
        candidates.devices &= candidates.device[FREE_BYTES] >= request.bytes_per_device

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:
        """Return the smallest shortage of the device that would have to be used."""
        free = np.sort(np.where(devices, scene.table.device[FREE_BYTES][rows], 0), axis=1)
        weakest = free[:, -request.devices]
        best = int(weakest.argmax())
        short = human_bytes(request.bytes_per_device - int(weakest[best]))
        return f"short by {short} on {scene.table.names[int(rows[best])]}"

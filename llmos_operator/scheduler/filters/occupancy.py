"""Devices nobody else holds: idle ones for exclusive use, those of the same sharing domain for shared use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.api.quantity import human_bytes
from llmos_operator.scheduler.instances import profiles
from llmos_operator.scheduler.table import CAPACITY, DOMAIN, EXCESS, IDLE, STRANGE
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints

_PERCENT = 100
_NEVER = np.iinfo(np.int64).max


class Occupancy:
    """Turns away nodes whose acceptable devices are held by others."""

    reason = "DevicesInUse"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:
        """Keep devices that may be taken."""
        idle = candidates.device[IDLE] > 0
        if request.whole:
            candidates.devices &= idle
        else:
            same = candidates.device[DOMAIN] == scene.table.domain_number(request.domain)
            candidates.devices &= idle | same

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:
        """Return the most devices any of the rows has free; of instances, how many of each profile are."""
        if request.constraints.sharing is Sharing.MIG:
            return profiles(scene.table.states[int(row)] for row in rows)
        free = (devices & (scene.table.device[IDLE][rows] > 0)).sum(axis=1)
        best = int(free.argmax())
        return f"{int(free[best])} of {request.devices} devices free on {scene.table.names[int(rows[best])]}"


class Strangers:
    """Turns away devices used by processes of nobody the ledger knows of there: what they take may grow at any time."""

    reason = "StrangerOnDevice"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep devices without strangers."""
        candidates.devices &= candidates.device[STRANGE] == 0

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return what is used where strangers use least."""
        used = np.where(
            devices & (scene.table.device[STRANGE][rows] > 0), scene.table.device[STRANGE][rows], _NEVER
        )
        row, column = divmod(int(used.argmin()), used.shape[1])
        state = scene.table.states[int(rows[row])]
        amount = human_bytes(int(used[row, column]))
        return f"{amount} of {state.devices[column].uuid} on {state.name} are used by processes of no pod placed there"


class Overuse:
    """Turns away devices on which far more memory was observed than is reserved: a stranger or a leak is there."""

    reason = "DeviceOverused"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep devices used as reserved."""
        limit = candidates.fixed[CAPACITY] * scene.policy.overuse_percent
        candidates.devices &= candidates.device[EXCESS] * _PERCENT <= limit

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the overuse that is least above what is tolerated."""
        share = scene.table.device[EXCESS][rows] * _PERCENT // scene.table.fixed[CAPACITY][rows].clip(1)
        least = int(share[devices & (share > scene.policy.overuse_percent)].min(initial=_PERCENT))
        return f"observed at least {least} % of a device beyond what is reserved on it"

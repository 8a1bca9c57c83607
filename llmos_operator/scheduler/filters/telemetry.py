"""Fresh telemetry where it is needed: sharing a device, or displacing somebody from it.

On a silent node only reservations count: a whole idle device may be given, nothing may be shared or taken there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class TelemetryFresh:
    """Turns away nodes that have not been heard of for too long."""

    reason = "TelemetryUnavailable"
    static = True
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:
        """Return which candidates stay."""
        constraints = request.constraints
        if constraints.sharing is not Sharing.SHARED and not constraints.displacing:
            return np.ones(len(scene.heard), np.bool_)[candidates.rows]
        fresh: Bools = scene.heard[candidates.rows] >= scene.now - scene.policy.stale_seconds
        return fresh

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the age of the newest telemetry of the rows."""
        newest = float(scene.heard[rows].max())
        if newest == float("-inf"):
            return "never heard of: does the agent run on them?"
        return f"last heard of {scene.now - newest:.0f} s ago at best"

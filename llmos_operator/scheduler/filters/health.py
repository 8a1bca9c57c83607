"""Devices the agent found Healthy or Degraded and nobody treats.

Unhealthy, Unknown and quarantined ones take nothing new, nor do those that heat or a power brake holds down most of the time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmos_operator.api.telemetry import Verdict

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.state.ledger import DeviceState


class Health:
    """Turns away nodes without enough devices in working order."""

    reason = "DeviceUnhealthy"
    static = True
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep devices in working order."""
        candidates.devices &= scene.table.healthy[candidates.rows]

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the verdicts of the devices that are out."""
        verdicts: Counter[str] = Counter()
        for i, row in enumerate(rows):
            for column, device in enumerate(scene.table.states[int(row)].devices):
                if devices[i, column] and not scene.table.healthy[row, column]:
                    verdicts[_why(device)] += 1
        shown = sorted(verdicts.items(), key=lambda item: (-item[1], item[0]))[:3]
        return ", ".join(f"{count} devices {what}" for what, count in shown)


def _why(device: DeviceState) -> str:
    if device.quarantined:
        return f"quarantined ({device.quarantined})"
    if device.held_down and device.verdict in {Verdict.HEALTHY, Verdict.DEGRADED}:
        return f"held down by heat or a power brake for {device.throttled_milli // 10} % of the time"
    return f"{device.verdict} {device.reason}".rstrip()

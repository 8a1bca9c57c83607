"""The node may hold one more pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.table import PODS

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class PodCount:
    """Turns away nodes that hold as many pods as they may."""

    reason = "TooManyPods"
    static = False
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:  # noqa: ARG002
        """Return which candidates stay."""
        room: Bools = candidates.node[PODS] >= 1
        return room

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the limits of the rows."""
        most = max(state.node.pods for row in rows if (state := scene.table.states[int(row)]).node)
        return f"full at {most} pods"

"""Units of nvidia.com/gpu the kubelet would still grant to a pod that asks for whole devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.scheduler.table import GPUS

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class PluginGpus:
    """Turns away nodes whose kubelet would refuse the pod."""

    reason = "InsufficientGPUs"
    static = False
    for_devices = True

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:  # noqa: ARG002
        """Return which candidates stay."""
        enough: Bools = candidates.node[GPUS] >= request.plugin_gpus
        return enough

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the smallest shortage, or that nothing is advertised at all."""
        states = [scene.table.states[int(row)] for row in rows]
        if not any(state.whole_units for state in states):
            return "no nvidia.com/gpu advertised: does the device plugin run on them?"
        free = scene.table.node[GPUS][rows]
        best = int(free.argmax())
        name = scene.table.names[int(rows[best])]
        if all(state.refusing or not state.whole_units for state in states):
            return f"the kubelet of {name} refused nvidia.com/gpu to a pod within the last minute"
        return f"{int(free[best])} of {request.plugin_gpus} nvidia.com/gpu free on {name}"

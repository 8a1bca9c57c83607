"""CPU and memory of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.quantity import human_bytes
from llmos_operator.scheduler.table import CPU, MEMORY

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class HostCpu:
    """Turns away nodes without enough free CPU."""

    reason = "InsufficientCPU"
    static = False
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:  # noqa: ARG002
        """Return which candidates stay."""
        enough: Bools = candidates.node[CPU] >= request.cpu_milli
        return enough

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the smallest shortage."""
        free = scene.table.node[CPU][rows]
        best = int(free.argmax())
        return f"short by {request.cpu_milli - int(free[best])}m on {scene.table.names[int(rows[best])]}"


class HostMemory:
    """Turns away nodes without enough free host memory."""

    reason = "InsufficientMemory"
    static = False
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:  # noqa: ARG002
        """Return which candidates stay."""
        enough: Bools = candidates.node[MEMORY] >= request.memory_bytes
        return enough

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the smallest shortage."""
        free = scene.table.node[MEMORY][rows]
        best = int(free.argmax())
        short = human_bytes(request.memory_bytes - int(free[best]))
        return f"short by {short} on {scene.table.names[int(rows[best])]}"

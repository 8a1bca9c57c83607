"""The node is registered, Ready and not cordoned."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints


class NodeReady:
    """Turns away nodes that take no pods."""

    reason = "NodeNotReady"
    static = True
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:  # noqa: ARG002
        """Return which candidates stay."""
        return scene.table.schedulable[candidates.rows]

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return how many of the rows are not ready and how many cordoned."""
        nodes = [scene.table.states[int(row)].node for row in rows]
        gone = sum(node is None for node in nodes)
        cordoned = sum(node is not None and node.ready for node in nodes)
        parts = (
            (gone, "not registered"),
            (len(nodes) - gone - cordoned, "not ready"),
            (cordoned, "cordoned"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)

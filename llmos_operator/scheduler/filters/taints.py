"""Every NoSchedule and NoExecute taint of the node is tolerated."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.state.labels import untolerated

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.state.types import Taint


class Taints:
    """Turns away nodes with a taint the pod does not tolerate."""

    reason = "UntoleratedTaint"
    static = True
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:
        """Return which candidates stay."""
        states = scene.table.states
        known: dict[tuple[Taint, ...], bool] = {}
        kept = np.ones(len(states), np.bool_)
        for row in scene.table.tainted:
            node = states[row].node
            taints = node.taints if node is not None else ()
            if taints not in known:
                known[taints] = untolerated(taints, request.constraints.tolerations) is None
            kept[row] = known[taints]
        return kept[candidates.rows]

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the taint that keeps most of the rows out."""
        counts: Counter[str] = Counter()
        for row in rows:
            node = scene.table.states[int(row)].node
            taint = untolerated(node.taints, request.constraints.tolerations) if node is not None else None
            if taint is not None:
                value = f"={taint.value}" if taint.value else ""
                counts[f"{taint.key}{value}:{taint.effect}"] += 1
        most = min(counts.items(), key=lambda item: (-item[1], item[0]), default=None)
        return f"{most[1]} with {most[0]}; tolerate it in spec.podTemplate" if most else ""

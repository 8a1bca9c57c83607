"""The node can mount the claims: their volumes can be there, and are not on one other node only."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.state.labels import labels_of, matches

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import MountLimit


class Volumes:
    """Turns away nodes on which a claim cannot be mounted."""

    reason = "VolumeElsewhere"
    static = True
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:
        """Return which candidates stay."""
        mounts, states = request.constraints.mounts, scene.table.states
        kept = np.ones(len(states), np.bool_)
        if mounts:
            kept[:] = [all(_can_mount(state, one) for one in mounts) for state in states]
        return kept[candidates.rows]

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the claim that most of the rows cannot mount, and why."""
        states = [scene.table.states[int(row)] for row in rows]
        missed = Counter(
            one for state in states for one in request.constraints.mounts if not _can_mount(state, one)
        )
        most = min(missed.items(), key=lambda item: (-item[1], item[0].claim, item[0].why), default=None)
        return f"{most[1]} cannot mount claim {most[0].claim}: {most[0].why}" if most else ""


def _can_mount(state: NodeState, limit: MountLimit) -> bool:
    terms = [term for term in limit.places if term.requirements]  # an empty term matches nothing
    labels = labels_of(state)
    return not limit.places or any(matches(term, labels) for term in terms)

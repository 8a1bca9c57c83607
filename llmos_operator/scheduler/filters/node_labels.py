"""The node's labels match nodeSelector and the required node affinity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.state.labels import labels_of, matches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.request import Constraints, Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.state.types import Selector


class NodeLabels:
    """Turns away nodes whose labels do not match."""

    reason = "NodeSelectorMismatch"
    static = True
    for_devices = False

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:
        """Return which candidates stay. Nodes alike in the labels that are asked for are judged once."""
        constraints, states = request.constraints, scene.table.states
        keys = _keys(constraints)
        if not keys and not constraints.node_affinity:
            return np.ones(len(states), np.bool_)[candidates.rows]
        known: dict[tuple[str | None, ...], bool] = {}
        kept = np.zeros(len(states), np.bool_)
        for row, state in enumerate(states):
            labels = labels_of(state)
            relevant = tuple(labels.get(key) for key in keys)
            if relevant not in known:
                known[relevant] = _wanted(constraints, labels)
            kept[row] = known[relevant]
        return kept[candidates.rows]

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:  # noqa: ARG002
        """Return the requirement that most of the rows miss."""
        missed: dict[str, int] = {}
        for row in rows:
            labels = labels_of(scene.table.states[int(row)])
            for selector in (request.constraints.node_selector, *request.constraints.node_affinity):
                for one in selector.requirements:
                    if not matches(type(selector)((one,)), labels):
                        text = f"{one.key} {one.operator} {','.join(one.values)}".rstrip()
                        missed[text] = missed.get(text, 0) + 1
        most = min(missed.items(), key=lambda item: (-item[1], item[0]), default=None)
        return f"{most[1]} without {most[0]}" if most else ""


def _keys(constraints: Constraints) -> tuple[str, ...]:
    selectors: tuple[Selector, ...] = (constraints.node_selector, *constraints.node_affinity)
    return tuple(sorted({one.key for selector in selectors for one in selector.requirements}))


def _wanted(constraints: Constraints, labels: Mapping[str, str]) -> bool:
    if not matches(constraints.node_selector, labels):
        return False
    terms = [term for term in constraints.node_affinity if term.requirements]  # an empty term matches nothing
    return not constraints.node_affinity or any(matches(term, labels) for term in terms)

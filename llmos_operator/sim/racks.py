"""Nodes of eight devices for the replay of jobs, where each job is placed whole or not at all.

Up to eight devices sit on one node, the fullest with room; more take whole nodes and part of one more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.sim.openb import Ints

PER_NODE: Final = 8


class Racks:
    """What is free on each node, and where each job runs."""

    def __init__(self, nodes: int) -> None:
        self.free = np.full(nodes, PER_NODE)
        self._held: dict[int, list[tuple[int, int]]] = {}  # job -> (node, devices)

    def place(self, job: int, gpus: int) -> bool:
        """Give a job its devices, if it fits."""
        parts = self._one_node(gpus) if gpus < PER_NODE else self._whole_nodes(gpus)
        if not parts:
            return False
        for node, count in parts:
            self.free[node] -= count
        self._held[job] = parts
        return True

    def release(self, job: int) -> None:
        """Take a job's devices back."""
        for node, count in self._held.pop(job):
            self.free[node] += count

    def _one_node(self, gpus: int) -> list[tuple[int, int]]:
        room = np.flatnonzero(self.free >= gpus)
        return [(int(room[self.free[room].argmin()]), gpus)] if len(room) else []

    def _whole_nodes(self, gpus: int) -> list[tuple[int, int]]:
        needed = -(-gpus // PER_NODE)
        idle = np.flatnonzero(self.free == PER_NODE)[:needed]
        if len(idle) < needed:
            return []
        rest = gpus - PER_NODE * (needed - 1)
        return [(int(node), PER_NODE if number < needed - 1 else rest) for number, node in enumerate(idle)]

    def victims(self, gpus: int, candidates: Sequence[int], sizes: Ints) -> list[int]:
        """Return the fewest candidates whose stop makes room, [] if even all of them do not.

        `candidates` are running jobs, the first to go first. For room on one node the jobs of that node are tried,
        largest first; for whole nodes, candidates go in their order until enough nodes are idle.
        """
        if gpus <= PER_NODE:
            found = self._on_one_node(gpus, candidates, sizes)
            if found:
                return found
        needed, free, chosen = -(-gpus // PER_NODE), self.free.copy(), []
        for job in candidates:
            if int((free == PER_NODE).sum()) >= needed:
                break
            for node, count in self._held[job]:
                free[node] += count
            chosen.append(job)
        return chosen if int((free == PER_NODE).sum()) >= needed else []

    def _on_one_node(self, gpus: int, candidates: Sequence[int], sizes: Ints) -> list[int]:
        there: dict[int, list[int]] = {}
        for job in candidates:
            if len(self._held[job]) == 1:
                there.setdefault(self._held[job][0][0], []).append(job)
        best: list[int] = []
        for node, jobs in there.items():
            room, chosen = int(self.free[node]), []
            for job in sorted(jobs, key=lambda one: -sizes[one]):
                if room >= gpus:
                    break
                chosen.append(job)
                room += int(sizes[job])
            if room >= gpus and (not best or len(chosen) < len(best)):
                best = chosen
        return best

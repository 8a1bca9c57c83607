"""Replay of a list of tasks: each is placed for good or rejected for good, by the operator's own placement.

What the placement says is checked against books kept apart from it: nothing above capacity, no product that was not
asked for, and no task declined that some node could take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from llmos_operator.sim.trace_files import BadTrace
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.service_index import Floats
    from llmos_operator.sim.openb import Cluster, Ints, Mix, Task

PERCENTS: Final = 131  # 0 % .. 130 % of the devices asked for


class Placement(Protocol):
    """What is replayed: see `sim.adapters.placement`."""

    def place(self, state: object, task: Task) -> tuple[int, tuple[int, ...]] | None:
        """Return node and devices by number, None if the task fits nowhere."""
        ...


class Books:
    """What is free: CPU and memory by node, thousandths by node and device."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        width = int(cluster.ngpu.max(initial=1))
        self.cpu, self.mem = cluster.cpu.copy(), cluster.mem.copy()
        self.gpu = np.where(np.arange(width) < cluster.ngpu[:, None], FULL_MILLI, 0).astype(np.int64)

    def could_take(self, task: Task) -> bool:
        """Return whether some node has room for the task."""
        room = (self.cpu >= task.cpu) & (self.mem >= task.mem)
        if task.num:
            room &= (self.gpu >= task.milli).sum(1) >= task.num
            if task.models:
                room &= (task.models >> self.cluster.model & 1) == 1
        return bool(room.any())

    def take(self, task: Task, node: int, devices: tuple[int, ...]) -> None:
        """Count a placement. RuntimeError: it cannot be."""
        allowed = not (task.num and task.models) or task.models >> int(self.cluster.model[node]) & 1
        if len(set(devices)) != task.num or not allowed:
            raise RuntimeError(f"{task} was given devices {devices} of node {node}, which it did not ask for")
        self.cpu[node] -= task.cpu
        self.mem[node] -= task.mem
        self.gpu[node, list(devices)] -= task.milli
        if min(self.cpu[node], self.mem[node], self.gpu[node].min()) < 0:
            raise RuntimeError(f"{task} was placed on node {node} beyond its capacity")


class Fragments:
    """Free devices that the next task of a known mix could not use, expected, in thousandths (Weng et al., ATC'23).

    On a node that can take a task, devices with too little left for it are of no use to it; on one that cannot, all
    that is free. Tasks without devices use none.
    """

    def __init__(self, books: Books, mix: Mix) -> None:
        kinds = mix.num > 0
        self._books = books
        self._cpu, self._num, self._milli = mix.cpu[kinds], mix.num[kinds], mix.milli[kinds]
        self._part = mix.p[kinds]
        models = np.arange(len(books.cluster.models))
        self._allowed = (mix.models[kinds, None] == 0) | (mix.models[kinds, None] >> models & 1 == 1)
        self._of = np.array([self._amount(node) for node in range(len(books.cpu))])
        self.total = float(self._of.sum())

    def update(self, node: int) -> None:
        """Count a node anew."""
        amount = self._amount(node)
        self.total += amount - self._of[node]
        self._of[node] = amount

    def _amount(self, node: int) -> float:
        free = self._books.gpu[node]
        large = free >= self._milli[:, None]
        takes = (self._books.cpu[node] >= self._cpu) & (large.sum(1) >= self._num)
        takes &= self._allowed[:, self._books.cluster.model[node]]
        return float(free.sum() - (self._part * takes * (large * free).sum(1)).sum())


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of the tasks, one entry each, in thousandths of devices."""

    devices: int
    asked: Ints  # so far
    used: Ints
    fragmented: Floats
    taken: Ints  # 1: placed, 0: rejected
    declined: int  # rejected although some node could have taken them
    seconds: Floats = field(repr=False)  # CPU seconds of each decision

    def curve(self, amounts: Ints | Floats) -> Floats:
        """Return the mean of `amounts` in percent of all devices where r % have been asked for; NaN: nowhere near."""
        total = self.devices * FULL_MILLI
        at = np.rint(self.asked / total * 100).astype(np.int64)
        found = np.full(PERCENTS, np.nan)
        for percent in range(PERCENTS):
            here = at == percent
            if not here.any():
                here = np.abs(at - percent) <= 1
            if here.any():
                found[percent] = 100 * float(amounts[here].mean()) / total
        return found


def replay(cluster: Cluster, types: Sequence[Task], stream: Ints, placement: Placement, mix: Mix) -> Placed:
    """Ask for a place for each task of the stream, in its order."""
    if not len(stream):
        raise BadTrace("no task is left to replay")
    books = Books(cluster)
    fragments = Fragments(books, mix)
    count = len(stream)
    asked, used, taken = (np.zeros(count, np.int64) for _ in range(3))
    fragmented, seconds = np.zeros(count), np.zeros(count)
    declined = in_use = 0
    for number, kind in enumerate(stream):
        task = types[int(kind)]
        began = time.process_time()
        place = placement.place(books, task)
        seconds[number] = time.process_time() - began
        if place is not None:
            books.take(task, *place)
            fragments.update(place[0])
            in_use += task.amount
            taken[number] = 1
        else:
            declined += books.could_take(task)
        asked[number], used[number], fragmented[number] = task.amount, in_use, fragments.total
    return Placed(cluster.devices, np.cumsum(asked), used, fragmented, taken, declined, seconds)

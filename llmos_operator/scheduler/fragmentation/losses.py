"""What placing a request on a node destroys: the node's value before less its value after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.scheduler.fragmentation.shapes import CORE, FULL

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.shapes import Bools, Floats, Ints
    from llmos_operator.scheduler.fragmentation.worth import Worth


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request takes: whole devices, or a share (thousandths, by device kind) of each of them, and CPU."""

    devices: int
    whole: bool
    cpu: int  # thousandths of a core
    share: Ints  # [kinds]


@dataclass(frozen=True, slots=True)
class Nodes:
    """Rows that are compared: device kind, free shares (FULL is idle), bounds (`Worth.bounds`), devices to choose from."""

    kind: Ints
    free: Ints
    held: Floats
    usable: Bools


def losses(worth: Worth, asked: Asked, nodes: Nodes) -> tuple[Floats, Ints]:
    """Return (loss in devices, best device column) of each row.

    A row without room has an infinite loss. The column is -1 unless the request takes part of one device.
    """
    before = nodes.held.min(axis=1)
    left = nodes.held - worth.lambdas * (asked.cpu / CORE)
    if not asked.devices:
        return before - left.min(axis=1), np.full(len(before), -1)
    if asked.whole:
        return _whole(worth, asked, nodes, before, left), np.full(len(before), -1)
    if asked.devices > 1:
        return _several(worth, asked, nodes, before, left), np.full(len(before), -1)
    return _part(worth, asked, nodes, before, left)


def _whole(worth: Worth, asked: Asked, nodes: Nodes, before: Floats, left: Floats) -> Floats:
    idle = nodes.free == FULL
    count = idle.sum(axis=1)
    after = (
        left - worth.gang(nodes.kind, count) + worth.gang(nodes.kind, np.maximum(count - asked.devices, 0))
    )
    return np.where((idle & nodes.usable).sum(axis=1) >= asked.devices, before - after.min(axis=1), np.inf)


def _several(worth: Worth, asked: Asked, nodes: Nodes, before: Floats, left: Floats) -> Floats:
    """Take a share of the fullest devices that have it."""
    share = asked.share[nodes.kind][:, None]
    fits = nodes.usable & (nodes.free >= share)
    order = np.argsort(np.where(fits, nodes.free, FULL + 1), axis=1, kind="stable")[:, : asked.devices]
    after = nodes.free.copy()
    np.put_along_axis(after, order, np.maximum(np.take_along_axis(after, order, axis=1) - share, 0), axis=1)
    change = worth.devices(nodes.kind, after) - worth.devices(nodes.kind, nodes.free)
    return np.where(fits.sum(axis=1) >= asked.devices, before - (left + change).min(axis=1), np.inf)


def _part(worth: Worth, asked: Asked, nodes: Nodes, before: Floats, left: Floats) -> tuple[Floats, Ints]:
    """Try every device that has room, of the idle ones the first."""
    share = asked.share[nodes.kind]
    idle = nodes.free == FULL
    option = nodes.usable & (nodes.free >= share[:, None])
    option &= ~idle | (np.cumsum(option & idle, axis=1) == 1)
    rows, columns = np.nonzero(option)
    room, kind, count = nodes.free[rows, columns], nodes.kind[rows], idle.sum(axis=1)[rows]
    breaks = room == FULL
    gone = worth.share(kind, np.where(breaks, 0, room))
    if breaks.any():
        kind_of, count_of = kind[breaks], count[breaks]
        gone[breaks] = worth.gang(kind_of, count_of) - worth.gang(kind_of, count_of - 1)
    after = left[rows] - gone + worth.share(kind, room - share[rows])
    loss = before[rows] - after.min(axis=1)
    found, column = np.full(len(before), np.inf), np.full(len(before), -1)
    # Worst first, so that the last write to a row is its best; of equals the device with the least room.
    order = np.lexsort((room, np.round(loss, 9)))[::-1]
    found[rows[order]] = loss[order]
    column[rows[order]] = columns[order]
    return found, column

"""The table as the fragmentation value sees it: kinds of devices, free shares, and what a request takes of them.

A device's share is the smaller of its free compute and its free memory; a request's share of a device the larger of
what it asks of both. Kinds are products of one size; a node counts as of the kind of its first device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmos_operator.scheduler.fragmentation.losses import Asked
from llmos_operator.scheduler.fragmentation.shapes import FULL, Stock
from llmos_operator.scheduler.table import CAPACITY, CPU, FREE_BYTES, FREE_MILLI, IDLE, PRODUCT

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import DeviceKind
    from llmos_operator.scheduler.fragmentation.shapes import Ints
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import NodeTable, Rows
    from llmos_operator.state.ledger import NodeState


def kinds_of(table: NodeTable) -> tuple[DeviceKind, ...]:
    """Return the kinds of devices the table's nodes have, in a fixed order."""
    return tuple(sorted({_kind(table, int(row)) for row in np.flatnonzero(table.device_count > 0)}))


def _kind(table: NodeTable, row: int) -> DeviceKind:
    device = table.states[row].devices[0].device
    return device.product, device.memory_bytes


def kind_rows(table: NodeTable, kinds: tuple[DeviceKind, ...]) -> Ints:
    """Return the number of each row's kind; len(kinds) for nodes of another kind or without devices."""
    numbers = {
        (table.products[product], memory): number
        for number, (product, memory) in enumerate(kinds)
        if product in table.products
    }
    found = np.full(len(table), len(kinds), np.int64)
    for (product, memory), number in numbers.items():
        same = (table.fixed[PRODUCT, :, 0] == product) & (table.fixed[CAPACITY, :, 0] == memory)
        found[same & (table.device_count > 0)] = number
    return found


def shares(table: NodeTable, rows: Rows) -> Ints:
    """Return the free share of each device, FULL only for idle ones; MIG instances and sick devices have none."""
    free = table.device[FREE_BYTES][rows] * FULL // np.maximum(table.fixed[CAPACITY][rows], 1)
    free = np.minimum(np.minimum(free, table.device[FREE_MILLI][rows]), FULL - 1)
    free = np.where(table.device[IDLE][rows] > 0, FULL, free)
    found: Ints = np.where(table.exists[rows] & table.healthy[rows] & ~table.mig[rows], free, 0)
    return found


def shares_of(state: NodeState, width: int) -> list[int]:
    """Return `shares` of one node, filled up to `width` columns."""
    found = [0] * width
    for column, one in enumerate(state.devices):
        if one.device.mig or not one.usable:
            continue
        if one.idle:
            found[column] = FULL
        else:
            memory = one.headroom_bytes() * FULL // max(one.device.memory_bytes, 1)
            found[column] = min(memory, one.headroom_milli(), FULL - 1)
    return found


def stock_of(table: NodeTable, kinds: tuple[DeviceKind, ...]) -> Stock:
    """Return what is free on nodes that take pods."""
    rows = np.flatnonzero(table.schedulable)
    return Stock(kind_rows(table, kinds)[rows], table.node[CPU][rows].clip(0), shares(table, rows))


def asked_of(request: Request, kinds: tuple[DeviceKind, ...]) -> Asked:
    """Return what a request takes of devices of each kind, and of one of no kind."""
    if request.whole:
        share = np.full(len(kinds) + 1, FULL, np.int64)
    else:
        memory = [-(-request.bytes_per_device * FULL // max(1, size)) for _, size in kinds]
        share = np.array(
            [*(max(request.compute_milli, part) for part in memory), request.compute_milli], np.int64
        )
    return Asked(request.devices, request.whole, request.cpu_milli, share)

"""Lower bounds of what it would cost to displace somebody on each node, so that few nodes need a search.

A bound is a pair (priority of the most important victim, cost) that no victim set on the node can go below. A victim
that holds several devices counts for each of them by its part, so a sum over devices never counts more than it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.placement import device_fits, host_fits
from llmos_operator.scheduler.table import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import Bools, Ints, NodeTable
    from llmos_operator.scheduler.victims import Victim, VictimIndex
    from llmos_operator.state.ledger import NodeState

LOWEST: Final = -(1 << 40)  # below every priority: nobody has to go
NEVER: Final = 1 << 60  # displacing cannot help


def lower_bounds(
    table: NodeTable,
    index: VictimIndex,
    rights: Bools,
    request: Request,
    usable: tuple[Bools, Bools, Bools],
) -> tuple[Ints, Ints]:
    """Return (priority, cost) of every row; NEVER where displacing cannot help.

    `rights` says which victims may go. `usable` are (devices of the right kind, of them those that fit now, rows whose
    host fits now).
    """
    kind, fits, host = usable
    if not request.devices:
        return _host_bounds(len(table), index, rights, host)
    chosen = rights[index.device_victims]
    at = (index.device_rows[chosen], index.device_columns[chosen])
    who = index.device_victims[chosen]
    count = np.zeros(kind.shape, np.int64)
    np.add.at(count, at, 1)
    if request.whole:
        priority, cost = np.full(kind.shape, LOWEST, np.int64), np.zeros(kind.shape, np.int64)
        np.maximum.at(priority, at, index.priorities[who])
        np.add.at(cost, at, index.parts[who])
        evictable = kind & (count > 0) & (count >= table.device[CLAIMS])
    else:
        priority, cost = np.full(kind.shape, NEVER, np.int64), np.full(kind.shape, NEVER, np.int64)
        np.minimum.at(priority, at, index.priorities[who])
        np.minimum.at(cost, at, index.parts[who])
        evictable = kind & (count > 0)
    priority = np.where(fits, LOWEST, np.where(evictable, priority, NEVER))
    cost = np.where(fits, 0, np.where(evictable, cost, NEVER))
    if request.devices > kind.shape[1]:
        return np.full(len(table), NEVER, np.int64), np.full(len(table), NEVER, np.int64)
    least = np.partition(priority, request.devices - 1, axis=1)[:, : request.devices].max(axis=1)
    cheap = np.partition(cost, request.devices - 1, axis=1)[:, : request.devices]
    return least, np.where(least == NEVER, NEVER, cheap.clip(max=NEVER // table.width).sum(axis=1))


def _host_bounds(rows: int, index: VictimIndex, rights: Bools, host: Bools) -> tuple[Ints, Ints]:
    priority, cost = np.full(rows, NEVER, np.int64), np.full(rows, NEVER, np.int64)
    np.minimum.at(priority, index.rows[rights], index.priorities[rights])
    np.minimum.at(cost, index.rows[rights], index.costs[rights])
    return np.where(host, LOWEST, priority), np.where(host, 0, cost)


def lower_bound(
    state: NodeState, victims: Sequence[Victim], request: Request, columns: Bools, overuse: int
) -> tuple[int, int]:
    """Return the same for one node as it stands in a view, from exact values."""
    if not request.devices:
        if host_fits(state, request):
            return (LOWEST, 0)
        return min(((v.priority, v.cost) for v in victims), default=(NEVER, NEVER))
    holders: dict[str, list[Victim]] = {}
    for victim in victims:
        for uuid in victim.claim.devices:
            holders.setdefault(uuid, []).append(victim)
    bounds = []
    for column, device in enumerate(state.devices):
        if not columns[column]:
            continue
        if device_fits(device, request, overuse):
            bounds.append((LOWEST, 0))
            continue
        on = holders.get(device.device.uuid, [])
        if not on or (request.whole and len(on) < device.claims):
            continue
        priorities = [v.priority for v in on]
        parts = [v.cost // len(v.claim.devices) for v in on]
        bounds.append((max(priorities), sum(parts)) if request.whole else (min(priorities), min(parts)))
    if len(bounds) < request.devices:
        return (NEVER, NEVER)
    priorities = sorted(p for p, _ in bounds)[: request.devices]
    return (priorities[-1], sum(sorted(c for _, c in bounds)[: request.devices]))

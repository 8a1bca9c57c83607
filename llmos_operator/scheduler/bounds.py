"""Lower bounds of what it would cost to displace somebody on each node, so that few nodes need a search.

A bound is a pair (rank of the most important victim, cost) that no victim set on the node can go below. A victim
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

LOWEST: Final = -(1 << 40)  # below every rank: nobody has to go
NEVER: Final = 1 << 60  # displacing cannot help


def lower_bounds(
    table: NodeTable,
    index: VictimIndex,
    rights: Bools,
    ranks: Ints,
    request: Request,
    usable: tuple[Bools, Bools, Bools],
) -> tuple[Ints, Ints]:
    """Return (rank, cost) of every row; NEVER where displacing cannot help.

    `rights` says which victims may go and `ranks` how important they are. `usable` are (devices of the right kind, of them those that fit now, rows whose
    host fits now).
    """
    kind, fits, host = usable
    if not request.devices:
        return _host_bounds(len(table), index, rights, ranks, host)
    chosen = rights[index.device_victims]
    at = (index.device_rows[chosen], index.device_columns[chosen])
    who = index.device_victims[chosen]
    count = np.zeros(kind.shape, np.int64)
    np.add.at(count, at, 1)
    if request.whole:
        rank, cost = np.full(kind.shape, LOWEST, np.int64), np.zeros(kind.shape, np.int64)
        np.maximum.at(rank, at, ranks[who])
        np.add.at(cost, at, index.parts[who])
        evictable = kind & (count > 0) & (count >= table.device[CLAIMS])
    else:
        rank, cost = np.full(kind.shape, NEVER, np.int64), np.full(kind.shape, NEVER, np.int64)
        np.minimum.at(rank, at, ranks[who])
        np.minimum.at(cost, at, index.parts[who])
        evictable = kind & (count > 0)
    rank = np.where(fits, LOWEST, np.where(evictable, rank, NEVER))
    cost = np.where(fits, 0, np.where(evictable, cost, NEVER))
    if request.devices > kind.shape[1]:
        return np.full(len(table), NEVER, np.int64), np.full(len(table), NEVER, np.int64)
    least = np.partition(rank, request.devices - 1, axis=1)[:, : request.devices].max(axis=1)
    cheap = np.partition(cost, request.devices - 1, axis=1)[:, : request.devices]
    return least, np.where(least == NEVER, NEVER, cheap.clip(max=NEVER // table.width).sum(axis=1))


def _host_bounds(rows: int, index: VictimIndex, rights: Bools, ranks: Ints, host: Bools) -> tuple[Ints, Ints]:
    rank, cost = np.full(rows, NEVER, np.int64), np.full(rows, NEVER, np.int64)
    np.minimum.at(rank, index.rows[rights], ranks[rights])
    np.minimum.at(cost, index.rows[rights], index.costs[rights])
    return np.where(host, LOWEST, rank), np.where(host, 0, cost)


def lower_bound(
    state: NodeState,
    victims: Sequence[tuple[int, Victim]],
    request: Request,
    columns: Bools,
    overuse: int,
) -> tuple[int, int]:
    """Return the same for one node as it stands in a view, from exact values; victims come with their ranks."""
    if not request.devices:
        if host_fits(state, request):
            return (LOWEST, 0)
        return min(((rank, v.cost) for rank, v in victims), default=(NEVER, NEVER))
    holders: dict[str, list[tuple[int, Victim]]] = {}
    for one in victims:
        for uuid in one[1].claim.devices:
            holders.setdefault(uuid, []).append(one)
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
        ranks = [rank for rank, _ in on]
        parts = [v.cost // len(v.claim.devices) for _, v in on]
        bounds.append((max(ranks), sum(parts)) if request.whole else (min(ranks), min(parts)))
    if len(bounds) < request.devices:
        return (NEVER, NEVER)
    return (
        sorted(r for r, _ in bounds)[request.devices - 1],
        sum(sorted(c for _, c in bounds)[: request.devices]),
    )

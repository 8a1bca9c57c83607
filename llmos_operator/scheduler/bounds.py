"""Lower bounds of what it would cost to displace somebody on each node, so that few nodes need a search.

A bound is a pair (rank of the most important victim, cost) that no victim set on the node can go below. A victim
that holds several devices counts for each of them by its part, so a sum over devices never counts more than it costs.
Where the request would fit on a device if all came down or slept who may, only their ranks and costs bound it; elsewhere
somebody has to end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.placement import device_fits, host_fits
from llmos_operator.scheduler.table import CLAIMS, FREE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import Bools, Ints, NodeTable
    from llmos_operator.scheduler.victim_index import VictimIndex
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.ledger import DeviceState, NodeState

LOWEST: Final = -(1 << 40)  # below every rank: nobody has to go
NEVER: Final = 1 << 60  # displacing cannot help


def lower_bounds(
    table: NodeTable,
    index: VictimIndex,
    rights: Bools,
    ranks: Ints,
    request: Request,
    usable: tuple[Bools, Bools, Bools],
    roomy: Bools,
) -> tuple[Ints, Ints]:
    """Return (rank, cost) of every row; NEVER where displacing cannot help.

    `rights` says which victims may go and `ranks` how important they are. `usable` are (devices of the right kind, of them those that fit now, rows whose
    host fits now), `roomy` devices that would fit if they had the memory.
    """
    kind, fits, host = usable
    if not request.devices:
        return _host_bounds(len(table), index, rights, ranks, host)
    ending, first = index.ends[index.device_victims], index.first_ends[index.device_victims]
    may = rights[index.device_victims]
    chosen = may & first
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
    if (may & ~ending).any():
        evictable |= _lowered(table, index, ranks, request, may & ~ending, roomy, rank, cost)
    rank = np.where(fits, LOWEST, np.where(evictable, rank, NEVER))
    cost = np.where(fits, 0, np.where(evictable, cost, NEVER))
    if request.devices > kind.shape[1]:
        return np.full(len(table), NEVER, np.int64), np.full(len(table), NEVER, np.int64)
    least = np.partition(rank, request.devices - 1, axis=1)[:, : request.devices].max(axis=1)
    cheap = np.partition(cost, request.devices - 1, axis=1)[:, : request.devices]
    return least, np.where(least == NEVER, NEVER, cheap.clip(max=NEVER // table.width).sum(axis=1))


def _lowered(
    table: NodeTable,
    index: VictimIndex,
    ranks: Ints,
    request: Request,
    chosen: Bools,
    roomy: Bools,
    rank: Ints,
    cost: Ints,
) -> Bools:
    """Return the devices that have room once all `chosen` have come down, and put their bounds into `rank` and `cost`."""
    at = (index.device_rows[chosen], index.device_columns[chosen])
    who = index.device_victims[chosen]
    given = np.zeros(roomy.shape, np.int64)
    np.add.at(given, at, index.yields[who])
    enough: Bools = roomy & (given > 0) & (table.device[FREE_BYTES] + given >= request.bytes_per_device)
    least_rank, least_cost = np.full(roomy.shape, NEVER, np.int64), np.full(roomy.shape, NEVER, np.int64)
    np.minimum.at(least_rank, at, ranks[who])
    np.minimum.at(least_cost, at, index.parts[who])
    np.minimum(rank, least_rank, out=rank, where=enough)
    np.minimum(cost, least_cost, out=cost, where=enough)
    return enough


def roomless(request: Request, *, compute: bool) -> Request:
    """Return a request that fits where only memory (with `compute` also compute) is missing."""
    if compute:
        return replace(request, bytes_per_device=0, compute_milli=0)
    return replace(request, bytes_per_device=0)


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
    found = (
        _bound(device, holders.get(device.device.uuid, []), request, overuse)
        for column, device in enumerate(state.devices)
        if columns[column]
    )
    bounds = [bound for bound in found if bound is not None]
    if len(bounds) < request.devices:
        return (NEVER, NEVER)
    return (
        sorted(r for r, _ in bounds)[request.devices - 1],
        sum(sorted(c for _, c in bounds)[: request.devices]),
    )


def _bound(
    device: DeviceState, victims: Sequence[tuple[int, Victim]], request: Request, overuse: int
) -> tuple[int, int] | None:
    """Return the bound of one device, None if displacing those on it cannot help."""
    if device_fits(device, request, overuse):
        return LOWEST, 0
    lower = [(rank, v) for rank, v in victims if not v.ends]
    given = sum(v.given_bytes for _, v in lower)
    sleepers = any(v.sleeping is not None for _, v in lower)
    roomy = device_fits(device, roomless(request, compute=sleepers), overuse)
    if given and roomy and device.headroom_bytes() + given >= request.bytes_per_device:
        return min(r for r, _ in lower), min(v.cost // len(v.claim.devices) for _, v in lower)
    mildest: dict[str, tuple[int, Victim]] = {}
    for rank, victim in victims:
        known = mildest.get(victim.pod.key)
        if victim.ends and (known is None or rank < known[0]):
            mildest[victim.pod.key] = (rank, victim)
    on = list(mildest.values())
    if not on or (request.whole and len(on) < device.claims):
        return None
    ranks = [rank for rank, _ in on]
    parts = [v.cost // len(v.claim.devices) for _, v in on]
    return (max(ranks), sum(parts)) if request.whole else (min(ranks), min(parts))

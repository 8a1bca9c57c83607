"""The search for a rearrangement: where a claimant starts, who moves away from there, and a place for each of them.

Tried in both worlds between checkpoint and rollback: a target is free now, beside those who move, and nobody waits for
it. All who move run on nodes on which the claimant starts; nobody makes way for somebody who makes way. On one node every
set is tried, fewest first, and every device for a share, as far as the limits of `ConsolidationPolicy` go, so up to two
replicas are always; targets are looked for with steps back (`relocation`). Nodes are tried in the order of a lower bound
of the cost.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.bounds import LOWEST, NEVER, lower_bounds
from llmos_operator.scheduler.gang import concerns, fitting
from llmos_operator.scheduler.placement import pick
from llmos_operator.scheduler.preemption import displacing
from llmos_operator.scheduler.relocation import Mover, Relocations, Wanted
from llmos_operator.scheduler.table import CLAIMS
from llmos_operator.scheduler.topology import Domain, Spot
from llmos_operator.scheduler.victims import ENDS, total_cost
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.table import Bools
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim

_DOMAINS: Final = 8  # searched for a gang, most idle devices first
_SETS: Final = 4000  # of replicas of one node


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """Where the claimant starts, and who moves where for it."""

    size: Size
    claims: tuple[Claim, ...]  # of the claimant
    moves: tuple[tuple[Mover, Claim], ...]  # with the place afterwards, in order of pods
    cost: int  # milliseconds of device time


class Rearranging:
    """The searches of one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._movers: dict[int, Mover | None] = {}
        self._relocations = Relocations(attempts)
        self._sets = 0

    def search(
        self, pending: Pending, shape: Shape, unit: Sequence[int], limit: int, most: int
    ) -> Rearrangement | None:
        """Return the cheapest rearrangement of at most `most` replicas that costs less than `limit`, None without one."""
        if len(unit) > 1 and pending.workload.topology.required:
            return None  # each replica in a domain of its own: not looked for
        look = self._for_gang if concerns(pending.workload) else self._for_one
        best: Rearrangement | None = None
        looked_at = set()
        for size, request in shape.options:
            in_question = self._attempts.preemption.large_enough(request).tobytes()
            if not request.devices or (request.whole and in_question in looked_at):
                continue  # the same devices as for a better size: nobody cheaper has to move
            looked_at.add(in_question)
            members = range(pending.workload.members)
            pods = [Wanted(pending, o, member, size, request) for o in unit for member in members]
            best = look(pods, best.cost if best is not None else limit, most) or best
        return best

    def _for_one(self, pods: Sequence[Wanted], limit: int, most: int) -> Rearrangement | None:
        """Return the cheapest rearrangement for one pod: row after row."""
        best: Rearrangement | None = None
        for bound, row in self._promising(pods[0]):
            if bound >= limit or self._exhausted():
                break
            spot = Spot(row, Domain(self._attempts.scene.table.names[row], (row,)))
            found = self._on_row(pods[0], spot, (), limit, most)
            if found is not None:
                best, limit = found, found.cost
        return best

    def _for_gang(self, pods: Sequence[Wanted], limit: int, most: int) -> Rearrangement | None:
        """Return the cheapest rearrangement for all pods of a unit: one domain after another, pod after pod in each."""
        gangs, worlds = self._attempts.gangs, self._attempts.worlds
        table = self._attempts.scene.table
        idle = (table.exists & (table.device[CLAIMS] == 0)).sum(axis=1)
        domains = sorted(
            gangs.map.domains(pods[0].pending.workload.topology.required),
            key=lambda domain: (-int(idle[list(domain.rows)].sum()), domain.name),
        )
        best: Rearrangement | None = None
        for domain in domains[:_DOMAINS]:
            mark = worlds.checkpoint()
            found = self._in(domain, pods, limit, most)
            worlds.rollback(mark)
            if found is not None:
                best, limit = found, found.cost
        return best

    def _in(self, domain: Domain, pods: Sequence[Wanted], limit: int, most: int) -> Rearrangement | None:
        """Place pods in a domain of the later world: where there is room, then where the least has to move for one more."""
        claims: list[Claim] = []
        movers: tuple[Mover, ...] = ()
        rows = [row for _, row in self._promising(pods[0], domain)]
        free = list(domain.rows)
        for wanted in pods:
            claim = self._into_free(wanted, domain, free)
            if claim is None:
                cheapest = self._on_rows(wanted, domain, rows, movers, limit, most)
                if cheapest is None:
                    return None
                for mover, _ in cheapest.moves:
                    if mover not in movers:
                        self._relocations.vacate(mover)
                movers = tuple(mover for mover, _ in cheapest.moves)
                (claim,) = cheapest.claims
                self._attempts.worlds.hold(claim)
            claims.append(claim)
        targets = self._relocations.places(movers) if movers else None
        if targets is None:
            return None
        return Rearrangement(pods[0].size, tuple(claims), targets, self._cost(movers))

    def _into_free(self, wanted: Wanted, domain: Domain, free: list[int]) -> Claim | None:
        """Hold a place for one more pod on the first row of `free` that has room; rows without are taken off."""
        while free:
            claim = self._relocations.hold(wanted, Spot(free[0], domain))
            if claim is not None:
                return claim
            free.pop(0)
        return None

    def _on_rows(
        self,
        wanted: Wanted,
        domain: Domain,
        rows: Sequence[int],
        before: tuple[Mover, ...],
        limit: int,
        most: int,
    ) -> Rearrangement | None:
        best: Rearrangement | None = None
        for row in rows:
            found = self._on_row(wanted, Spot(row, domain), before, limit, most)
            if found is not None:
                best, limit = found, found.cost
        return best

    def _on_row(
        self, wanted: Wanted, spot: Spot, before: tuple[Mover, ...], limit: int, most: int
    ) -> Rearrangement | None:
        """Return the cheapest way to make room for one pod on a row; `before` are those who move already."""
        attempts, request = self._attempts, wanted.request
        movers = self._movers_on(spot.row, wanted.pending, before)
        acceptable = attempts.feasibility.acceptable(displacing(request)).devices[spot.row]
        columns = spot.domain.usable(attempts.reservations.usable(wanted.pending, spot.row, acceptable))
        state = attempts.worlds.later.node(attempts.scene.table.names[spot.row])
        overuse = attempts.policy.overuse_percent
        missing = _missing(state, request, columns, overuse)
        best: Rearrangement | None = None
        for chosen in self._sets_of(movers, most - len(before)):
            everybody = (*before, *chosen)
            if sum(mover.victim.cost for mover in everybody) >= limit or _given(chosen, request) < missing:
                continue
            cost = self._cost(everybody)
            if cost >= limit or not self._allowed(everybody):
                continue
            left = state
            for mover in chosen:
                left = left.vacated(mover.pod.key)
            if pick(left, request, columns, overuse) is not None:
                found = self._try(wanted, spot, everybody, chosen)
                if found is not None:
                    best, limit = Rearrangement(wanted.size, found[0], found[1], cost), cost
        return best

    def _sets_of(self, movers: Sequence[Mover], most: int) -> Iterator[tuple[Mover, ...]]:
        """Yield sets of those who may move, small ones first, as long as the limits allow."""
        here = 0
        for count in range(1, min(most, len(movers)) + 1):
            for chosen in combinations(movers, count):
                here += 1
                self._sets += 1
                if here > _SETS or self._exhausted():
                    return
                yield chosen

    def _try(
        self, wanted: Wanted, spot: Spot, everybody: tuple[Mover, ...], chosen: tuple[Mover, ...]
    ) -> tuple[tuple[Claim], tuple[tuple[Mover, Claim], ...]] | None:
        """Return the claimant's place and everybody's targets if `chosen` move, too, with everything undone."""
        worlds = self._attempts.worlds
        mark = worlds.checkpoint()
        for mover in chosen:
            self._relocations.vacate(mover)
        vacated = worlds.checkpoint()
        targets = None
        while (claim := self._relocations.hold(wanted, spot)) is not None:
            targets = self._relocations.places(everybody)
            worlds.rollback(vacated)
            if (
                targets is not None
                or wanted.request.whole
                or wanted.request.devices != 1
                or self._exhausted()
            ):
                break  # which of a node's devices makes no difference, or is left to `pick`
            spot = self._without(spot, claim.devices[0])
        worlds.rollback(mark)
        return ((claim,), targets) if claim is not None and targets is not None else None

    def _without(self, spot: Spot, uuid: str) -> Spot:
        """Return a row's spot without one of its devices."""
        table, domain = self._attempts.scene.table, spot.domain
        columns = np.ones(table.exists.shape[1], bool) if domain.columns is None else domain.columns.copy()
        devices = self._attempts.worlds.later.node(table.names[spot.row]).devices
        columns[next(column for column, one in enumerate(devices) if one.uuid == uuid)] = False
        return Spot(spot.row, Domain(domain.name, domain.rows, columns))

    def _exhausted(self) -> bool:
        limits = self._attempts.policy.consolidation
        return (
            self._sets >= limits.sets
            or self._relocations.tries >= limits.tries
            or self._attempts.preemption.out_of_time
        )

    # -- who may move ---------------------------------------------------------------------------------------

    def _promising(self, wanted: Wanted, within: Domain | None = None) -> list[tuple[int, int]]:
        """Return (lower bound of the cost, row) of rows worth a search, cheapest first."""
        attempts, index = self._attempts, self._attempts.preemption.index
        table, asked = attempts.scene.table, displacing(wanted.request)
        rights = index.ends & (index.priorities <= wanted.pending.priority)
        usable = attempts.feasibility.parts(asked)
        rank, cost = lower_bounds(
            table, index, rights, np.zeros_like(index.priorities), asked, usable, np.zeros_like(usable[1])
        )
        for name in attempts.worlds.differing:  # the bounds are those of the present world
            rank[table.row_of[name]], cost[table.row_of[name]] = LOWEST, 0
        worth = attempts.feasibility.acceptable(asked).nodes & (rank < NEVER)
        worth &= np.isin(np.arange(len(table)), index.rows[rights])
        if within is not None:
            worth &= np.isin(np.arange(len(table)), within.rows)
        rows = np.flatnonzero(worth)
        order = np.lexsort((rows, cost[rows]))[: attempts.policy.consolidation.nodes]
        return [(int(cost[row]), int(row)) for row in rows[order]]

    def _movers_on(self, row: int, pending: Pending, before: Sequence[Mover]) -> list[Mover]:
        """Return who may be moved from a row, cheapest first."""
        index, leaving = self._attempts.preemption.index, self._attempts.worlds.leaving
        known = {mover.pod.key for mover in before}
        found = []
        for number in index.on_row(row):
            victim = index.victim(number)
            if victim.depth != ENDS or victim.priority > pending.priority or victim.pod.key in known:
                continue
            if number not in self._movers:
                self._movers[number] = self._relocations.mover(victim)
            mover = self._movers[number]
            if mover is not None and victim.pod.key not in leaving:
                found.append(mover)
        return sorted(found, key=lambda mover: mover.victim.order)

    def _cost(self, movers: Sequence[Mover]) -> int:
        preemption = self._attempts.preemption
        outage = self._attempts.policy.preemption.outage_seconds
        return total_cost((mover.victim for mover in movers), outage, preemption.gone)

    def _allowed(self, movers: Sequence[Mover]) -> bool:
        """Return whether disruption budgets allow that all of them move."""
        spent = Counter(key for mover in movers for key in mover.victim.budgets)
        return all(self._attempts.preemption.index.budgets[key] >= count for key, count in spent.items())


def _missing(state: NodeState, request: Request, columns: Bools, overuse: int) -> int:
    """Return how many devices a row lacks, or for a share how many bytes its roomiest device does. 0: look closely."""
    if request.whole:
        return request.devices - fitting(state, request, columns, overuse)
    room = (d.headroom_bytes() for column, d in enumerate(state.devices) if columns[column])
    return request.bytes_per_device - max(room, default=0)


def _given(movers: Sequence[Mover], request: Request) -> int:
    """Return an upper bound of what leaving gives, in the units of `_missing`."""
    claims = [mover.victim.claim for mover in movers]
    if request.whole:
        return sum(len(claim.devices) for claim in claims)
    if any(claim.sharing is not Sharing.SHARED for claim in claims):
        return sys.maxsize
    return sum(claim.held_bytes for claim in claims)

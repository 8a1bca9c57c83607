"""Moves running replicas together so that a claim fits that has room in total, but nowhere in one place.

A rearrangement is found as a whole: whom to take from where the claimant starts, and a place that is free for each of
them, so that everybody has one afterwards. It is tried in both worlds between checkpoint and rollback: a target is free
now, beside those who move, and nobody waits for it. All who move run on nodes on which the claimant starts; nobody makes
way for somebody who makes way. On one node every set is tried, fewest first, as far as the limits of
`ConsolidationPolicy` go, so up to two replicas always are; targets are looked for with steps back.

A move costs what displacing costs (`victims`: reload, work since the last checkpoint, an outage), and is made only for less than
what it gains: the loss of the evictions it spares, or else the device time that the claimant's waiting wastes,

    gain = devices of the claimant x (expected start - now, where `vacancy` knows one; else time waited so far)

Who does not know how long it will take pays when waiting has cost as much (the ski rental rule: never more than twice what
was best in hindsight; Karlin, Manasse, Rudolph and Sleator 1988).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import failure, wording
from llmos_operator.scheduler.bounds import LOWEST, NEVER, lower_bounds
from llmos_operator.scheduler.ends import NEVER as UNKNOWN
from llmos_operator.scheduler.gang import concerns
from llmos_operator.scheduler.placement import pick
from llmos_operator.scheduler.plan import Move
from llmos_operator.scheduler.preemption import displacing
from llmos_operator.scheduler.quota import charge
from llmos_operator.scheduler.relocation import Mover, Relocations
from llmos_operator.scheduler.table import CLAIMS, FREE_BYTES, FREE_MILLI
from llmos_operator.scheduler.topology import Domain, Spot
from llmos_operator.scheduler.vacancy import Search
from llmos_operator.scheduler.victims import total_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.attempt import Attempts, Result, Shape
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.state.types import Claim

_DOMAINS: Final = 8  # searched for a gang, most idle devices first


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """Where the claimant starts, and who moves where for it."""

    size: Size
    claims: tuple[Claim, ...]  # of the claimant
    moves: tuple[tuple[Mover, Claim], ...]  # with the place afterwards, in order of pods
    cost: int  # milliseconds of device time


class Consolidation:
    """The search for rearrangements in one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._movers: dict[int, Mover | None] = {}
        self._relocations = Relocations(attempts)
        self._moved = 0  # in this plan
        self._searches = 0
        self._tries = 0

    def left(self) -> int:
        """Return how many replicas may still be moved within the hour."""
        attempts, limits = self._attempts, self._attempts.policy.consolidation
        if not limits.part:
            return 0
        begun = attempts.now - limits.window
        moved = sum(pod.claim is not None and pod.claim.moved_at >= begun for pod in attempts.snapshot.moved)
        under_way = sum(target.until >= attempts.now for target in attempts.snapshot.targets.values())
        most = max(1, int(sum(attempts.snapshot.standing.values()) * limits.part))
        return most - moved - under_way - self._moved

    def move(
        self, pending: Pending, shape: Shape, unit: Sequence[int], result: Result, evicting: int | None
    ) -> Failure | None:
        """Move others for the replicas of a unit and hold all places; None if that is not worth it.

        `evicting` is what the cheapest evictions that help would cost, None if none would.
        """
        if not self._sensible(pending, shape, unit):
            return None
        self._searches += 1
        with self._attempts.preemption.searching():
            limit = self.worth(pending, shape, unit) if evicting is None else evicting + 1
            found = self.search(pending, shape, unit, limit, self.left())
        return self._carry_out(pending, found, result) if found is not None else None

    def _sensible(self, pending: Pending, shape: Shape, unit: Sequence[int]) -> bool:
        """Return whether a search could find anything; asked before everybody who runs is looked at."""
        attempts, limits = self._attempts, self._attempts.policy.consolidation
        if self._searches >= limits.searches or attempts.preemption.out_of_time or self.left() <= 0:
            return False
        if not attempts.policy.preemption.enabled or not attempts.snapshot.may_preempt(pending.workload):
            return False
        if not any(priority <= pending.priority for _, priority in attempts.snapshot.standing):
            return False
        if not attempts.worlds.later.tree.fits(pending.queue, pending.least_charge()):
            return False
        return any(self._spacious(request, len(unit) * pending.workload.members) for _, request in shape.options)

    def _spacious(self, request: Request, pods: int) -> bool:
        """Return whether enough is free in total, anywhere: those who move take as much as they leave."""
        table = self._attempts.scene.table
        devices = request.devices * pods
        free_milli, free_bytes = (
            int(table.device[plane][table.exists].sum()) for plane in (FREE_MILLI, FREE_BYTES)
        )
        return devices > 0 and free_milli >= request.compute_milli * devices and free_bytes > 0

    def worth(self, pending: Pending, shape: Shape, unit: Sequence[int]) -> int:
        """Return what it is worth that a unit starts now, in milliseconds of device time."""
        attempts = self._attempts
        seconds = max(0.0, attempts.now - pending.workload.created_at)
        soonest = Search(attempts, attempts.reservations.ends, pending, shape, unit).soonest()
        if soonest is not None and soonest.start < UNKNOWN:
            seconds = max(0.0, soonest.start - attempts.now)
        milli = min(failure.least_milli(attempts, request) for _, request in shape.options)
        return round(milli * len(unit) * pending.workload.members * seconds)

    # -- the search -----------------------------------------------------------------------------------------

    def search(
        self, pending: Pending, shape: Shape, unit: Sequence[int], limit: int, most: int
    ) -> Rearrangement | None:
        """Return the cheapest rearrangement of at most `most` replicas that costs less than `limit`, None without one."""
        together = concerns(pending.workload)
        if len(unit) > 1 and pending.workload.topology.required:
            return None  # each replica in a domain of its own: not looked for
        most = min(most, self._attempts.policy.consolidation.replicas)
        best: Rearrangement | None = None
        looked_at = set()
        for size, request in shape.options:
            in_question = self._attempts.preemption.large_enough(request).tobytes()
            if not request.devices or (request.whole and in_question in looked_at):
                continue  # the same devices as for a better size: nobody cheaper has to move
            looked_at.add(in_question)
            bound = best.cost if best is not None else limit
            look = self._for_gang if together else self._for_one
            found = look(pending, size, request, unit, bound, most)
            best = found or best
        return best

    def _for_one(
        self, pending: Pending, size: Size, request: Request, unit: Sequence[int], limit: int, most: int
    ) -> Rearrangement | None:
        best: Rearrangement | None = None
        for bound, row in self._promising(pending, request):
            if bound >= limit or self._exhausted():
                break
            domain = Domain(self._attempts.scene.table.names[row], (row,))
            found = self._on_row(pending, unit[0], 0, size, request, Spot(row, domain), (), limit, most)
            if found is not None:
                best, limit = found, found.cost
        return best

    def _for_gang(
        self, pending: Pending, size: Size, request: Request, unit: Sequence[int], limit: int, most: int
    ) -> Rearrangement | None:
        """Return the cheapest rearrangement for all pods of a unit: one domain after another, pod after pod in each."""
        gangs, worlds = self._attempts.gangs, self._attempts.worlds
        table = self._attempts.scene.table
        idle = (table.exists & (table.device[CLAIMS] == 0)).sum(axis=1)
        domains = sorted(
            gangs.map.domains(pending.workload.topology.required),
            key=lambda domain: (-int(idle[list(domain.rows)].sum()), domain.name),
        )
        best: Rearrangement | None = None
        for domain in domains[:_DOMAINS]:
            mark = worlds.checkpoint()
            found = self._in(domain, pending, size, request, unit, limit, most)
            worlds.rollback(mark)
            if found is not None:
                best, limit = found, found.cost
        return best

    def _in(
        self,
        domain: Domain,
        pending: Pending,
        size: Size,
        request: Request,
        unit: Sequence[int],
        limit: int,
        most: int,
    ) -> Rearrangement | None:
        """Place the pods of a unit in a domain of the later world: where there is room, then where least has to move."""
        claims: list[Claim] = []
        movers: list[Mover] = []
        found: Rearrangement | None = None
        members = pending.workload.members
        rows = [row for _, row in self._promising(pending, request, domain)]
        free = [*domain.rows]
        for ordinal, member in ((ordinal, member) for ordinal in unit for member in range(members)):
            claim = None
            while free and claim is None:
                claim = self._relocations.hold(pending, ordinal, member, size, request, Spot(free[0], domain))
                if claim is None:
                    free.pop(0)
            if claim is not None:
                claims.append(claim)
                continue
            cheapest: Rearrangement | None = None
            for row in rows:
                bound = cheapest.cost if cheapest is not None else limit
                spot = Spot(row, domain)
                one = self._on_row(pending, ordinal, member, size, request, spot, tuple(movers), bound, most)
                cheapest = one or cheapest
            if cheapest is None or self._exhausted():
                return None
            known = {mover.pod.key for mover in movers}
            for mover, _ in cheapest.moves:
                if mover.pod.key not in known:
                    movers.append(mover)
                    self._relocations.vacate(mover)
            claims += cheapest.claims
            self._attempts.worlds.hold(cheapest.claims[0])
            found = cheapest
        if found is None:
            return None  # there is room for all of them: nobody has to move
        targets = self._relocations.places(movers)
        if targets is None:
            return None
        return Rearrangement(size, tuple(claims), targets, found.cost)

    def _on_row(
        self,
        pending: Pending,
        ordinal: int,
        member: int,
        size: Size,
        request: Request,
        spot: Spot,
        before: tuple[Mover, ...],
        limit: int,
        most: int,
    ) -> Rearrangement | None:
        """Return the cheapest way to make room for one pod on a row; `before` are those who move already."""
        attempts = self._attempts
        movers = self._movers_on(spot.row, pending, before)
        name = attempts.scene.table.names[spot.row]
        acceptable = attempts.feasibility.acceptable(displacing(request)).devices[spot.row]
        columns = spot.domain.usable(attempts.reservations.usable(pending, spot.row, acceptable))
        state = attempts.worlds.later.node(name)
        best: Rearrangement | None = None
        sets = 0
        for count in range(1, min(most - len(before), len(movers)) + 1):
            if self._cost((*before, *movers[:count])) >= limit:
                break  # the cheapest of that many; an outage more makes others dearer still
            for chosen in combinations(movers, count):
                sets += 1
                if sets > attempts.policy.consolidation.sets or self._exhausted():
                    return best
                cost = self._cost((*before, *chosen))
                if cost >= limit or not self._allowed((*before, *chosen)):
                    continue
                left = state
                for mover in chosen:
                    left = left.vacated(mover.pod.key)
                if pick(left, request, columns, attempts.policy.overuse_percent) is None:
                    continue
                self._tries += 1
                found = self._try(pending, ordinal, member, size, request, spot, before, chosen)
                if found is not None:
                    best = Rearrangement(size, found[0], found[1], cost)
                    limit = cost
        return best

    def _try(
        self,
        pending: Pending,
        ordinal: int,
        member: int,
        size: Size,
        request: Request,
        spot: Spot,
        before: tuple[Mover, ...],
        chosen: tuple[Mover, ...],
    ) -> tuple[tuple[Claim, ...], tuple[tuple[Mover, Claim], ...]] | None:
        """Return the claimant's place and everybody's targets if a set moves, with everything undone."""
        worlds = self._attempts.worlds
        mark = worlds.checkpoint()
        for mover in chosen:
            self._relocations.vacate(mover)
        claim = self._relocations.hold(pending, ordinal, member, size, request, spot)
        targets = self._relocations.places((*before, *chosen)) if claim is not None else None
        worlds.rollback(mark)
        return ((claim,), targets) if claim is not None and targets is not None else None

    def _exhausted(self) -> bool:
        return (
            self._tries + self._relocations.tries >= self._attempts.policy.consolidation.tries
            or self._attempts.preemption.out_of_time
        )

    # -- who may move ---------------------------------------------------------------------------------------

    def _promising(
        self, pending: Pending, request: Request, within: Domain | None = None
    ) -> list[tuple[int, int]]:
        """Return (lower bound of the cost, row) of rows worth a search, cheapest first."""
        attempts, index = self._attempts, self._attempts.preemption.index
        table, asked = attempts.scene.table, displacing(request)
        rights = self._rights(pending)
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

    def _rights(self, pending: Pending) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        index = self._attempts.preemption.index
        rights: np.ndarray[tuple[int], np.dtype[np.bool_]] = index.ends & (index.priorities <= pending.priority)
        return rights

    def _movers_on(self, row: int, pending: Pending, before: Sequence[Mover]) -> list[Mover]:
        """Return who may be moved from a row, cheapest first."""
        index, leaving = self._attempts.preemption.index, self._attempts.worlds.leaving
        known = {mover.pod.key for mover in before}
        found = []
        for number in index.on_row(row):
            victim = index.victims[number]
            if not index.ends[number] or victim.priority > pending.priority or victim.pod.key in known:
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

    # -- what follows ---------------------------------------------------------------------------------------

    def _carry_out(self, pending: Pending, found: Rearrangement, result: Result) -> Failure:
        attempts = self._attempts
        nodes = list(dict.fromkeys(claim.node for claim in found.claims))
        for mover, claim in found.moves:
            attempts.preemption.displaced(mover.victim)
            result.moves.append(
                Move(
                    pod=mover.pod.key,
                    pod_uid=mover.pod.uid,
                    node=mover.pod.node,
                    workload=claim.workload,
                    workload_uid=claim.workload_uid,
                    target=claim,
                    cost=mover.victim.cost,
                    reason=Reason.MOVED,
                    explanation=wording.moved(pending, mover.victim, claim),
                    beneficiary=pending.workload.key,
                )
            )
        for claim in (*found.claims, *(claim for _, claim in found.moves)):
            attempts.worlds.hold(claim)
        self._moved += len(found.moves)
        attempts.forget_failures()
        return failure.moving(found.moves, nodes, found.size)

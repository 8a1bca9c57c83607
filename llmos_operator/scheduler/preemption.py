"""Whom to displace so that a claim fits: the mildest, then cheapest minimal set, found by trying it out.

Every set is tried in the later world between checkpoint and rollback, so a proposal is known to work: node, devices,
host and quota. Preferred is the set whose most important victim ranks lowest (who comes down before who ends, what
another queue borrowed before own work, then by priority), then the smallest expected loss, then the fewest victims,
then the better precision, then the first node; of equals, work of the queue that is furthest beyond its share. On one
node the search is exact (branch and bound from a greedy start: remove until it fits, add back what was not needed) up
to `PreemptionLimits.states` sets; nodes are tried in the order of a lower bound of their cost, so most of them are
never tried.

Who may be displaced: in the same queue, strictly lower priority; in another queue, work that is beyond its nominal
share when the claimant stays within its own (reclaim), or strictly lower priority where no quota applies at all. What
is inside its nominal share is never taken by another queue. A victim that comes down makes room on devices, not in a
quota: what it gave up is given back to it when there is room again. For gangs only endings are tried.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.bounds import LOWEST, NEVER, lower_bound, lower_bounds, roomless
from llmos_operator.scheduler.placement import pick
from llmos_operator.scheduler.power import NO_RACK, asked_on
from llmos_operator.scheduler.quota import Amount
from llmos_operator.scheduler.search import Pool, cheapest
from llmos_operator.scheduler.table import CAPACITY
from llmos_operator.scheduler.victim_index import VictimIndex
from llmos_operator.scheduler.victims import ASLEEP, least_outage
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from llmos_operator.scheduler.budget import Budget
    from llmos_operator.scheduler.feasibility import Feasibility
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.table import Bools, Ints
    from llmos_operator.scheduler.topology import Domain
    from llmos_operator.scheduler.victim_index import Roll
    from llmos_operator.scheduler.victims import Replica, Victim
    from llmos_operator.scheduler.world import Worlds
    from llmos_operator.state.ledger import DeviceState
    from llmos_operator.state.snapshot import Snapshot

_OWN: Final = 1 << 34  # added to the priority of work that is not borrowed: it ranks after all that is
# Taken off the rank by grade: who comes down ranks before who does so at a narrower format, that before every replica a
# workload can do without, or that borrows, that before everybody who sleeps, and that before everybody who ends.
_MILDER: Final = (1 << 39, 1 << 38, 1 << 37, 1 << 36, 0)
_REMOTE_VICTIMS: Final = 16  # considered for quota alone, beside those on the node


@dataclass(frozen=True, slots=True)
class Proposal:
    """A set of victims after which the claimant fits."""

    size: Size
    request: Request
    node: str
    victims: tuple[Victim, ...]
    rank: int  # of the most important victim
    cost: int

    def key(self, place: int) -> tuple[int, int, int, int]:
        """Return what proposals are compared by; `place` is the size's place in the order of preference."""
        return (self.rank, self.cost, len(self.victims), place)


class Preemption:
    """The search for victims in one plan. What it proposes has not happened until the caller applies it."""

    def __init__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        now: float,
        worlds: Worlds,
        scene: Scene,
        feasibility: Feasibility,
        budget: Budget,
        roll: Roll | None = None,
    ) -> None:
        """`roll` is what the last plan knew of victims; it changes the cost of a search, never what it finds."""
        self._roll = roll
        self._snapshot = snapshot
        self._policy = policy
        self._now = now
        self._worlds = worlds
        self._scene = scene
        self._feasibility = feasibility
        self._budget = budget
        self._index: VictimIndex | None = None
        self._searches = 0
        self._gone: set[Replica] = set()  # displaced in this plan
        # Narrows the devices of a row to those that are not kept from the claimant (`reservation`).
        self.usable: Callable[[Pending, int, Bools], Bools] = lambda _pending, _row, columns: columns

    @property
    def index(self) -> VictimIndex:
        """Everybody who may be displaced; made when first asked for."""
        if self._index is None:
            self._index = VictimIndex(
                self._snapshot,
                self._policy,
                self._now,
                self._scene.table.row_of,
                self._worlds.later.tree,
                self._roll,
            )
        return self._index

    def searching(self) -> AbstractContextManager[None]:
        """Count the time until the end of the block as search."""
        return self._budget.searching()

    @property
    def out_of_time(self) -> bool:
        """Whether the time for searches is over."""
        return self._budget.search_exhausted()

    @property
    def gone(self) -> set[Replica]:
        """Replicas displaced in this plan."""
        return self._gone

    @property
    def exhausted(self) -> bool:
        """Whether this plan has searched as often as the policy allows."""
        return self._searches >= self._policy.preemption.searches

    def begin(self, pending: Pending) -> bool:
        """Return whether a search for the claimant makes sense, and count it if so."""
        if self.exhausted or not self._policy.preemption.enabled:
            return False
        if not self._snapshot.may_preempt(pending.workload) or not self._anybody(pending):
            return False
        self._searches += 1
        return True

    def find(self, pending: Pending, options: Sequence[tuple[Size, Request]]) -> Proposal | None:
        """Return the best proposal over all sizes and nodes, None if displacing cannot help."""
        if not self.begin(pending):
            return None
        with self.searching():
            return self.search(pending, options)

    def search(
        self, pending: Pending, options: Sequence[tuple[Size, Request]], within: Domain | None = None
    ) -> Proposal | None:
        """Return the best proposal for one pod in a domain (anywhere without one), None if displacing cannot help."""
        everybody, ranks = self._rights(pending)
        best: tuple[tuple[int, int, int, int], Proposal] | None = None
        looked_at: list[Bools] = []
        for place, (size, request) in enumerate(options):
            rights = everybody
            if request.whole or within is not None:
                rights = everybody & self.index.ends
            large_enough = self.large_enough(request)
            if best is not None and request.whole and any((large_enough == m).all() for m in looked_at):
                continue  # the same devices in question as for a better size: nobody cheaper has to go
            looked_at.append(large_enough)
            for bound, row in self._promising(pending, request, rights, ranks, within):
                if self._budget.search_exhausted() or (best is not None and _hopeless(bound, best[0])):
                    break
                if best is not None and _hopeless(self._with_outage(bound, row, rights), best[0]):
                    continue
                found = self._on_row(pending, size, request, row, rights, ranks, within)
                if found is not None and (best is None or found.key(place) < best[0]):
                    best = (found.key(place), found)
        return best[1] if best is not None else None

    def in_turn(self, pending: Pending, size: Size, request: Request, within: Domain) -> Iterable[Proposal]:
        """Yield a proposal for each row of a domain in the order of its lower bound, as things stand when it is asked for.

        For one pod after another of a large gang, where seeking the best set on the best row for each would take minutes:
        the greedy set, minimal but not always the cheapest.
        """
        rights, ranks = self._rights(pending)
        rights = rights & self.index.ends
        for _, row in self._promising(pending, request, rights, ranks, within):
            if self._budget.search_exhausted():
                return
            found = self._on_row(pending, size, request, row, rights, ranks, within, states=0)
            if found is not None:
                yield found

    def _anybody(self, pending: Pending) -> bool:
        """Return whether anybody at all stands where the claimant may take from; asked before an index is made."""
        for queue, priority in self._snapshot.standing:
            rule = self._rule(pending, queue)
            if rule is not None and (not rule[1] or priority < pending.priority):
                return True
        return False

    def displaced(self, victim: Victim) -> None:
        """Take note that a victim goes or comes down: it spends its disruption budgets and is no such victim any more."""
        if victim.asked_bytes:
            self._worlds.lower(victim.pod, victim.asked_bytes)
            return
        for key in victim.budgets:
            self.index.budgets[key] -= 1
        self._gone.add(victim.replica)
        if victim.sleeping is None:
            self._worlds.leave(victim.pod)
            return
        self._worlds.sleep(victim.pod, victim.sleeping)
        node = victim.pod.node
        self._scene.table.write(self._scene.table.row_of[node], self._worlds.now.node(node))

    def checkpoint(self) -> tuple[dict[str, int], set[Replica]]:
        """Return a mark to roll back to; the worlds have marks of their own."""
        return dict(self.index.budgets), set(self._gone)

    def rollback(self, mark: tuple[dict[str, int], set[Replica]]) -> None:
        """Take back what `displaced` was told since the mark."""
        self.index.budgets, self._gone = dict(mark[0]), set(mark[1])

    def _rights(self, pending: Pending) -> tuple[Bools, Ints]:
        """Return which victims of the index the claimant may displace as things stand, and their ranks."""
        index = self.index
        lower = index.priorities < pending.priority
        rights, ranks = np.zeros(len(index), np.bool_), index.priorities + _OWN
        for number, queue in enumerate(index.queue_names):
            rule = self._rule(pending, queue)
            if rule is None:
                continue
            of_queue = index.queues == number
            rights |= of_queue & (lower if rule[1] else True)
            if rule[0] is Reason.RECLAIMED:
                ranks[of_queue] -= _OWN
        ranks -= np.array(_MILDER, np.int64)[index.grades]
        return rights, ranks

    def large_enough(self, request: Request) -> Bools:
        """Return the devices that could hold the request once they are idle."""
        large: Bools = self._scene.table.fixed[CAPACITY] >= request.bytes_per_device
        return large & self._feasibility.acceptable(displacing(request)).devices

    def _rule(self, pending: Pending, queue: str) -> tuple[Reason, bool] | None:
        """Return (reason, only lower priorities) by which work of `queue` may be displaced, None if it may not."""
        own, tree = self._snapshot.queues.get(pending.queue), self._worlds.later.tree
        if queue == pending.queue:
            return (Reason.PREEMPTED, True) if own is None or own.preempt_within else None
        if tree.unlimited(queue):
            return (Reason.PREEMPTED, True)
        if own is None or own.reclaim == "Never" or not tree.borrows(queue):
            return None
        if not tree.within_nominal(pending.queue, pending.least_charge()):
            return None
        return (Reason.RECLAIMED, own.reclaim == "LowerPriority")

    def outranks(self, pending: Pending, queue: str, priority: int) -> bool:
        """Return whether the claimant may displace work of a queue for its lower priority alone."""
        if not self._policy.preemption.enabled or priority >= pending.priority:
            return False
        rule = self._rule(pending, queue)
        return (
            rule is not None and rule[0] is Reason.PREEMPTED and self._snapshot.may_preempt(pending.workload)
        )

    def right(self, pending: Pending, victim: Victim) -> Reason | None:
        """Return by what right the claimant may displace the victim as things stand, None without any."""
        if victim.claim.workload_uid == pending.workload.uid or victim.pod.key in self._worlds.leaving:
            return None
        if not victim.ends and (
            victim.pod.key in self._worlds.dozing
            or (victim.asked_bytes and victim.pod.key in self._worlds.lowering)
        ):
            return None
        if victim.sleeping is not None and not self._worlds.has_beds_for(victim.pod, victim.sleeping):
            return None
        rule = self._rule(pending, victim.claim.queue)
        if rule is None or (rule[1] and victim.priority >= pending.priority):
            return None
        return rule[0]

    def _promising(
        self, pending: Pending, request: Request, rights: Bools, ranks: Ints, within: Domain | None
    ) -> Iterable[tuple[tuple[int, int], int]]:
        """Return (lower bound of (rank, cost), row) of rows worth a search, most promising first."""
        request = displacing(request)
        table, nodes = self._scene.table, self._feasibility.acceptable(request).nodes
        usable = self._feasibility.parts(request)
        # Who sleeps gives up its compute, too.
        sleepers = bool((rights & (self.index.depths == ASLEEP)).any())
        roomy = self._feasibility.parts(roomless(request, compute=sleepers))[1]
        rank, cost = lower_bounds(table, self.index, rights, ranks, request, usable, roomy)
        for name in self._worlds.differing:
            row = table.row_of[name]
            victims = [(int(ranks[i]), v) for i, v in self._on(row, rights, pending)]
            overuse = self._policy.overuse_percent
            state = self._worlds.later.node(name)
            rank[row], cost[row] = lower_bound(state, victims, request, usable[0][row], overuse)
        worth = nodes & (rank < NEVER)
        if within is not None:
            worth &= np.isin(np.arange(len(table)), within.rows)
        if self._worlds.later.tree.fits(pending.queue, pending.least_charge()):
            worth &= self._reached(self.index.rows[rights])
        rows = np.flatnonzero(worth)
        order = np.lexsort((rows, cost[rows], rank[rows]))[: self._policy.preemption.nodes]
        return [((int(rank[row]), int(cost[row])), int(row)) for row in rows[order]]

    def _with_outage(self, bound: tuple[int, int], row: int, rights: Bools) -> tuple[int, int]:
        """Return the bound of a row with what the mildest outage there costs, where somebody there has to go."""
        rank, cost = bound
        if rank <= LOWEST:
            return bound
        seconds = self._policy.preemption.outage_seconds
        there = (self.index.victim(i) for i in self.index.on_row(row) if rights[i])
        return rank, cost + min((least_outage(v, seconds, self._gone) for v in there), default=0)

    def _reached(self, rows: Ints) -> Bools:
        """Return the rows where the leaving of somebody on `rows` could help: there, and in racks with a power budget."""
        racks = self._scene.racks
        reached: Bools = np.isin(np.arange(len(self._scene.table)), rows)
        if racks is not None:
            reached |= np.isin(racks.number, racks.number[rows]) & (racks.number != NO_RACK)
        return reached

    def _on(self, row: int, rights: Bools, pending: Pending) -> list[tuple[int, Victim]]:
        """Return the victims on a row that may still be displaced, with their places in the index."""
        found = ((i, self.index.victim(i)) for i in self.index.on_row(row) if rights[i])
        return [(i, victim) for i, victim in found if self.right(pending, victim) is not None]

    def _on_row(
        self,
        pending: Pending,
        size: Size,
        request: Request,
        row: int,
        rights: Bools,
        ranks: Ints,
        within: Domain | None,
        states: int | None = None,
    ) -> Proposal | None:
        later, name = self._worlds.later, self._scene.table.names[row]
        columns = self.usable(pending, row, self._feasibility.acceptable(displacing(request)).devices[row])
        if within is not None:
            columns = within.usable(columns)
        overuse = self._policy.overuse_percent

        def fits() -> bool:
            devices = pick(later.node(name), request, columns, overuse)
            if devices is None:
                return False
            if asked_on(later.node(name), request) > later.rack_room(name):
                return False
            amount = charge_of(request, devices)
            borrowed = any(_borrowed(pool.rank(v), v) for v in pool.gone)
            if borrowed and not later.tree.within_nominal(pending.queue, amount):
                return False  # what others borrowed is taken back for the queue's own share only
            return later.tree.fits(pending.queue, amount)

        victims = [*self._on(row, rights, pending), *self._elsewhere(pending, request, row, rights, ranks)]
        rank_of = {victim.key: int(ranks[i]) for i, victim in victims}

        def rank(victim: Victim) -> int:
            known = rank_of.get(victim.key)
            if known is None:
                place = self.index.place_of(victim.pod, victim.depth)
                known = rank_of[victim.key] = int(ranks[place]) if place is not None else NEVER
            return known

        uids = {v.claim.workload_uid for _, v in victims} if self._gone else set()
        pool = Pool(
            later,
            sorted((v for _, v in victims), key=lambda v: (rank_of[v.key], *v.order)),
            dict(self.index.budgets),
            rank,
            lambda v: self.right(pending, v) is not None,
            fits,
            self._policy.preemption.outage_seconds,
            self._policy.preemption.states if states is None else states,
            self.index.company,
            frozenset(replica for replica in self._gone if replica[0] in uids),
        )
        found = cheapest(pool)
        if not found:
            return None
        return Proposal(size, request, name, found, max(map(rank, found)), pool.cost(list(found)))

    def _elsewhere(
        self, pending: Pending, request: Request, row: int, rights: Bools, ranks: Ints
    ) -> list[tuple[int, Victim]]:
        """Return victims on other rows whose leaving would give quota, or power of the rack, if that is what is missing."""
        index, later, name = self.index, self._worlds.later, self._scene.table.names[row]
        may = rights & index.ends & (index.rows != row)
        if later.tree.fits(pending.queue, pending.least_charge()):
            racks = self._scene.racks
            if racks is None or asked_on(later.node(name), request) <= later.rack_room(name):
                return []
            may &= racks.number[index.rows] == racks.number[row]
        others = ((int(i), index.victim(int(i))) for i in np.flatnonzero(may))
        allowed = ((i, v) for i, v in others if self.right(pending, v) is not None)
        return heapq.nsmallest(_REMOTE_VICTIMS, allowed, key=lambda one: (int(ranks[one[0]]), *one[1].order))


def charge_of(request: Request, devices: tuple[DeviceState, ...]) -> Amount:
    """Return what quota would be charged for the request on these devices."""
    if request.whole:
        return Amount(sum(d.device.part_milli for d in devices), sum(d.device.memory_bytes for d in devices))
    milli = sum(
        max(request.compute_milli, -(-request.bytes_per_device * FULL_MILLI // max(1, d.device.memory_bytes)))
        for d in devices
    )
    return Amount(milli, request.bytes_per_device * len(devices))


def _borrowed(rank: int, victim: Victim) -> bool:
    """Return whether a victim's rank is that of work beyond its queue's share."""
    return rank + _MILDER[victim.grade] < _OWN >> 1


def displacing(request: Request) -> Request:
    """Return the request as one for which others have to leave: it needs fresh telemetry."""
    return replace(request, constraints=replace(request.constraints, displacing=True))


def _hopeless(bound: tuple[int, int], best: tuple[int, int, int, int]) -> bool:
    return bound > best[:2] or (bound == best[:2] and best[2] <= 1)

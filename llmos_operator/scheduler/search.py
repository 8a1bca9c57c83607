"""The exact search on one node: the cheapest set of victims after which something fits."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.scheduler.victims import total_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llmos_operator.scheduler.victims import Replica, Victim
    from llmos_operator.scheduler.world import World


@dataclass(slots=True)
class Pool:
    """Victims to choose from, cheapest of the lowest rank first, and the world to try them in."""

    world: World
    victims: list[Victim]
    budgets: dict[str, int]  # disruptions left by budget
    rank: Callable[[Victim], int]  # importance; what is displaced first has the lowest
    may_go: Callable[[Victim], bool]  # as the world stands
    fits: Callable[[], bool]  # as the world stands
    outage_seconds: float
    limit: int  # sets to try
    company: Callable[[Victim, set[Replica]], list[Victim] | None]  # who goes with a victim, itself first
    before: frozenset[Replica] = frozenset()  # replicas displaced earlier in the plan
    tried: int = field(default=0)
    gone: list[Victim] = field(default_factory=list)  # in the set that is being tried, with their company
    _groups: list[list[Victim]] = field(default_factory=list)  # of `gone`, one for each victim taken

    def cost(self, chosen: list[Victim]) -> int:
        """Return the cost of displacing all of `chosen`."""
        return total_cost(self.closure(chosen), self.outage_seconds, self.before)

    def closure(self, chosen: Iterable[Victim]) -> list[Victim]:
        """Return everybody who goes when `chosen` do."""
        found: list[Victim] = []
        for victim in chosen:
            found += self._group(victim, found) or ()
        return found

    def _group(self, victim: Victim, gone: Sequence[Victim]) -> list[Victim] | None:
        """Return who goes with a victim beside those gone already; None if one of them must stay."""
        if not victim.tied:
            return [victim]
        keys = {one.pod.key for one in gone if one.ends}
        if victim.pod.key in keys:
            return []
        lost = {one.replica for one in gone if one.ends}
        group = self.company(victim, {*self.before, *lost})
        return group and [one for one in group if one.pod.key not in keys]

    def take(self, victim: Victim) -> bool:
        """Let a victim go if that is allowed now. Undone with `give_back` and the world's rollback."""
        if self.went(victim) or (victim.fewer and self._left_short(victim)):
            return False
        group = self._group(victim, self.gone)
        if group is None or not all(self.may_go(one) for one in group):
            return False
        if not victim.ends and any(
            one.pod.key == victim.pod.key and one.depth >= victim.depth for one in self.gone
        ):
            return False  # as much, or more, is asked of it already
        for one in group:
            for key in one.budgets:
                self.budgets[key] -= 1
        if any(self.budgets[key] < 0 for one in group for key in one.budgets):
            self._refund(group)
            return False
        for one in group:
            self.world.displace(one)
        self.gone += group
        self._groups.append(group)
        return True

    def went(self, victim: Victim) -> bool:
        """Return whether the pod of a victim is gone already, by another step."""
        return any(one.ends and one.pod.key == victim.pod.key for one in self.gone)

    def _left_short(self, victim: Victim) -> bool:
        """Return whether the workload of a victim would have fewer replicas than it can do with."""
        uid = victim.claim.workload_uid
        lost = {one.replica for one in self.gone if one.claim.workload_uid == uid and not one.asked_bytes}
        lost |= {replica for replica in self.before if replica[0] == uid}
        return len(lost | {victim.replica}) > victim.spare

    def give_back(self, count: int) -> None:
        """Return the disruptions that the last `count` calls of `take` spent."""
        for _ in range(count):
            group = self._groups.pop()
            del self.gone[len(self.gone) - len(group) :]
            self._refund(group)

    def _refund(self, group: Iterable[Victim]) -> None:
        for one in group:
            for key in one.budgets:
                self.budgets[key] += 1


def cheapest(pool: Pool) -> tuple[Victim, ...] | None:
    """Return the cheapest set with the least important victims, None if even all of them do not suffice.

    Leaves world and budgets as they were. An empty set means that nobody has to go.
    """
    if pool.fits():
        return ()
    everybody = pool.victims
    for threshold in sorted({pool.rank(v) for v in everybody}):
        pool.victims = [v for v in everybody if pool.rank(v) <= threshold]
        start, refused = _greedy(pool)
        if start is None and not refused:
            continue  # all of them have gone and it still does not fit
        found = _Descent(pool, start).run()
        if found is not None:
            return found
    return None


def _greedy(pool: Pool) -> tuple[list[Victim] | None, bool]:
    """Remove until it fits, then add back, most costly first, what was not needed.

    Returns (victims, whether somebody was not allowed to go). A refusal can be the doing of those who went before, who
    used up a disruption budget or what their queue had borrowed; then nothing found does not mean there is nothing.
    """
    mark = pool.world.checkpoint()
    taken: list[Victim] = []
    fits = refused = False
    for victim in pool.victims:
        if pool.went(victim):
            continue
        if not pool.take(victim):
            refused = True
            continue
        taken.append(victim)
        fits = pool.fits()
        if fits:
            break
    pool.world.rollback(mark)
    pool.give_back(len(taken))
    if not fits:
        return None, refused
    for victim in sorted(taken, key=lambda v: (-pool.rank(v), -v.cost, v.key)):
        fewer = [v for v in taken if v is not victim]
        if suffices(pool, fewer):
            taken = fewer
    return taken, refused


def suffices(pool: Pool, chosen: list[Victim]) -> bool:
    """Return whether it fits once exactly `chosen` have gone, each of them allowed to go in turn."""
    mark = pool.world.checkpoint()
    taken = []
    for victim in chosen:
        if not pool.take(victim):
            break
        taken.append(victim)
    result = len(taken) == len(chosen) and pool.fits()
    pool.world.rollback(mark)
    pool.give_back(len(taken))
    return result


class _Descent:
    """Branch and bound over "goes" and "stays", downwards from a known solution if there is one."""

    def __init__(self, pool: Pool, start: list[Victim] | None) -> None:
        self._pool = pool
        self._best = start
        self._bound = (pool.cost(start), len(start)) if start is not None else (sys.maxsize, 0)

    def run(self) -> tuple[Victim, ...] | None:
        self._descend(0, [])
        if self._best is None:
            return None
        return tuple(sorted(self._pool.closure(self._best), key=lambda v: v.order))

    def _descend(self, place: int, chosen: list[Victim]) -> None:
        pool = self._pool
        if place == len(pool.victims) or pool.tried >= pool.limit:
            return
        victim = pool.victims[place]
        more = [*chosen, victim]
        bound = (pool.cost(more), len(more))
        if bound < self._bound:
            pool.tried += 1
            mark = pool.world.checkpoint()
            if pool.take(victim):
                if pool.fits():
                    self._best, self._bound = more, bound
                else:
                    self._descend(place + 1, more)
                pool.world.rollback(mark)
                pool.give_back(1)
        self._descend(place + 1, chosen)

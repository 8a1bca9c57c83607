"""The exact search on one node: the cheapest set of victims after which something fits."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.scheduler.victims import total_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmos_operator.scheduler.victims import Victim
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
    tried: int = field(default=0)
    gone: list[Victim] = field(default_factory=list)  # in the set that is being tried

    def cost(self, chosen: list[Victim]) -> int:
        """Return the cost of displacing all of `chosen`."""
        return total_cost(chosen, self.outage_seconds)

    def take(self, victim: Victim) -> bool:
        """Let a victim go if that is allowed now. Undone with `give_back` and the world's rollback."""
        if any(self.budgets[key] <= 0 for key in victim.budgets) or not self.may_go(victim):
            return False
        for key in victim.budgets:
            self.budgets[key] -= 1
        self.world.vacate(victim.pod)
        self.gone.append(victim)
        return True

    def give_back(self, victims: Iterable[Victim]) -> None:
        """Return the disruptions that `take` spent."""
        for victim in victims:
            self.gone.remove(victim)
            for key in victim.budgets:
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
        if not pool.take(victim):
            refused = True
            continue
        taken.append(victim)
        fits = pool.fits()
        if fits:
            break
    pool.world.rollback(mark)
    pool.give_back(taken)
    if not fits:
        return None, refused
    for victim in sorted(taken, key=lambda v: (-pool.rank(v), -v.cost, v.pod.key)):
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
    pool.give_back(taken)
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
        return tuple(sorted(self._best, key=lambda v: v.order))

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
                pool.give_back([victim])
        self._descend(place + 1, chosen)

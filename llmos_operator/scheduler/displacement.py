"""Whom to displace so that all pods of a unit fit: the search for single pods, repeated and then pruned.

Each pod in turn takes room that is there, else the cheapest victims on one node (`preemption`); a domain that is
required bounds where it may look, and of the domains the one with the cheapest victims is taken. Nothing is displaced
unless every pod of the unit has got its place. At the end each victim, the dearest first, is spared if the unit fits
without its leaving: what one pod took a larger victim for may be enough for two.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.scheduler import shortage, steps
from llmos_operator.scheduler.room import room_if_empty, room_later
from llmos_operator.scheduler.topology import Spot, allot
from llmos_operator.scheduler.victims import total_cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.scheduler.attempt import Result
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.gang import Gangs
    from llmos_operator.scheduler.preemption import Proposal
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.room import Room
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.topology import Domain
    from llmos_operator.scheduler.victims import Replica, Victim

_SOUGHT: Final = 8  # pods of a replica up to which the best node is sought for each
_PRUNED: Final = 64  # replicas among the victims up to which each is tried to be spared


@dataclass(slots=True)
class Trial:
    """What has to be displaced for a number of pods, in order."""

    proposals: list[Proposal] = field(default_factory=list)
    rank: int = -(1 << 62)
    cost: int = 0

    def add(self, other: Trial) -> None:
        """Take over what another trial displaces."""
        self.proposals += other.proposals
        self.rank, self.cost = max(self.rank, other.rank), self.cost + other.cost

    @property
    def victims(self) -> list[Victim]:
        """Everybody who goes."""
        return [victim for proposal in self.proposals for victim in proposal.victims]

    @property
    def key(self) -> tuple[int, int, int]:
        """Return what trials are compared by."""
        return (self.rank, self.cost, len(self.victims))


class Displacement:
    """The search for victims of units in one plan."""

    def __init__(self, gangs: Gangs) -> None:
        self._gangs = gangs

    def displace(self, pending: Pending, shape: Shape, unit: Sequence[int], result: Result) -> Failure | None:
        """Displace others for a unit, or move them where that loses no more, and hold its room; None if that cannot help."""
        attempts, best = self._gangs.attempts, None
        if attempts.preemption.begin(pending):
            with attempts.preemption.searching():
                best = self._best(pending, shape, unit)
        cost = best[0].cost if best is not None else None
        moves = attempts.consolidation.move(pending, shape, unit, result, cost)
        if moves is not None or best is None:
            return moves
        trial, size, request = best
        for proposal in trial.proposals:
            result.evictions += steps.evictions(attempts.preemption, pending, proposal)
        nodes = self._gangs.hold(pending, unit, size, request)
        attempts.forget_failures()
        return shortage.displacing(trial.victims, nodes, size)

    def _best(
        self, pending: Pending, shape: Shape, unit: Sequence[int]
    ) -> tuple[Trial, Size, Request] | None:
        """Return the cheapest trial over all sizes."""
        attempts = self._gangs.attempts
        best: tuple[tuple[int, int, int, int], Trial, Size, Request] | None = None
        looked_at = set()
        for place, (size, request) in enumerate(shape.options):
            in_question = attempts.preemption.large_enough(request).tobytes()
            if best is not None and request.whole and in_question in looked_at:
                continue  # the same devices as for a better size: nobody cheaper has to go
            looked_at.add(in_question)
            trial = self._try(pending, unit, size, request)
            if trial is not None and (best is None or (*trial.key, place) < best[0]):
                best = ((*trial.key, place), trial, size, request)
        return best[1:] if best is not None else None

    def _try(self, pending: Pending, unit: Sequence[int], size: Size, request: Request) -> Trial | None:
        """Return what displacing for all pods of a unit takes, with everything undone."""
        worlds, preemption = self._gangs.attempts.worlds, self._gangs.attempts.preemption
        mark, spent = worlds.checkpoint(), preemption.checkpoint()
        found: Trial | None = Trial()
        for ordinal in unit:
            more = self._replica(pending, ordinal, size, request)
            if more is None or found is None:
                found = None
                break
            found.add(more)
        worlds.rollback(mark)
        preemption.rollback(spent)
        return self._spare(pending, unit, size, request, found) if found is not None else None

    def _replica(self, pending: Pending, ordinal: int, size: Size, request: Request) -> Trial | None:
        """Displace for one replica in the domain where that is cheapest."""
        worlds, preemption = self._gangs.attempts.worlds, self._gangs.attempts.preemption
        domains = self._domains(pending, request)
        best: tuple[tuple[int, int, int], Domain] | None = None
        for domain in domains if len(domains) > 1 else ():
            mark, spent = worlds.checkpoint(), preemption.checkpoint()
            trial = self._in(domain, pending, ordinal, size, request)
            worlds.rollback(mark)
            preemption.rollback(spent)
            if trial is not None and (best is None or trial.key < best[0]):
                best = (trial.key, domain)
        if best is None and len(domains) != 1:
            return None
        return self._in(best[1] if best is not None else domains[0], pending, ordinal, size, request)

    def _domains(self, pending: Pending, request: Request) -> list[Domain]:
        """Return the domains that could hold a replica at all, those with most room first."""
        gangs = self._gangs
        level, members = pending.workload.topology.required, pending.workload.members
        empty = room_if_empty(gangs.attempts.scene, request)
        possible = [d for d in gangs.map.domains(level) if empty.total(d) >= members]
        if len(possible) > 1:
            room = self._room(request)
            possible.sort(key=lambda d: (-room.total(d), d.name))
        return possible[: gangs.attempts.policy.preemption.nodes]

    def _room(self, request: Request) -> Room:
        attempts = self._gangs.attempts
        return room_later(attempts.scene, attempts.feasibility, attempts.worlds, request)

    def _in(
        self, domain: Domain, pending: Pending, ordinal: int, size: Size, request: Request
    ) -> Trial | None:
        """Place every pod of a replica in a domain of the later world, displacing where there is no room."""
        gangs, preemption = self._gangs, self._gangs.attempts.preemption
        trial, members = Trial(), pending.workload.members
        placed = self._free(domain, pending, ordinal, size, request)
        row_of, rows = gangs.attempts.scene.table.row_of, set(domain.rows)
        while placed < members:
            before = placed
            for proposal in self._proposals(domain, pending, size, request):
                for victim in proposal.victims:
                    preemption.displaced(victim)
                trial.add(Trial([proposal], proposal.rank, proposal.cost))
                # Victims may have held more than one pod needs, on other nodes too.
                for node in dict.fromkeys((proposal.node, *(v.pod.node for v in proposal.victims))):
                    spot = Spot(row_of[node], domain)
                    while placed < members and spot.row in rows:
                        if not gangs.hold_one(pending, ordinal, placed, size, request, spot):
                            break
                        placed += 1
                if placed == members:
                    break
            if placed == before:
                return None
        return trial

    def _proposals(
        self, domain: Domain, pending: Pending, size: Size, request: Request
    ) -> Iterable[Proposal]:
        """Return the cheapest proposal in a domain; for a large gang one for each node, likely the cheapest first."""
        preemption = self._gangs.attempts.preemption
        if pending.workload.members > _SOUGHT:
            return preemption.in_turn(pending, size, request, domain)
        found = preemption.search(pending, ((size, request),), domain)
        return (found,) if found is not None else ()

    def _free(self, domain: Domain, pending: Pending, ordinal: int, size: Size, request: Request) -> int:
        """Hold what free room a domain has for the pods of a replica; return how many got some."""
        gangs = self._gangs
        room = gangs.attempts.reservations.narrow(pending, self._room(request))
        capacity = dict(zip(domain.rows, room.pods(domain).tolist(), strict=True))
        count = min(sum(capacity.values()), pending.workload.members)
        waste = gangs.attempts.placer.wastes(request)
        placed = 0
        for row, pods in allot(domain.rows, capacity, waste, (), count):
            for _ in range(pods):
                spot = Spot(row, domain)
                if not gangs.hold_one(pending, ordinal, placed, size, request, spot):
                    return placed
                placed += 1
        return placed

    def _spare(
        self, pending: Pending, unit: Sequence[int], size: Size, request: Request, trial: Trial
    ) -> Trial | None:
        """Return the trial without the victims that need not go. None: the unit does not fit after all."""
        worlds = self._gangs.attempts.worlds
        outage = self._gangs.attempts.policy.preemption.outage_seconds

        def fits(victims: list[Victim]) -> bool:
            mark = worlds.checkpoint()
            for victim in victims:
                worlds.leave(victim.pod)
            nodes = self._gangs.hold(pending, unit, size, request)
            worlds.rollback(mark)
            return bool(nodes)

        victims = trial.victims
        if not fits(victims):
            return None
        parts = _parts(victims)
        if len(parts) <= _PRUNED:
            for part in sorted(parts, key=lambda p: (-sum(v.cost for v in p), p[0].pod.key)):
                fewer = [v for v in victims if v not in part]
                if fits(fewer):
                    victims = fewer
        kept = {victim.pod.key for victim in victims}
        proposals = [
            replace(p, victims=tuple(v for v in p.victims if v.pod.key in kept)) for p in trial.proposals
        ]
        return Trial([p for p in proposals if p.victims], trial.rank, total_cost(victims, outage))


def _parts(victims: Sequence[Victim]) -> list[list[Victim]]:
    """Return the victims that can only be spared together: a replica, or a workload that is taken below its minimum."""
    replicas: dict[str, set[Replica]] = {}
    for victim in victims:
        replicas.setdefault(victim.claim.workload_uid, set()).add(victim.replica)
    parts: dict[object, list[Victim]] = {}
    for victim in victims:
        uid = victim.claim.workload_uid
        whole = victim.tied and len(replicas[uid]) > victim.spare
        parts.setdefault(uid if whole else victim.replica, []).append(victim)
    return list(parts.values())

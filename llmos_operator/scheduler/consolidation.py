"""Moves running replicas together so that a claim fits that has room in total, but nowhere in one place.

A rearrangement is found as a whole (`rearranging`): whom to take from where the claimant starts, and a place that is
free for each of them, so that everybody has one afterwards. All places are held from then on (`moving`).

A move costs what displacing costs (`victims`: reload, work since the last checkpoint, an outage), and is made only for less than
what it gains: the loss of the evictions it spares, or else the device time that the claimant's waiting wastes,

    gain = devices of the claimant x (expected start - now, where `vacancy` knows one; else time waited so far)

Who does not know how long it will take pays when waiting has cost as much (the ski rental rule: never more than twice what
was best in hindsight; Karlin, Manasse, Rudolph and Sleator 1988).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import failure, wording
from llmos_operator.scheduler.ends import NEVER
from llmos_operator.scheduler.plan import Move
from llmos_operator.scheduler.rearranging import Rearranging
from llmos_operator.scheduler.table import FREE_BYTES, FREE_MILLI
from llmos_operator.scheduler.vacancy import Search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.attempt import Attempts, Result
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.rearranging import Rearrangement
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request


class Consolidation:
    """The moves of one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._rearranging = Rearranging(attempts)
        self._moved = 0  # in this plan
        self._searches = 0

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
        return any(
            self._spacious(request, len(unit) * pending.workload.members) for _, request in shape.options
        )

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
        if soonest is not None and soonest.start < NEVER:
            seconds = max(0.0, soonest.start - attempts.now)
        milli = min(failure.least_milli(attempts, request) for _, request in shape.options)
        return round(milli * len(unit) * pending.workload.members * seconds)

    def search(
        self, pending: Pending, shape: Shape, unit: Sequence[int], limit: int, most: int
    ) -> Rearrangement | None:
        """Return the cheapest rearrangement of at most `most` replicas that costs less than `limit`, None without one."""
        most = min(most, self._attempts.policy.consolidation.replicas)
        return self._rearranging.search(pending, shape, unit, limit, most)

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

"""Other places for replicas that run: what a replica asks for, where it could be instead, and places for several at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler import queueing
from llmos_operator.scheduler.claims import claim_for
from llmos_operator.scheduler.gang import concerns
from llmos_operator.scheduler.moving import option
from llmos_operator.scheduler.placement import INFEASIBLE, fits_on, host_fits, pick
from llmos_operator.scheduler.plan import KEPT_SECONDS
from llmos_operator.scheduler.preemption import displacing
from llmos_operator.scheduler.queueing import Pending
from llmos_operator.state.snapshot import held_back, ordinals_of
from llmos_operator.state.types import Placement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.topology import Spot
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.types import Claim, Pod

_ROWS: Final = 64  # looked at for one replica, those with the least waste first
_STEPS: Final = 64  # placements tried for one set


@dataclass(frozen=True, slots=True)
class Mover:
    """A replica that may be moved, and what it asks for: the precision and context it runs with."""

    victim: Victim
    pending: Pending  # as which it is placed
    size: Size
    request: Request

    @property
    def pod(self) -> Pod:
        """Its pod."""
        return self.victim.pod


@dataclass(frozen=True, slots=True)
class Wanted:
    """One pod of a claimant, at one size."""

    pending: Pending
    ordinal: int
    member: int
    size: Size
    request: Request


class Relocations:
    """Places in both worlds of one plan. Whatever is placed here is undone by the caller's rollback."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self.tries = 0  # placements
        self._steps = 0  # of the set that is being placed

    def mover(self, victim: Victim) -> Mover | None:
        """Return a victim as one that may be moved, None if it must stay or could not start elsewhere as it runs here."""
        attempts, claim = self._attempts, victim.claim
        snapshot, policy = attempts.snapshot, attempts.policy
        workload = snapshot.workloads.get(claim.workload)
        if workload is None or workload.uid != claim.workload_uid or claim.ordinal >= workload.replicas:
            return None
        if workload.suspended or workload.finished or workload.deleting or concerns(workload):
            return None
        queue = workload.queue or policy.default_queue
        if (
            claim.lowered
            or workload.wanted is not None  # which of its replicas count depends on which are there
            or any(
                ordinal >= workload.replicas
                for ordinal in ordinals_of(snapshot.pods_of.get(workload.uid, ()))
            )  # as well
            or held_back(
                workload, snapshot.pods_of.get(workload.uid, ())
            )  # elsewhere it would be of the new spec
            or claim.sleeping is not None
            or queue != claim.queue
            or attempts.now - claim.moved_at < policy.consolidation.cool_down
        ):
            return None
        if queueing.refusal(snapshot, policy, attempts.now, attempts.worlds.now.tree, workload) is not None:
            return None
        shape = attempts.shape(workload)
        place = option(shape, claim.format, claim.max_model_len, claim.kv_tokens)
        if place is None:
            return None
        priority = queueing.capped(snapshot, queue, snapshot.priority_of(workload))
        return Mover(victim, Pending(workload, queue, priority, 0.0, (claim.ordinal,)), *shape.options[place])

    def vacate(self, mover: Mover) -> None:
        """Let a replica have left its place in both worlds."""
        self._attempts.worlds.later.vacate(mover.pod)
        self._attempts.worlds.now.vacate(mover.pod)

    def hold(self, wanted: Wanted, spot: Spot) -> Claim | None:
        """Hold a place for a claimant's pod on a row in the later world; None if it does not fit there."""
        attempts = self._attempts
        if not attempts.feasibility.acceptable(displacing(wanted.request)).nodes[spot.row]:
            return None
        later = attempts.worlds.later
        state = later.node(attempts.scene.table.names[spot.row])
        claim = attempts.gangs.claim(
            wanted.pending, wanted.ordinal, wanted.member, wanted.size, wanted.request, spot, state
        )
        if claim is None or not later.admits(claim):
            return None
        attempts.worlds.hold(claim)
        return claim

    def places(self, movers: Sequence[Mover]) -> tuple[tuple[Mover, Claim], ...] | None:
        """Return a place for each of those who have left theirs, in order of pods; None if not all of them find one."""
        worlds = self._attempts.worlds
        mark = worlds.checkpoint()
        self._steps = 0
        # Who needs most has the fewest places to choose from.
        order = sorted(movers, key=lambda m: (-m.request.devices, -m.request.bytes_per_device, m.pod.key))
        found: list[tuple[Mover, Claim]] = []
        complete = self._descend(order, found)
        worlds.rollback(mark)
        return tuple(sorted(found, key=lambda one: one[0].pod.key)) if complete else None

    def _descend(self, movers: Sequence[Mover], found: list[tuple[Mover, Claim]]) -> bool:
        if not movers:
            return True
        worlds = self._attempts.worlds
        for claim in self._candidates(movers[0]):
            if self._steps >= _STEPS:
                return False
            self._steps += 1
            self.tries += 1
            mark = worlds.checkpoint()
            worlds.now.place(claim)
            worlds.hold(claim)
            found.append((movers[0], claim))
            if self._descend(movers[1:], found):
                return True
            found.pop()
            worlds.rollback(mark)
        return False

    def _candidates(self, mover: Mover) -> Iterator[Claim]:
        """Yield places for a replica, the least waste first: free now and later, and kept for nobody."""
        attempts, request = self._attempts, mover.request
        worlds, overuse = attempts.worlds, attempts.policy.overuse_percent
        acceptable = attempts.feasibility.acceptable(displacing(request))
        former = mover.victim.claim
        delay = mover.pod.grace_seconds + KEPT_SECONDS  # its place is held for so long: it may start as late
        for row in self._rows(mover, acceptable.nodes):
            name = attempts.scene.table.names[row]
            columns = attempts.reservations.usable(mover.pending, row, acceptable.devices[row], delay).copy()
            now, later = worlds.now.node(name), worlds.later.node(name)
            if not host_fits(now, request) or now.granted_gpus() < request.plugin_gpus:
                continue
            for column, device in enumerate(later.devices):
                columns[column] &= fits_on(now, request, (device.uuid,), overuse)
                columns[column] &= (
                    request.whole or device.open
                )  # nobody moves to where a holder pod has to come first
            while (devices := pick(later, request, columns, overuse)) is not None:
                claim = claim_for(
                    mover.pending,
                    former.ordinal,
                    later,
                    devices,
                    request,
                    mover.size,
                    attempts.policy,
                    attempts.now,
                )
                if self._free(claim, former, delay):
                    yield claim
                if request.whole or request.devices != 1:
                    break  # which of a node's devices makes no difference, or is left to `pick`
                taken = claim.devices[0]
                columns[next(c for c, d in enumerate(later.devices) if d.uuid == taken)] = False

    def _free(self, claim: Claim, former: Claim, delay: float) -> bool:
        """Return whether a place is another one than before, within quota, and kept for nobody."""
        worlds = self._attempts.worlds
        if claim.node == former.node and set(claim.devices) == set(former.devices):
            return False
        if not all(world.admits(claim) for world in (worlds.now, worlds.later)):
            return False
        return self._attempts.reservations.leave(claim, delay)

    def _rows(self, mover: Mover, nodes: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[int]:
        """Return the rows a replica could go to as the cluster stands, and its own, where its leaving makes room."""
        attempts = self._attempts
        waste = attempts.placer.wastes(mover.request)
        rows = np.flatnonzero(nodes & (waste < INFEASIBLE))
        rows = rows[np.lexsort((rows, waste[rows]))][:_ROWS]
        own = attempts.scene.table.row_of[mover.pod.node]
        found = [int(row) for row in rows]
        if own not in found and nodes[own]:
            found.append(own)
        if mover.request.placement is Placement.SPREAD:
            pods = attempts.snapshot.pods_of.get(mover.victim.claim.workload_uid, ())
            taken = {pod.node for pod in pods if pod.key != mover.pod.key}
            found.sort(key=lambda row: attempts.scene.table.names[row] in taken)
        return found

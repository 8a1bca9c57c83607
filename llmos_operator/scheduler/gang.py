"""Places what has to start together: the pods of one replica, and the replicas a workload does not start without.

A unit of such pods is placed all or none. Every try happens between a checkpoint and a rollback of both worlds, so a
unit that does not fit leaves nothing behind: no place, no quota, no held room. Pods of one replica ask for the same, so
filling one node after another finds a place for all of them whenever there is one: what a node can take does not
depend on what the others took, and a domain can take the sum over its nodes.

A unit that has to wait holds room for all of its pods or for none. To displace others, pods are taken one after another
by the search for single pods (`preemption`), and then every victim that the others make unnecessary is spared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.scheduler import failure, shortage, topology
from llmos_operator.scheduler.claims import claim_for
from llmos_operator.scheduler.displacement import Displacement
from llmos_operator.scheduler.placement import device_fits, pick
from llmos_operator.scheduler.quota import Amount
from llmos_operator.scheduler.room import room_later, room_now, unobserved
from llmos_operator.scheduler.topology import INSIDE, Map, Spot, allot, width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.scheduler.attempt import Attempts, Result
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.plan import Bind
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.room import Room
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.table import Bools
    from llmos_operator.scheduler.topology import Domain
    from llmos_operator.scheduler.world import Mark
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim, Workload


def concerns(workload: Workload) -> bool:
    """Return whether a workload is placed here rather than replica by replica, pod by pod."""
    return workload.members > 1 or workload.together > 1 or topology.matters(workload)


class Gangs:
    """The placement of units in one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts
        self.map = Map(attempts.scene)
        self._failed: dict[tuple[object, ...], Failure] = {}
        self._displacement = Displacement(self)

    def place(self, pending: Pending, shape: Shape, result: Result) -> None:
        """Place what can be placed of one workload: first the replicas that start together, then one after another."""
        ordinals, core = pending.ordinals, pending.core
        if core > len(ordinals):  # former pods keep names that the rest cannot start without
            result.waiting += len(ordinals)
            return
        units = [(ordinals[:core])] if core else []
        units += [(ordinal,) for ordinal in ordinals[core:]]
        mounting, workload = self.attempts.mounting, pending.workload
        for number, unit in enumerate(units):
            follows = mounting.wait(workload)
            why = follows or self._start(pending, shape, unit, result)
            mounting.note(workload, why)
            if why is None:
                continue
            result.failure = result.failure if follows and result.failure else why
            result.waiting += len(unit)
            if core and not number:
                result.waiting += len(ordinals) - core
                return

    def forget_failures(self) -> None:
        """Try again what was tried in vain: somebody leaves."""
        self._failed.clear()

    def _start(self, pending: Pending, shape: Shape, unit: Sequence[int], result: Result) -> Failure | None:
        if not shape.options:
            return failure.Failure(shape.sizes.reason, shape.sizes.message)
        workload = pending.workload
        may = self.attempts.snapshot.may_preempt(workload)
        asked = (shape.number, workload.members, workload.topology, len(unit))
        kept = self.attempts.reservations.openness(pending)
        key = (*asked, pending.queue, pending.priority, may, pending.nominated, kept)
        if key in self._failed:
            return self._failed[key]
        for place in range(len(shape.options)):
            binds = self._bind(pending, shape, place, unit)
            if binds is not None:
                result.binds += binds
                return None
            turn = self._wait_for_startup(pending, shape, place, unit)
            if turn is not None:
                return turn
        waits = self._wait(pending, shape, unit) or self._displacement.displace(pending, shape, unit, result)
        if waits is not None:
            return waits
        found = shortage.diagnose(self, pending, shape.options, len(unit))
        self._failed[key] = found
        return found

    # -- now ------------------------------------------------------------------------------------------------

    def _bind(self, pending: Pending, shape: Shape, place: int, unit: Sequence[int]) -> list[Bind] | None:
        """Place all pods of a unit at one size, or nothing."""
        attempts = self.attempts
        attempts.startups.begin()
        if not attempts.worlds.now.tree.fits(pending.queue, least_of(pending, unit)):
            return None
        mark, spread = attempts.worlds.checkpoint(), attempts.spread_mark(pending)
        binds: list[Bind] = []
        for ordinal in unit:
            more = self._bind_replica(pending, shape, place, ordinal)
            binds += more
            if len(more) < pending.workload.members:
                self._undo(mark, binds)
                attempts.spread_back(pending, spread)
                return None
        if len(binds) == 1:
            return binds
        name = f"{pending.workload.uid}/{attempts.now:.3f}/{unit[0]}"
        return [replace(bind, gang=name) for bind in binds]

    def _bind_replica(self, pending: Pending, shape: Shape, place: int, ordinal: int) -> list[Bind]:
        """Return the binds of a replica's pods, as many as could be placed."""
        attempts, workload = self.attempts, pending.workload
        size, request = shape.options[place]
        if workload.members == 1 and not topology.matters(workload):
            bind = attempts.bind(pending, shape, place, ordinal, patient=False)
            return [bind] if bind is not None else []
        room = room_now(attempts.scene, attempts.feasibility, attempts.worlds, request)
        attempts.reservations.narrow(pending, room)
        attempts.startups.narrow(pending, room)
        binds = []
        for member, spot in enumerate(self.spots(room, workload, workload.members)):
            state = attempts.worlds.now.node(attempts.scene.table.names[spot.row])
            waste = int(attempts.placer.wastes(request)[spot.row])  # which also settles the column
            column = attempts.placer.column(request, spot.row)
            claim = self.claim(pending, ordinal, member, size, request, spot, state, column, quiet=True)
            if claim is None or not attempts.leaves_room(claim, request):
                break
            binds.append(attempts.bound(pending, shape, place, claim, spot.row, waste))
        return binds

    def _undo(self, mark: Mark, binds: Sequence[Bind]) -> None:
        attempts = self.attempts
        attempts.worlds.rollback(mark)
        for name in sorted({bind.claim.node for bind in binds}):
            attempts.scene.table.write(attempts.scene.table.row_of[name], attempts.worlds.now.node(name))

    def claim(
        self,
        pending: Pending,
        ordinal: int,
        member: int,
        size: Size,
        request: Request,
        spot: Spot,
        state: NodeState,
        column: int | None = None,
        *,
        quiet: bool = False,
    ) -> Claim | None:
        """Return the claim of one pod on a node as it stands in a world, None if it does not fit there.

        The device in `column` is taken if it will do; with `quiet` none on which somebody loads.
        """
        attempts = self.attempts
        acceptable = attempts.feasibility.acceptable(request).devices[spot.row]
        columns = spot.domain.usable(attempts.reservations.usable(pending, spot.row, acceptable))
        if quiet:
            columns = attempts.startups.usable(pending, request, spot.row, columns)
        overuse = attempts.policy.overuse_percent
        devices = None
        preferred = pending.workload.topology.preferred
        if preferred in INSIDE:
            islands = (d.usable(columns) for d in self.map.on_row(preferred, spot.row))
            usable = sorted(islands, key=lambda columns: fitting(state, request, columns, overuse))
            tries = (pick(state, request, columns, overuse, column) for columns in usable)
            devices = next((found for found in tries if found), None)
        devices = devices or pick(state, request, columns, overuse, column)
        if devices is None:
            return None
        return claim_for(
            pending, ordinal, state, devices, request, size, attempts.policy, attempts.now, member
        )

    def spots(self, room: Room, workload: Workload, needed: int) -> list[Spot]:
        """Return where `needed` pods of one replica go, in order of rank; empty if no domain can take them all."""
        asked = workload.topology
        found = []
        for domain in self.map.domains(asked.required):
            capacity = room.pods(domain)
            total = int(capacity.sum())
            if total >= needed:
                groups = self._groups(domain, asked.preferred, asked.required)
                by_row = dict(zip(domain.rows, capacity.tolist(), strict=True))
                near = any(sum(by_row[row] for row in group) >= needed for group in groups)
                found.append(((not near and bool(groups), total, domain.name), domain, by_row, groups))
        if not found:
            return []
        _, domain, by_row, groups = min(found, key=lambda one: one[0])
        waste = self.attempts.placer.wastes(room.request)
        shares = allot(domain.rows, by_row, waste, groups, needed)
        return [Spot(row, domain) for row, count in shares for _ in range(count)]

    def _groups(self, domain: Domain, preferred: str, required: str) -> list[list[int]]:
        """Return the rows of a domain by the preferred level, where that divides it."""
        if not preferred or preferred in INSIDE or width(preferred) >= width(required):
            return []
        rows = set(domain.rows)
        parts = ([row for row in part.rows if row in rows] for part in self.map.domains(preferred))
        return [part for part in parts if part]

    # -- later ----------------------------------------------------------------------------------------------

    def _wait_for_startup(
        self, pending: Pending, shape: Shape, place: int, unit: Sequence[int]
    ) -> Failure | None:
        """Hold room for all pods of a unit where it would have started if others did not load there."""
        awaited, (size, request) = self.attempts.startups.awaited, shape.options[place]
        if awaited is None or not self.hold(pending, unit, size, request):
            return None
        return failure.loading(awaited, self.attempts.policy.startup_seconds, size)

    def _wait(self, pending: Pending, shape: Shape, unit: Sequence[int]) -> Failure | None:
        """Hold room for all pods of a unit where those are leaving who have it, or where it is not yet seen to be free."""
        worlds = self.attempts.worlds
        if worlds.leaving:
            for size, request in shape.options:
                nodes = self.hold(pending, unit, size, request)
                if nodes:
                    return shortage.leaving(worlds.leaving, nodes, size)
        if pending.nominated:
            for size, request in shape.options:
                nodes = self.hold(pending, unit, size, request, measured=False)
                if nodes:
                    return shortage.unmeasured(nodes, size)
        return None

    def hold(
        self,
        pending: Pending,
        unit: Sequence[int],
        size: Size,
        request: Request,
        *,
        measured: bool = True,
    ) -> list[str]:
        """Keep room for all pods of a unit in the later world, or none; return the nodes, in order of rank."""
        attempts = self.attempts
        mark = attempts.worlds.checkpoint()
        nodes: list[str] = []
        for ordinal in unit:
            room = room_later(
                attempts.scene, attempts.feasibility, attempts.worlds, request, measured=measured
            )
            attempts.reservations.narrow(pending, room)
            spots = self.spots(room, pending.workload, pending.workload.members)
            for member, spot in enumerate(spots):
                name = attempts.scene.table.names[spot.row]
                if not self.hold_one(pending, ordinal, member, size, request, spot, measured=measured):
                    break
                nodes.append(name)
        if len(nodes) < len(unit) * pending.workload.members:
            attempts.worlds.rollback(mark)
            return []
        return nodes

    def hold_one(
        self,
        pending: Pending,
        ordinal: int,
        member: int,
        size: Size,
        request: Request,
        spot: Spot,
        *,
        measured: bool = True,
    ) -> bool:
        """Keep room for one pod in the later world; return whether there is any."""
        later = self.attempts.worlds.later
        state = later.node(self.attempts.scene.table.names[spot.row])
        state = state if measured else unobserved(state)
        claim = self.claim(pending, ordinal, member, size, request, spot, state)
        if claim is None or not later.admits(claim):
            return False
        self.attempts.worlds.hold(claim)
        return True


def least_of(pending: Pending, unit: Sequence[int]) -> Amount:
    """Return the least that all pods of a unit will be charged together."""
    pods = len(unit) * pending.workload.members
    return Amount(pending.least_charge().gpu_milli * pods)


def fitting(state: NodeState, request: Request, columns: Bools, overuse_percent: int) -> int:
    """Return how many of a node's acceptable devices would do."""
    return sum(
        bool(columns[i]) and device_fits(one, request, overuse_percent) for i, one in enumerate(state.devices)
    )

"""Tries to place the replicas of one waiting workload after another, and remembers what was tried in vain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import failure, stepping_aside, steps, wording
from llmos_operator.scheduler.claims import claim_for, profile_of, sharing_domain
from llmos_operator.scheduler.consolidation import Consolidation
from llmos_operator.scheduler.gang import Gangs, concerns
from llmos_operator.scheduler.lending import Lending
from llmos_operator.scheduler.mounting import Mounting
from llmos_operator.scheduler.moving import Moving
from llmos_operator.scheduler.placement import INFEASIBLE, fits_on, pick
from llmos_operator.scheduler.plan import Bind, Evict, Shrink, Sleep
from llmos_operator.scheduler.queueing import Pending
from llmos_operator.scheduler.quota import charge
from llmos_operator.scheduler.reservation import Reservations
from llmos_operator.scheduler.room import unobserved
from llmos_operator.scheduler.startups import Startups
from llmos_operator.state.types import Placement

if TYPE_CHECKING:
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.feasibility import Feasibility
    from llmos_operator.scheduler.placement import Placer
    from llmos_operator.scheduler.plan import Move, Reservation
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.preemption import Preemption
    from llmos_operator.scheduler.recall import Recall, Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.world import World, Worlds
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Pod, PodKey, Profile, Sleeping, Workload

_SPREAD_HANDICAP = 1 << 50  # of a node that holds a replica of the same workload


@dataclass(slots=True)
class Result:
    """What became of a workload's waiting replicas."""

    binds: list[Bind] = field(default_factory=list)
    evictions: list[Evict] = field(default_factory=list)
    shrinks: list[Shrink] = field(default_factory=list)
    sleeps: list[Sleep] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    waiting: int = 0
    in_vain: bool = False  # whatever is like it fails as its last replica did, until somebody makes room
    failure: Failure | None = None  # of the last replica that has to wait
    reservation: Reservation | None = None  # the place that is kept for what has to wait
    instead: PodKey = ""  # see `plan.Decision.instead`


class Attempts:
    """The means of one plan and what it has tried."""

    def __init__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        now: float,
        worlds: Worlds,
        scene: Scene,
        feasibility: Feasibility,
        placer: Placer,
        preemption: Preemption,
        recall: Recall,
    ) -> None:
        self.snapshot = snapshot
        self.policy = policy
        self.now = now
        self.worlds = worlds
        self.scene = scene
        self.feasibility = feasibility
        self.placer = placer
        self.preemption = preemption
        self.recall = recall
        self._domains: dict[str, str] = {}  # sharing domains by namespace
        self._parked: dict[
            tuple[object, ...], Failure
        ] = {}  # of whom no other like it has to be looked at any more
        self._spread_to: dict[str, list[str]] = {}  # by workload UID, nodes of replicas this plan has bound
        self.waiting_domains: set[str] = set()  # sharing domains of which somebody waits in this plan
        self._failed: dict[tuple[object, ...], Failure] = {}
        self.gangs = Gangs(self)
        self.moving = Moving(self)
        self.consolidation = Consolidation(self)
        self.reservations = Reservations(self)
        self.startups = Startups(self)
        self.lending = Lending(self)
        self.mounting = Mounting()
        preemption.usable = self.reservations.usable

    def place(self, pending: Pending) -> Result:
        """Place what can be placed of one workload."""
        workload = pending.workload
        shape, likeness = self.recall.standing(
            workload, self._domain(workload.namespace), self.snapshot.profiles
        )
        aged = self.reservations.aged(workload)
        kind = (shape.number, likeness, pending.queue, pending.priority, aged, pending.nominated)
        plain = bool(pending.ordinals) and not (pending.blocked or pending.core or self.moving.anybody)
        plain = plain and self.mounting.wait(workload) is None
        plain = plain and not stepping_aside.candidates(self.snapshot, workload)
        parked = self._parked.get(kind) if plain else None
        if parked is not None:
            return Result(waiting=len(pending.ordinals), failure=parked, in_vain=True)
        result = self._attempt(pending, shape)
        if result.reservation is not None:
            self._parked.clear()  # who may use its place is asked of everybody anew
        elif (
            plain
            and result.in_vain
            and result.failure is not None
            and self.reservations.settled(pending, shape, result)
        ):
            self._parked[kind] = result.failure
        return result

    def _attempt(self, pending: Pending, shape: Shape) -> Result:
        result, workload = Result(), pending.workload
        if concerns(workload):
            self.gangs.place(pending, shape, result)
        else:
            for ordinal in pending.ordinals:
                follows = self.mounting.wait(workload)
                found = follows or self._try(pending, shape, ordinal, result)
                result.failure = result.failure if follows and result.failure else found
                result.waiting += found is not None
        if result.waiting and shape.options:
            self.waiting_domains.add(shape.options[0][1].domain)
        self.reservations.consider(pending, shape, result)
        if result.failure is not None and not result.binds:
            result.instead = stepping_aside.makes_room(self, pending, shape, result.failure.reason)
        return self._with_former(pending, result)

    def _try(self, pending: Pending, shape: Shape, ordinal: int, result: Result) -> Failure | None:
        if not shape.options:
            return failure.Failure(shape.sizes.reason, shape.sizes.message)
        found = self._place_one(pending, shape, ordinal, result)
        self.mounting.note(pending.workload, found)
        return found

    def _with_former(self, pending: Pending, result: Result) -> Result:
        """Add the replicas that wait for their former pods."""
        if pending.blocked:
            result.waiting += pending.held_up
            moves = self.moving.leaving(pending)
            result.failure = result.failure or moves or failure.former_pods(pending)
        return result

    def shape(self, workload: Workload) -> Shape:
        """Return sizes and requests of a workload, shared by all that ask for the same."""
        return self.recall.shape(workload, self._domain(workload.namespace), self.snapshot.profiles)

    def _domain(self, namespace: str) -> str:
        found = self._domains.get(namespace)
        if found is None:
            found = self._domains[namespace] = sharing_domain(self.snapshot, self.policy, namespace)
        return found

    def profile(self, workload: Workload) -> Profile | None:
        """Return what is known of a workload's model."""
        return profile_of(self.snapshot, workload)

    def _place_one(self, pending: Pending, shape: Shape, ordinal: int, result: Result) -> Failure | None:
        found = self.moving.start(pending, shape, ordinal)
        may_preempt = self.snapshot.may_preempt(pending.workload)
        kept = self.reservations.openness(pending)
        borrows = self.lending.may_borrow(pending)
        key = (shape.number, pending.queue, pending.priority, may_preempt, kept, borrows)
        known = self._failed.get(key) if found is None else None
        result.in_vain = known is not None
        if found is None:
            found = known or self._start(pending, shape, ordinal)
        found = (
            found
            or self._wait_for_leaving(pending, shape, ordinal)
            or self._wait_for_measurement(pending, shape, ordinal)
            or self.lending.borrow(pending, shape, ordinal, result)
        )
        if isinstance(found, Bind):
            result.binds.append(found)
            return None
        found = found or self._displace(pending, shape, ordinal, result)
        if found is None:
            found = self._failed[key] = failure.diagnose(self, pending, shape.options)
            result.in_vain = True
        return found

    def _start(self, pending: Pending, shape: Shape, ordinal: int) -> Bind | Failure | None:
        """Start a replica at the best size that fits, or let it wait for who loads where it goes.

        Who loads is no reason for a lower precision, nor to break up an idle device, as long as the room beside is free later.
        """
        for place in range(len(shape.options)):
            bind = self.bind(pending, shape, place, ordinal)
            if bind is None and self.startups.awaited is not None:
                turn = self.startups.wait(pending, shape, place, ordinal)
                if turn is not None:
                    return turn
                bind = self.bind(pending, shape, place, ordinal, patient=False)
            if bind is not None:
                return bind
        return None

    def bind(
        self, pending: Pending, shape: Shape, place: int, ordinal: int, *, patient: bool = True
    ) -> Bind | None:
        """Place a replica of one pod at one size where it wastes least; None if it fits nowhere now.

        `patient`: rather than on an idle device it starts where somebody still loads, later (`startups`).
        """
        size, request = shape.options[place]
        now = self.worlds.now
        self.startups.begin()
        if not now.tree.fits(pending.queue, pending.least_charge()):
            return None
        handicaps = self._spread(pending) if request.placement is Placement.SPREAD else {}
        columns = self.feasibility.acceptable(request).devices
        while (best := self.placer.best(request, handicaps)) is not None:
            row, waste = best
            usable = self.reservations.usable(pending, row, columns[row])
            devices = self.startups.devices(pending, request, row, usable, patient=patient)
            if devices is not None:
                state = now.node(self.scene.table.names[row])
                claim = claim_for(pending, ordinal, state, devices, request, size, self.policy, self.now)
                if self.leaves_room(claim, request):
                    return self.bound(pending, shape, place, claim, row, waste)
                if not self._quota_fits(now, claim):
                    return None
            if self.startups.enough():
                return None
            handicaps = {**handicaps, row: INFEASIBLE}
        return None

    def bound(
        self,
        pending: Pending,
        shape: Shape,
        place: int,
        claim: Claim,
        row: int,
        waste: int,
        *,
        held: bool = False,
        why: str = "",
    ) -> Bind:
        """Count a claim in both worlds and return its bind; one that is `held` counts in the later world already.

        `why` the place was chosen is what the scores say, where nothing else decided it.
        """
        size, request = shape.options[place]
        candidates, by = self.placer.count(request), self.placer.scored_by(request)
        target = self.snapshot.targets.get((claim.workload_uid, claim.ordinal))
        if target is not None:  # wherever it starts now: it has been moved
            claim = replace(claim, moved_at=target.at)
        if held:
            self.worlds.now.place(claim)
        else:
            self.worlds.bind(claim)
        if request.placement is Placement.SPREAD:
            self._spread_to.setdefault(claim.workload_uid, []).append(claim.node)
        state = self.worlds.now.node(claim.node)
        self.scene.table.write(row, state)
        return Bind(
            workload=pending.workload,
            claim=claim,
            score=-waste,
            reason=Reason.BOUND,
            explanation=wording.bound(
                claim,
                state,
                shape.options,
                place,
                why or wording.chosen(by, waste, candidates),
                self.scene.harm.told(claim, state) if self.scene.harm is not None else (),
            ),
            estimated_bytes=size.bytes_per_device,
            scored_by=by.value,
        )

    def asleep(self, pod: Pod, sleeping: Sleeping) -> None:
        """Let a pod be asked to sleep, in both worlds."""
        self.worlds.sleep(pod, sleeping)
        self._write(pod.node)

    def awake(self, pod: Pod) -> None:
        """Let a pod that slept be awake, in both worlds."""
        self.worlds.wake(pod)
        self._write(pod.node)

    def restored(self, pod: Pod, claim: Claim) -> None:
        """Let a pod that came down have its memory back, in both worlds."""
        self.worlds.restore(pod, claim)
        self._write(pod.node)

    def elsewhere(self, pod: Pod, claim: Claim, workload: Workload) -> str | None:
        """Return the node on which a replica could start now if its pod were gone, None if nowhere; nothing has changed then."""
        pending = Pending(workload, claim.queue, claim.priority, 0.0, (claim.ordinal,))
        return self._without(pod, pending, self.shape(workload))

    def starts_without(self, pod: Pod, pending: Pending, shape: Shape) -> bool:
        """Return whether a waiting replica could start now, there or elsewhere, if a pod were gone; nothing has changed then."""
        return self._without(pod, pending, shape, there=True) is not None

    def _without(self, pod: Pod, pending: Pending, shape: Shape, *, there: bool = False) -> str | None:
        """Return where the first waiting replica could start if a pod were gone; on its own node only if `there`."""
        mark, spread = self.worlds.checkpoint(), self.spread_mark(pending)
        self.worlds.now.vacate(pod)
        self.worlds.later.vacate(pod)
        if there:
            self._write(pod.node)
        ordinal = pending.ordinals[0]
        tries = (
            self.bind(pending, shape, place, ordinal, patient=not there)
            for place in range(len(shape.options))
        )
        found = next((one.claim.node for one in tries if one is not None), None)
        self.worlds.rollback(mark)
        self.spread_back(pending, spread)
        changed = {node for node in (found, pod.node if there else None) if node is not None}
        for node in changed:
            self._write(node)
        return found

    def _write(self, node: str) -> None:
        self.scene.table.write(self.scene.table.row_of[node], self.worlds.now.node(node))

    def leaves_room(self, claim: Claim, request: Request) -> bool:
        """Return whether the claim fits quota and takes no room that is being made for somebody else."""
        now, later = self.worlds.now, self.worlds.later
        if not self._quota_fits(now, claim) or not self._quota_fits(later, claim):
            return False
        if not now.powers(claim) or not later.powers(claim) or not self.reservations.leave(claim):
            return False
        if claim.node not in self.worlds.differing:
            return True
        return fits_on(later.node(claim.node), request, claim.devices, self.policy.overuse_percent)

    @staticmethod
    def _quota_fits(world: World, claim: Claim) -> bool:
        return world.tree.fits(claim.queue, charge(claim))

    def _spread(self, pending: Pending) -> dict[int, int]:
        """Return handicaps of the nodes that hold replicas of the same workload, those of this plan included."""
        handicaps: dict[int, int] = {}
        pods = self.snapshot.pods_of.get(pending.workload.uid, ())
        for node in (*(p.node for p in pods), *self._spread_to.get(pending.workload.uid, ())):
            row = self.scene.table.row_of.get(node)
            if row is not None:
                handicaps[row] = handicaps.get(row, 0) + _SPREAD_HANDICAP
        return handicaps

    def _wait_for_leaving(self, pending: Pending, shape: Shape, ordinal: int) -> Failure | None:
        """Hold room that somebody is leaving, or is coming down from, if that will do."""
        worlds = self.worlds
        if not (worlds.leaving or worlds.lowering or worlds.dozing) or not self.worlds.later.tree.fits(
            pending.queue, pending.least_charge()
        ):
            return None
        for size, request in shape.options:
            names = sorted(self.worlds.differing)
            best = self.placer.best(request)
            if best is not None:
                names.insert(0, self.scene.table.names[best[0]])
            for name in names:
                if self.hold(pending, ordinal, size, request, name):
                    return failure.leaving(self.worlds, name, size)
        return None

    def _wait_for_measurement(self, pending: Pending, shape: Shape, ordinal: int) -> Failure | None:
        """Wait where the ledger has the room that others were displaced for and only the telemetry is behind.

        Displacing somebody else instead would pay twice for one claim (I6). The nomination bounds the wait.
        """
        if not pending.nominated:
            return None
        for size, request in shape.options:
            for row in self.feasibility.acceptable(request).nodes.nonzero()[0]:
                name = self.scene.table.names[int(row)]
                if self.hold(pending, ordinal, size, request, name, measured=False):
                    return failure.unmeasured(name, size)
        return None

    def hold(
        self,
        pending: Pending,
        ordinal: int,
        size: Size,
        request: Request,
        name: str,
        *,
        measured: bool = True,
    ) -> bool:
        """Keep room in the later world; without `measured` the ledger alone says what is free."""
        row = self.scene.table.row_of[name]
        acceptable = self.feasibility.acceptable(request)
        if not acceptable.nodes[row]:
            return False
        later = self.worlds.later
        state = later.node(name) if measured else unobserved(later.node(name))
        usable = self.reservations.usable(pending, row, acceptable.devices[row])
        devices = pick(state, request, usable, self.policy.overuse_percent)
        if devices is None:
            return False
        claim = claim_for(pending, ordinal, state, devices, request, size, self.policy, self.now)
        if not later.admits(claim):
            return False
        self.worlds.hold(claim)
        return True

    def _displace(self, pending: Pending, shape: Shape, ordinal: int, result: Result) -> Failure | None:
        """Displace others for the claim, or move them where that loses no more, and hold the room."""
        proposal = self.preemption.find(pending, shape.options)
        if proposal is None or any(not victim.asked_bytes for victim in proposal.victims):
            cost = proposal.cost if proposal is not None else None
            moves = self.consolidation.move(pending, shape, (ordinal,), result, cost)
            if moves is not None:
                return moves
        if proposal is None:
            return None
        result.shrinks += steps.shrinks(self.preemption, pending, proposal)
        result.sleeps += steps.sleeps(self.preemption, pending, proposal)
        result.evictions += steps.evictions(self.preemption, pending, proposal)
        self.hold(pending, ordinal, proposal.size, proposal.request, proposal.node)
        self.forget_failures()
        return failure.displacing(proposal)

    def forget_failures(self) -> None:
        """Try again what was tried in vain: what leaves may make room for more than its claimant."""
        self._failed.clear()
        self._parked.clear()
        self.gangs.forget_failures()

    def spread_mark(self, pending: Pending) -> int:
        """Return a mark for :meth:`spread_back`."""
        return len(self._spread_to.get(pending.workload.uid, ()))

    def spread_back(self, pending: Pending, mark: int) -> None:
        """Forget on which nodes this plan has bound replicas of a workload since the mark."""
        del self._spread_to.get(pending.workload.uid, [])[mark:]

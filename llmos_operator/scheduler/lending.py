"""Lends the KV cache of replicas that idle to work that may be sent away at any moment, and calls it back.

A lender comes down as for a claimant of higher standing (`shrinking`), of its own will (`idle.lendAfter`, `Snapshot.lending`), and
what it gives up is kept for borrowers (`state.loans`): nothing that stays ever stands in it. A borrower is a replica that finds no place
otherwise, of strictly lower priority, of one pod on shared devices, whose disruption order has `Evict` and which nothing
protects from that: no PodDisruptionBudget of its namespace, no `minRuntime` of its own; that of the policy does not count for it.

When the lender works again those borrowers are evicted of whom it needs the room, the least important first, of equals who started
last; when that is seen to be free, it gets all of it back. Nobody else can take it in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import failure, wording
from llmos_operator.scheduler.claims import claim_for
from llmos_operator.scheduler.gang import concerns
from llmos_operator.scheduler.placement import fits_on, pick
from llmos_operator.scheduler.plan import Evict, Restore, Shrink
from llmos_operator.scheduler.room import unobserved
from llmos_operator.scheduler.shrinking import may_shrink, shrink_cost, shrunk_bytes
from llmos_operator.scheduler.victims import ENDS, idle_seconds, weighed
from llmos_operator.state import loans
from llmos_operator.state.types import DisruptionStep, PodPhase, Sharing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.scheduler.attempt import Attempts, Result
    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.plan import Bind
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.world import World
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim, Pod


@dataclass(frozen=True, slots=True)
class _Asked:
    """A replica that wants to borrow, at one of its sizes."""

    pending: Pending
    shape: Shape
    place: int  # of the size in its shape's options
    ordinal: int


@dataclass(frozen=True, slots=True)
class _Offer:
    """A replica that could lend."""

    pod: Pod
    left: int  # bytes of each device that it would keep
    cost: int


class Lending:
    """Loans in one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._offers: list[_Offer] | None = None

    # -- borrowing ------------------------------------------------------------------------------------------

    def may_borrow(self, pending: Pending) -> bool:
        """Return whether a workload may stand in memory that is called back at any moment."""
        workload, snapshot = pending.workload, self._attempts.snapshot
        return (
            bool(snapshot.lending)
            and workload.sharing is Sharing.SHARED
            and workload.accelerators > 0
            and not concerns(workload)
            and DisruptionStep.EVICT in workload.disruption_order
            and not workload.min_runtime
            and not any(one.namespace == workload.namespace for one in snapshot.budgets.values())
        )

    def borrow(self, pending: Pending, shape: Shape, ordinal: int, result: Result) -> Bind | Failure | None:
        """Start a replica in what is lent, or let it wait for a loan, at the best size for which there is one."""
        if not self.may_borrow(pending):
            return None
        for place in range(len(shape.options)):
            asked = _Asked(pending, shape, place, ordinal)
            found = self._start(asked) or self._wait(asked) or self._ask(asked, result)
            if found is not None:
                return found
        return None

    def _start(self, asked: _Asked) -> Bind | Failure | None:
        """Start a replica in what is lent already; a failure: another one loads there, and its room is held."""
        attempts = self._attempts
        size, request = asked.shape.options[asked.place]
        for lender in self._loans(asked.pending):
            claim = self._claim(asked, attempts.worlds.now, lender)
            if claim is None or not self._leaves_room(request, claim):
                continue
            state = attempts.worlds.now.node(claim.node)
            awaited = attempts.startups.on(asked.pending, state, claim.devices)
            if awaited is not None:
                attempts.worlds.hold(claim)
                return failure.loading(awaited, attempts.policy.startup_seconds, size)
            row = attempts.scene.table.row_of[claim.node]
            why = wording.borrows(claim)
            return attempts.bound(asked.pending, asked.shape, asked.place, claim, row, 0, why=why)
        return None

    def _wait(self, asked: _Asked) -> Failure | None:
        """Hold room in a loan that is not there yet, or not seen to be free."""
        worlds = self._attempts.worlds
        for lender in self._loans(asked.pending, coming=True):
            # Only the telemetry may be behind of what was lent to it; its turn bounds that wait.
            measured = lender.key not in worlds.lowering and not asked.pending.nominated
            claim = self._claim(asked, worlds.later, lender, measured=measured)
            if claim is not None:
                worlds.hold(claim)
                return failure.lent(lender.key, claim.node, asked.shape.options[asked.place][0])
        return None

    def _ask(self, asked: _Asked, result: Result) -> Failure | None:
        """Let a replica that idles come down for the claimant: of those whose loan would do the one that lends least."""
        attempts, pending = self._attempts, asked.pending
        for offer in self._open_offers(pending):
            mark = attempts.worlds.checkpoint()
            attempts.worlds.lower(offer.pod, offer.left, lent=True)
            claim = self._claim(asked, attempts.worlds.later, offer.pod, measured=False)
            if claim is None:
                attempts.worlds.rollback(mark)
                continue
            attempts.worlds.hold(claim)
            result.shrinks.append(_shrink(offer, pending))
            attempts.forget_failures()
            return failure.lent(offer.pod.key, claim.node, asked.shape.options[asked.place][0])
        return None

    def _loans(self, pending: Pending, *, coming: bool = False) -> Iterator[Pod]:
        """Yield who lends to work like this; `coming`: those, too, who have not come down yet."""
        snapshot, worlds = self._attempts.snapshot, self._attempts.worlds
        asked = {pod.key: pod for pod in (*snapshot.lowered, *worlds.lowering.values())}
        for key in sorted(asked):
            pod = asked[key]
            held = worlds.later.node(pod.node).pods.get(key)
            if held is None or held.claim is None or not held.claim.lent:
                continue
            if (coming or key not in worlds.lowering) and self._lends_to(pod, pending):
                yield pod

    def _lends_to(self, pod: Pod, pending: Pending) -> bool:
        claim = pod.claim
        return (
            claim is not None
            and claim.sleeping is None
            and self._attempts.snapshot.may_lend(claim.workload)
            and claim.priority > pending.priority
            and pod.key not in self._attempts.worlds.leaving
            and pod.key not in self._attempts.worlds.dozing
        )

    def _open_offers(self, pending: Pending) -> Iterator[_Offer]:
        if self._offers is None:
            self._offers = sorted(self._find_offers(), key=lambda one: (_given_up(one), one.pod.key))
        worlds = self._attempts.worlds
        for offer in self._offers:
            if offer.pod.key not in worlds.lowering and self._lends_to(offer.pod, pending):
                yield offer

    def _find_offers(self) -> Iterator[_Offer]:
        attempts, snapshot, policy = self._attempts, self._attempts.snapshot, self._attempts.policy
        for key, lends in snapshot.lending.items():
            workload = snapshot.workloads.get(key) if lends else None
            for pod in snapshot.pods_of.get(workload.uid, ()) if workload is not None else ():
                claim = pod.claim
                if workload is None or claim is None or claim.lowered or pod.phase is not PodPhase.BOUND:
                    continue
                if not may_shrink(pod, claim, workload, policy, attempts.now):
                    continue
                left = shrunk_bytes(claim, workload, attempts.profile(workload), policy)
                if left is not None and attempts.scene.heard_lately(pod.node):
                    loss = shrink_cost(claim, left, policy, _WHOLE)
                    yield _Offer(pod, left, weighed(loss, idle_seconds(workload, attempts.now)))

    def _claim(self, asked: _Asked, world: World, lender: Pod, *, measured: bool = True) -> Claim | None:
        """Return the claim of a replica in what one lender lends, as a world stands; None if it does not fit there."""
        attempts, pending = self._attempts, asked.pending
        size, request = asked.shape.options[asked.place]
        row = attempts.scene.table.row_of[lender.node]
        acceptable = attempts.feasibility.acceptable(request)
        if lender.claim is None or not acceptable.nodes[row]:
            return None
        state = loans.opened(world.node(lender.node), lender.key)
        usable = attempts.reservations.usable(pending, row, acceptable.devices[row])
        theirs = [one.uuid in lender.claim.devices for one in state.devices]
        usable = usable & [*theirs, *([False] * (len(usable) - len(theirs)))]
        seen = state if measured else unobserved(state)
        devices = pick(seen, request, usable, attempts.policy.overuse_percent)
        if devices is None:
            return None
        claim = claim_for(
            pending, asked.ordinal, state, devices, request, size, attempts.policy, attempts.now
        )
        claim = replace(claim, lender=lender.key, min_runtime=0.0)
        return claim if world.admits(claim) else None

    def _leaves_room(self, request: Request, claim: Claim) -> bool:
        """Return whether a claim takes nothing that is being made, or kept, for somebody else."""
        attempts, later = self._attempts, self._attempts.worlds.later
        if not later.admits(claim) or not attempts.reservations.leave(claim):
            return False
        state = loans.opened(later.node(claim.node), claim.lender)
        return fits_on(state, request, claim.devices, attempts.policy.overuse_percent)

    # -- calling back ---------------------------------------------------------------------------------------

    def call_back(self) -> tuple[list[Evict], list[Restore]]:
        """Return who has to go for lenders that work again, and which of them get all of it back. To be asked first."""
        evictions: list[Evict] = []
        restored: list[Restore] = []
        attempts = self._attempts
        for pod in attempts.snapshot.lowered:
            claim = pod.claim
            if claim is None or not claim.lent or claim.sleeping is not None:
                continue
            if not attempts.snapshot.calls_back(claim.workload):
                continue
            if room_for(attempts, pod, claim):
                attempts.restored(pod, claim)
                restored.append(restore_of(pod, claim, wording.called_back(claim)))
            else:
                evictions += self._send_away(pod, claim)
        return evictions, restored

    def _send_away(self, lender: Pod, claim: Claim) -> list[Evict]:
        """Return the evictions after which a lender has room; those on their way out are counted on."""
        worlds, found = self._attempts.worlds, []
        there = loans.borrowers(worlds.later.node(lender.node), lender.key)
        order = sorted(there, key=_least_first)
        for pod in order:
            if worlds.later.node(lender.node).may_rise(claim):
                break
            if pod.claim is None or pod.phase is not PodPhase.BOUND or not pod.uid:
                continue
            found.append(
                Evict(
                    pod=pod.key,
                    pod_uid=pod.uid,
                    node=pod.node,
                    victim=pod.claim.workload,
                    victim_uid=pod.claim.workload_uid,
                    cost=self._cost(pod),
                    reason=Reason.CALLED_BACK,
                    explanation=wording.sent_away(claim, pod.claim),
                    preemptor=claim.workload,
                )
            )
            worlds.leave(pod)
        return found

    def _cost(self, pod: Pod) -> int:
        index = self._attempts.preemption.index
        place = index.place_of(pod, ENDS)
        return index.victim(place).cost if place is not None else 0


_WHOLE = 1 << 60  # more than any loss


def room_for(attempts: Attempts, pod: Pod, claim: Claim) -> bool:
    """Return whether a replica that came down could have all of it back, now and later, by reservations and as observed."""
    states = (world.node(pod.node) for world in (attempts.worlds.now, attempts.worlds.later))
    return all(_room(loans.opened(state, pod.key) if claim.lent else state, claim) for state in states)


def _room(state: NodeState, claim: Claim) -> bool:
    missing = claim.bytes_per_device - claim.awake_bytes
    devices = [state.device(uuid) for uuid in claim.devices]
    return all(device is not None and device.headroom_bytes() >= missing for device in devices)


def restore_of(pod: Pod, claim: Claim, explanation: str) -> Restore:
    """Return the action that gives a replica back all it was bound with."""
    return Restore(
        pod=pod.key,
        pod_uid=pod.uid,
        node=pod.node,
        workload=claim.workload,
        workload_uid=claim.workload_uid,
        bytes_per_device=claim.bytes_per_device,
        reason=Reason.RESTORED,
        explanation=explanation,
        loan=claim.lent,
    )


def _shrink(offer: _Offer, pending: Pending) -> Shrink:
    pod, claim = offer.pod, offer.pod.claim
    assert claim is not None  # noqa: S101 - it is an offer
    return Shrink(
        pod=pod.key,
        pod_uid=pod.uid,
        node=pod.node,
        victim=claim.workload,
        victim_uid=claim.workload_uid,
        bytes_per_device=offer.left,
        cost=offer.cost,
        reason=Reason.LENT,
        explanation=wording.lent(pending, claim, offer.left),
        preemptor=pending.workload.key,
        loan=True,
    )


def _given_up(offer: _Offer) -> int:
    return offer.pod.claim.bytes_per_device - offer.left if offer.pod.claim is not None else 0


def _least_first(pod: Pod) -> tuple[int, float, str]:
    claim = pod.claim
    return (claim.priority, -claim.bound_at, pod.key) if claim is not None else (0, 0.0, pod.key)

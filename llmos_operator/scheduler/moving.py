"""Keeps the places of replicas that are being moved, and starts them there.

`consolidation` decides on moves. From then on until the replica runs again its target is held in the later world before
anybody else is asked, whatever its place in the queue; so the next plans, also those of another leader, come to the same
place. A target that is lost meanwhile (its node is gone, its device Unhealthy) is dropped: the replica is then a pending
one like others, at the head of its priority because it is nominated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.claims import claim_for
from llmos_operator.scheduler.failure import Failure, loading
from llmos_operator.scheduler.gang import concerns
from llmos_operator.scheduler.placement import fits_on
from llmos_operator.scheduler.room import unobserved
from llmos_operator.state.snapshot import ordinals_of

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.plan import Bind
    from llmos_operator.scheduler.queueing import Lines, Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.request import Request
    from llmos_operator.state.types import Claim, Target


@dataclass(frozen=True, slots=True)
class Held:
    """A place that is held for a replica on its way."""

    target: Target
    claim: Claim
    place: int  # of the size in its shape's options


class Moving:
    """The replicas that are on their way to another place in one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._held: dict[tuple[str, int], Held] = {}

    @property
    def anybody(self) -> bool:
        """Whether a place is held for anybody."""
        return bool(self._held)

    def hold(self, waiting: Lines) -> None:
        """Hold the targets of all replicas that wait to be started there. To be asked before anybody is placed."""
        targets = self._attempts.snapshot.targets
        if not targets:
            return
        found = []
        for line in waiting.lines.values():
            for pending in line:
                for ordinal in (*pending.ordinals, *sorted(ordinals_of(pending.blocked))):
                    target = targets.get((pending.workload.uid, ordinal))
                    if target is not None and self._attempts.now <= target.until:
                        found.append((target.at, pending.workload.key, ordinal, pending, target))
        for _, _, ordinal, pending, target in sorted(found, key=lambda one: one[:3]):
            self._hold(pending, ordinal, target)

    def _hold(self, pending: Pending, ordinal: int, target: Target) -> None:
        attempts = self._attempts
        row = attempts.scene.table.row_of.get(target.node)
        shape = attempts.shape(pending.workload)
        place = option(shape, target.format, target.max_model_len, target.kv_tokens)
        if row is None or place is None or concerns(pending.workload):
            return
        size, request = shape.options[place]
        later = attempts.worlds.later
        state = later.node(target.node)
        acceptable = attempts.feasibility.acceptable(request)
        allowed = {d.uuid for column, d in enumerate(state.devices) if acceptable.devices[row][column]}
        if not acceptable.nodes[row] or not allowed.issuperset(target.devices):
            return
        # What is still seen in use there need not keep the place from being held, only from being taken.
        if not fits_on(unobserved(state), request, target.devices, attempts.policy.overuse_percent):
            return
        devices = tuple(d for uuid in target.devices if (d := state.device(uuid)) is not None)
        claim = claim_for(pending, ordinal, state, devices, request, size, attempts.policy, attempts.now)
        if not later.admits(claim):
            return
        attempts.worlds.hold(claim)
        self._held[pending.workload.uid, ordinal] = Held(target, claim, place)

    def start(self, pending: Pending, shape: Shape, ordinal: int) -> Bind | Failure | None:
        """Start a replica where a place is held for it, or say that it has to wait; None: no place is held."""
        held = self._held.get((pending.workload.uid, ordinal))
        if held is None:
            return None
        attempts, claim = self._attempts, held.claim
        now = attempts.worlds.now
        size, request = shape.options[held.place]
        fits = fits_on(now.node(claim.node), request, claim.devices, attempts.policy.overuse_percent)
        if not fits or not now.admits(claim):
            text = f"{_moves(held.target)} as soon as the memory there is measured to be free"
            return Failure(Reason.WAITING_FOR_PREEMPTION, text, size=size)
        awaited = attempts.startups.on(pending, now.node(claim.node), claim.devices)
        if awaited is not None and not request.whole:
            waits = loading(awaited, attempts.policy.startup_seconds, size)
            return replace(waits, message=f"{_moves(held.target)}: {waits.message}")
        row = attempts.scene.table.row_of[claim.node]
        waste = self._waste(request, row)
        bind = attempts.bound(pending, shape, held.place, claim, row, waste, held=True)
        return replace(bind, explanation=f"{_moves(held.target)}: {bind.explanation}")

    def _waste(self, request: Request, row: int) -> int:
        return int(self._attempts.placer.wastes(request)[row])

    def leaving(self, pending: Pending) -> Failure | None:
        """Return what is to be said of a workload with replicas whose former pods have not left yet."""
        for pod in pending.blocked:
            if pod.claim is not None:
                held = self._held.get((pending.workload.uid, pod.claim.ordinal))
                if held is not None:
                    text = f"{_moves(held.target)} once {pod.key}, its former pod, is gone"
                    return Failure(Reason.WAITING_FOR_PREEMPTION, text)
        return None


def option(shape: Shape, fmt: str, max_model_len: int, kv_tokens: int) -> int | None:
    """Return the place of a precision and context among the options of a shape, None if it is not there.

    Of several the one with most KV tokens up to `kv_tokens`: what was granted beyond that is granted anew.
    """
    for place, (size, _) in enumerate(shape.options):
        if size.format == fmt and size.max_model_len == max_model_len and size.kv_tokens <= kv_tokens:
            return place
    return None


def _moves(target: Target) -> str:
    return f"moves to node {target.node} so that {target.beneficiary} can start"

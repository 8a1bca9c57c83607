"""Backfill with reservations: a place is kept for the first work that cannot start, and smaller work may use it meanwhile.

The first claim in queue order that fits nowhere, and for which nobody can be displaced, gets a place in the future
(`vacancy`) and a time by which it is expected to be free. Who comes later in the order may use the devices of that
place only if

    it is expected to have left by then (`ends`), or
    the claimant may displace it by then (`yielding`);

everybody else has to leave those devices, and host and quota enough for the claimant, alone. This is EASY backfilling
(Lifka 1995; Mu'alem and Feitelson 2001) with ends that are declared or learned, and with displacement. A claimant that
has waited for longer than `ReservationPolicy.after` relies on declared ends only, so that estimates that are wrong
again and again do not keep it waiting; and where nobody knows of any time, from then on devices gather for it.

Nothing is remembered: each plan makes its reservations anew, and while ends hold they come out no later.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.ends import NEVER, Ends
from llmos_operator.scheduler.plan import Reservation
from llmos_operator.scheduler.quota import Amount, charge
from llmos_operator.scheduler.vacancy import Search
from llmos_operator.scheduler.wording import kept
from llmos_operator.scheduler.yielding import would_yield_from
from llmos_operator.state import ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.scheduler.attempt import Attempts, Result
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.recall import Shape
    from llmos_operator.scheduler.room import Room
    from llmos_operator.scheduler.table import Bools
    from llmos_operator.scheduler.vacancy import Vacancy
    from llmos_operator.state.types import Claim, DeviceSelector, Workload

_REASONS: Final = frozenset({Reason.NO_CAPACITY})
_TRIES: Final = 4  # searches in vain for each kind of place: behind them nobody is looked at


@dataclass(frozen=True, slots=True)
class Kept:
    """One reservation in the making of a plan."""

    pending: Pending
    place: Vacancy
    aged: bool
    columns: dict[int, Bools]  # row -> devices that are kept
    before: dict[str, frozenset[str]]  # node -> pods that were there when it was made
    amount: Amount  # of quota


class Reservations:
    """The reservations of one plan, in queue order."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._kept: list[Kept] = []
        self._kinds: Counter[tuple[str, DeviceSelector]] = Counter()  # places kept
        self._vain: Counter[tuple[str, DeviceSelector]] = Counter()  # searches without a place
        self._sought: set[tuple[object, ...]] = set()
        self._open: dict[tuple[int, str, float], bool] = {}
        self._ends: Ends | None = None

    @property
    def ends(self) -> Ends:
        """Expected ends; made when first asked for."""
        if self._ends is None:
            attempts = self._attempts
            self._ends = Ends(attempts.snapshot, attempts.policy, attempts.now)
        return self._ends

    def consider(self, pending: Pending, shape: Shape, result: Result) -> None:
        """Keep a place for a workload whose replicas have just been tried in vain, if it is its turn."""
        attempts = self._attempts
        if result.failure is None or self.settled(pending, shape, result):
            return
        kind, unit = self._kind(pending), _unit(pending, result)
        aged = self.aged(pending.workload)
        with attempts.preemption.searching():
            search = Search(attempts, self.ends, pending, shape, unit)
            place = search.soonest() or (search.gather() if aged else None)
        if place is None or not all(self._leaves(one, claim) for claim in place.claims for one in self._kept):
            self._vain[kind] += 1
            self._sought.add(self._key(pending, shape, unit))
            return
        self._kinds[kind] += 1
        self._keep(pending, place, aged=aged)
        result.reservation = _told(pending, place)
        result.failure = replace(
            result.failure, message=f"{result.failure.message}; {kept(result.reservation)}"
        )

    def settled(self, pending: Pending, shape: Shape, result: Result) -> bool:
        """Return whether no place is sought for a workload that has been tried, nor for any like it, in this plan."""
        failed, limits = result.failure, self._attempts.policy.reservation
        if failed is None or failed.reason not in _REASONS or not pending.workload.accelerators:
            return True
        kind, unit = self._kind(pending), _unit(pending, result)
        if not unit or self._kinds[kind] >= limits.most or self._vain[kind] >= _TRIES:
            return True
        return self._key(pending, shape, unit) in self._sought or self._attempts.preemption.out_of_time

    def aged(self, workload: Workload) -> bool:
        """Return whether a workload has waited for so long that a place is kept though nobody knows when it will be free."""
        return self._attempts.now - workload.created_at > self._attempts.policy.reservation.after

    def _kind(self, pending: Pending) -> tuple[str, DeviceSelector]:
        return self._tree(pending.queue), pending.workload.selector

    def _key(self, pending: Pending, shape: Shape, unit: Sequence[int]) -> tuple[object, ...]:
        workload = pending.workload
        asked = (shape.number, workload.members, workload.topology, workload.preemption, len(unit))
        return (*asked, pending.queue, pending.priority, self.aged(workload))

    def _keep(self, pending: Pending, place: Vacancy, *, aged: bool) -> None:
        table, later = self._attempts.scene.table, self._attempts.worlds.later
        columns: dict[int, Bools] = {}
        for name in place.states:
            held = {uuid for claim in place.claims if claim.node == name for uuid in claim.devices}
            row = table.row_of[name]
            columns[row] = np.zeros(table.width, np.bool_)
            for column, device in enumerate(later.node(name).devices):
                columns[row][column] = device.uuid in held
        before = {name: frozenset(later.node(name).pods) for name in place.states}
        amount = sum((charge(claim) for claim in place.claims), Amount())
        self._kept.append(Kept(pending, place, aged, columns, before, amount))

    # -- who may use them -----------------------------------------------------------------------------------

    def openness(self, pending: Pending) -> tuple[bool, ...]:
        """Return which of the reservations do not concern a workload: those that it may use meanwhile."""
        return tuple(
            self._is_open(one, pending.workload, pending.queue, pending.priority) for one in self._kept
        )

    def usable(self, pending: Pending, row: int, columns: Bools, delay: float = 0.0) -> Bools:
        """Return which of a row's devices are not kept from a workload that starts within `delay` seconds."""
        workload = pending.workload
        for one in self._kept:
            held = one.columns.get(row)
            if held is not None and not self._is_open(one, workload, pending.queue, pending.priority, delay):
                columns = columns & ~held
        return columns

    def narrow(self, pending: Pending, room: Room) -> Room:
        """Return the room without the devices that are kept from a workload. The room is changed."""
        for one in self._kept:
            if not self._is_open(one, pending.workload, pending.queue, pending.priority):
                for row, held in one.columns.items():
                    room.slots[row] = np.where(held, 0, room.slots[row])
        return room

    def leave(self, claim: Claim, delay: float = 0.0) -> bool:
        """Return whether a claim that starts within `delay` seconds takes nothing that is kept from it."""
        return all(self._leaves(one, claim, delay) for one in self._kept)

    def keeps(self, devices: Iterable[str], priority: int) -> bool:
        """Return whether one of the devices is kept for a claim of higher priority."""
        wanted = set(devices)
        return any(
            one.pending.priority > priority
            and wanted & {uuid for c in one.place.claims for uuid in c.devices}
            for one in self._kept
        )

    def rows(self) -> set[int]:
        """Return the rows on which devices are kept."""
        return {row for one in self._kept for row in one.columns}

    def names(self) -> list[str]:
        """Return for whom places are kept."""
        return [one.pending.workload.key for one in self._kept]

    def _leaves(self, one: Kept, claim: Claim, delay: float = 0.0) -> bool:
        workload = self._attempts.snapshot.workloads[claim.workload]
        if self._is_open(one, workload, claim.queue, claim.priority, delay):
            return True
        tree = self._attempts.worlds.later.tree
        tree.add(one.pending.queue, one.amount)
        within = tree.fits(claim.queue, charge(claim))
        tree.add(one.pending.queue, one.amount, -1)
        state = one.place.states.get(claim.node)
        if state is None or not within:
            return within
        for key, pod in self._attempts.worlds.later.node(claim.node).pods.items():  # of this plan, since then
            if pod.claim is not None and key not in one.before[claim.node] and not self._goes(one, pod.claim):
                state = state.with_pod(pod)
        return not ledger.shortfall(state, claim)

    def _goes(self, one: Kept, claim: Claim) -> bool:
        workload = self._attempts.snapshot.workloads[claim.workload]
        return self._is_open(one, workload, claim.queue, claim.priority)

    def _is_open(self, one: Kept, workload: Workload, queue: str, priority: int, delay: float = 0.0) -> bool:
        key = (id(one), workload.uid, delay)
        if key not in self._open:
            self._open[key] = self._may_use(one, workload, queue, priority, delay)
        return self._open[key]

    def _may_use(self, one: Kept, workload: Workload, queue: str, priority: int, delay: float) -> bool:
        yields = would_yield_from(self._attempts, one.pending, workload, queue, priority) + delay
        if yields < NEVER and yields <= one.place.start:
            return True
        # Where nobody knows when it will be free, what ends some day would always be in the way of the last device.
        end = self.ends.of_new(workload, declared_only=one.aged) + delay
        return end <= one.place.start < NEVER

    def _tree(self, queue: str) -> str:
        """Return the root of a queue's tree."""
        queues = self._attempts.snapshot.queues
        seen = {queue}
        while queue in queues and queues[queue].parent not in {"", *seen}:
            queue = queues[queue].parent
            seen.add(queue)
        return queue


def _unit(pending: Pending, result: Result) -> Sequence[int]:
    """Return the ordinals of the first replicas that found no place: all that start together, or one."""
    bound = {bind.claim.ordinal for bind in result.binds}
    left = [ordinal for ordinal in pending.ordinals if ordinal not in bound]
    if pending.core and not bound:
        return left[: pending.core] if len(left) >= pending.core else ()
    return left[:1]


def _told(pending: Pending, place: Vacancy) -> Reservation:
    return Reservation(
        pending.workload.key,
        pending.workload.uid,
        tuple(claim.node for claim in place.claims),
        tuple(uuid for claim in place.claims for uuid in claim.devices),
        place.start if place.start < NEVER else None,
        tuple(sorted(pod.key for pod in place.waits_for)),
    )

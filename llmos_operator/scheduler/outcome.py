"""Collects what a cycle decided into a Plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import stepping_aside
from llmos_operator.scheduler.plan import Decision, Plan, Wait
from llmos_operator.scheduler.recall import say
from llmos_operator.scheduler.securing import Securing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.scheduler.attempt import Result
    from llmos_operator.scheduler.plan import (
        Bind,
        Cut,
        Evict,
        Grow,
        Move,
        Reservation,
        Restore,
        Shrink,
        Sleep,
        Wake,
    )
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.queueing import Lines, Pending, Refused
    from llmos_operator.scheduler.recall import Recall
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import WorkloadKey


class Outcome:
    """What has been decided so far. Evictions, moves and shrinks come before binds: their room takes longest to appear."""

    def __init__(self, snapshot: Snapshot, policy: Policy, now: float, recall: Recall) -> None:
        self._recall = recall
        self._snapshot = snapshot
        self._policy = policy
        self._now = now
        self._evictions: list[Evict] = []
        self._shrinks: list[Shrink] = []
        self._sleeps: list[Sleep] = []
        self._wakes: list[Wake] = []
        self._moves: list[Move] = []
        self._binds: list[Bind] = []
        self._restores: list[Restore] = []
        self._grows: list[Grow] = []
        self._cuts: list[Cut] = []
        self._waits: list[Wait] = []
        self._decisions: dict[WorkloadKey, Decision] = {}
        self._reservations: list[Reservation] = []
        self._interrupted = False
        self._securing = Securing(snapshot)

    def repair(self, evictions: tuple[Evict, ...]) -> None:
        """Take evictions of what can no longer run."""
        self._evictions += evictions

    def refuse(self, refused: list[Refused]) -> None:
        """Take workloads that stand in no line."""
        for one in refused:
            self._waits.append(
                Wait(one.workload.key, one.workload.uid, one.replicas, one.reason, one.message)
            )
            self._decisions[one.workload.key] = Decision(
                one.workload.key,
                one.workload.uid,
                one.workload.generation,
                one.reason,
                one.message,
                queue=one.workload.queue or self._policy.default_queue,
                pending=one.replicas,
                instead=stepping_aside.gives_back(self._snapshot, one.workload, one.reason),
            )

    def record(self, pending: Pending, result: Result, *, in_line: bool = True) -> None:
        """Take what became of a workload, in a line or (`in_line` False) of one that stands in none."""
        self._evictions += result.evictions
        self._shrinks += result.shrinks
        self._sleeps += result.sleeps
        self._moves += result.moves
        binds = self._securing.admit(result)
        self._binds += binds
        workload, failure = pending.workload, result.failure
        if result.waiting and failure is not None:
            place = result.reservation
            if place is not None:
                self._reservations.append(place)
            said = self._recall.word if in_line else say
            wait, decision = said(pending, result.waiting, failure, place, result.instead)
            self._waits.append(wait)
            self._decisions[workload.key] = decision
        elif binds:
            last = binds[-1]
            self._decisions[workload.key] = Decision(
                workload.key,
                workload.uid,
                workload.generation,
                Reason.BOUND,
                last.explanation,
                queue=pending.queue,
                format=last.claim.format,
                bytes_per_device=last.claim.bytes_per_device,
                scored_by=last.scored_by,
            )

    def grow(self, grows: Iterable[tuple[Pending, Result, Grow]]) -> None:
        """Take who gets back replicas it gave up, with their places: they are placed in this plan, or not at all."""
        for pending, result, grow in grows:
            self.record(pending, result, in_line=False)
            self._grows.append(grow)

    def call_back(self, evictions: list[Evict], restores: list[Restore]) -> None:
        """Take who goes for lenders that work again, and who of these has got back what it lent."""
        self._evictions += evictions
        self._restores += restores

    def restore(self, restores: list[Restore]) -> None:
        """Take what is given back to replicas that came down."""
        self._restores += restores

    def give_up(self, evictions: list[Evict]) -> None:
        """Take evictions of replicas that sleep and will be better off elsewhere."""
        self._evictions += evictions

    def wake(self, wakes: list[Wake]) -> None:
        """Take who wakes: before anybody who is bound later in the plan."""
        self._wakes += wakes

    def rest(self, sleeps: list[Sleep]) -> None:
        """Take who sleeps because nobody asks anything of it."""
        self._sleeps += sleeps

    def cut(self, cuts: list[Cut]) -> None:
        """Take which GPUs are to be cut anew."""
        self._cuts += cuts

    def interrupt(self) -> None:
        """Note that the time ran out."""
        self._interrupted = True

    def plan(self, waiting: Lines) -> Plan:
        """Return the plan, with places in the queues counted over those that still wait."""
        for line in waiting.lines.values():
            position = 0
            for pending in line:
                decision = self._decisions.get(pending.workload.key)
                if decision is not None and not decision.pending:
                    continue
                position += 1
                if decision is not None:
                    self._decisions[pending.workload.key] = self._recall.placed(decision, position)
        return Plan(
            self._snapshot.version,
            self._now,
            (
                *self._evictions,
                *self._moves,
                *self._shrinks,
                *self._sleeps,
                *self._wakes,
                *self._grows,
                *self._binds,
                *self._restores,
                *self._cuts,
            ),
            tuple(self._waits),
            self._decisions,
            tuple(self._reservations),
            self._interrupted,
            self._securing.needs(),
        )

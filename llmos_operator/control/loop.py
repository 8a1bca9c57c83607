"""The decision loop: wait for a batch, review what changed, plan on a snapshot, hand the plan over.

Planning is pure and runs in a thread with a time budget, so probes, watches and the lease stay alive meanwhile. The
loop acts only while this process leads, every list is complete, and the view is known to be fresh since it leads.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from llmos_operator.control.placement_spans import Cycle
from llmos_operator.observability.logging import context, logger
from llmos_operator.observability.slices import in_slices
from llmos_operator.scheduler.budget import Budget
from llmos_operator.scheduler.cycle import plan as make_plan
from llmos_operator.scheduler.recall import Recall
from llmos_operator.scheduler.table import NodeTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.executor import Executor
    from llmos_operator.clock import Clock
    from llmos_operator.control.batcher import Batcher
    from llmos_operator.control.feedback import Feedback
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.records import Record
    from llmos_operator.control.review import Reviewer
    from llmos_operator.observability.heartbeat import Heartbeat
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store

log = logger(__name__)

FIRST_SECONDS = 2.0  # for which a new workload's status waits for its first decision
IDLE_SECONDS = 5.0  # the longest the loop stands still: its heartbeat
WAITING_SECONDS = (
    5.0  # between plans while workloads wait and nothing changes: time itself may let them start
)


class Loop:
    """One cycle after the other."""

    def __init__(
        self,
        *,
        store: Store,
        batcher: Batcher,
        reviewer: Reviewer,
        executor: Executor,
        feedback: Feedback,
        policy: Policy,
        metrics: OperatorMetrics,
        heartbeat: Heartbeat,
        clock: Clock,
        plan_seconds: float,
        search_seconds: float,
        may_act: Callable[[], bool],
        reviewed: Callable[[str], None],
        prices: Callable[[], Prices | None],
        record: Callable[[Snapshot, Plan, Prices | None], None] | None = None,
        planned: Callable[[Plan, Cycle], None] = lambda _plan, _cycle: None,
        hold: Callable[[Plan | None], None] = lambda _: None,
    ) -> None:
        """`prices` gives the newest there are.

        `reviewed` is told each workload that was looked at: only then is all known that its status is made from.

        `record` is told each plan and what it was made of, once it is on its way; `planned` each that will be carried out, before.

        `hold` looks after holder pods and ResourceClaims: with each plan that was carried out, and with None whenever the loop turns without one.
        """
        self._store = store
        self._batcher = batcher
        self._reviewer = reviewer
        self._executor = executor
        self._feedback = feedback
        self._policy = policy
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._clock = clock
        self._plan_seconds = plan_seconds
        self._search_seconds = search_seconds
        self._may_act = may_act
        self._reviewed = reviewed
        self._record = record
        self._planned = planned
        self._hold = hold
        self._prices = prices
        self._table, self._recall = NodeTable(), Recall()
        self._dirty: set[str] = set()
        self._planned_version = -1
        self._planned_at = 0.0
        self._planning = False
        self._waiting = False
        self.cycles = 0

    def review(self, key: str) -> None:
        """Mark a workload to be looked at in the next cycle, and ask for one."""
        self._dirty.add(key)
        self._batcher.trigger()

    def undecided(self, record: Record) -> bool:
        """Return whether the first plan that looks at the workload is still to be made.

        That is so before the lists are complete, too: a status made from half of the facts would be wrong.
        """
        if not self._may_act():
            return True
        if record.decision is not None:
            return False
        due = self._planning or self._store.version != self._planned_version
        return due and self._clock.monotonic() - record.seen_at < FIRST_SECONDS

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            await self._batcher.wait(self._pause())
            self._heartbeat.beat()
            if self._may_act():
                await self.cycle()

    def _pause(self) -> float:
        """Return the seconds until something is due without any event."""
        due = self._reviewer.next_due()
        return IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(0.05, due - self._clock.monotonic()))

    async def cycle(self) -> None:
        """Review what changed, plan if a decision could differ, hand the plan over."""
        now = self._clock.now()
        self._dirty.update(self._reviewer.due(self._clock.monotonic()))
        dirty, self._dirty = self._dirty, set()
        async for key in in_slices(dirty):
            self._review(key)
        for pod in self._store.take_corrected():
            self._executor.lowering.corrected(pod)
        if not self._worth_planning(self._clock.monotonic()):
            self._hold(None)
            return
        self.cycles += 1
        with context(cycle=self.cycles):
            self._store.advance(now)
            snapshot = self._store.snapshot()
            self._planned_version, self._planned_at = snapshot.version, self._clock.monotonic()
            prices = self._prices()
            plan = await self._plan(snapshot, now, prices)
            # What an interrupted plan did not come to is looked at with the next change, or after a pause: were it at
            # once, a plan that never ends in time would be made without end.
            # Memory that was given up is given back, and who sleeps wakes, when enough time has passed, without any other change.
            given_up = bool(snapshot.lowered or snapshot.sleeping)
            self._waiting = plan is None or bool(plan.waits) or plan.interrupted or given_up
            if plan is not None and self._may_act():
                self._planned(plan, Cycle(self.cycles, now, self._clock.now()))
                self._hand_over(plan)
                self._hold(plan)
            if plan is not None and self._record is not None:
                self._record(snapshot, plan, prices)

    def _review(self, key: str) -> None:
        try:
            self._reviewer.review(key)
        except Exception:
            self._metrics.unreadable.labels("ModelWorkload").inc()
            log.exception("workload cannot be reviewed, left out", workload=key)
        self._reviewed(key)

    def _worth_planning(self, now: float) -> bool:
        if self._store.version != self._planned_version:
            return True
        return self._waiting and now - self._planned_at >= WAITING_SECONDS

    async def _plan(self, snapshot: Snapshot, now: float, prices: Prices | None) -> Plan | None:
        """Return the plan; None if making it failed, which must not end statuses, repairs and the lease with it."""
        budget = Budget(time.monotonic, deciding=self._plan_seconds, searching=self._search_seconds)
        started = time.monotonic()
        self._planning = True
        try:
            plan = await asyncio.to_thread(
                make_plan, snapshot, self._policy, now, budget, self._table, prices, self._recall
            )
        except Exception:
            self._table, self._recall = NodeTable(), Recall()
            self._metrics.failed_plans.inc()
            log.exception("no plan could be made, trying again")
            return None
        finally:
            self._planning = False
        self._metrics.cycles.observe(time.monotonic() - started)
        if plan.interrupted:
            self._metrics.interrupted.inc()
            self._batcher.trigger()  # what it has bound is a change
        return plan

    def _hand_over(self, plan: Plan) -> None:
        taken = self._executor.carry_out(plan)
        for decision in plan.decisions.values():
            self._feedback.decided(decision)
        kinds = Counter(type(action).__name__ for action in plan.actions)
        for kind, count in kinds.items():
            self._metrics.actions.labels(kind).inc(count)
        for bind in plan.binds:
            self._metrics.placements.labels(bind.scored_by).inc()
        reasons = Counter(wait.reason.value for wait in plan.waits)
        self._metrics.pending.clear()
        for reason, count in reasons.items():
            self._metrics.pending.labels(reason).set(count)
        known = sum(one.start is not None for one in plan.reservations)
        self._metrics.reservations.labels("expected").set(known)
        self._metrics.reservations.labels("unknown").set(len(plan.reservations) - known)
        if plan.actions:
            log.info(
                "plan",
                **{kind.lower(): count for kind, count in kinds.items()},
                waits=len(plan.waits),
                taken=taken,
            )

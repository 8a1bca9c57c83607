"""Looks at one workload at a time and puts right what the scheduler does not decide.

How many replicas are wanted, which pods go, whether new ones may start, whether its Service and profile exist: each
look compares what is wanted with what is there, so a lost event costs time and nothing else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api.conditions import Reason
from llmos_operator.control import ceilings, gangs, jobs, lifetime, reconcile, rightsizing
from llmos_operator.control.autoscale import Scalers, has_lent
from llmos_operator.control.history import finish_of
from llmos_operator.errors import LlmosError, Permanent
from llmos_operator.manifests.observed import Refusal, Scaling
from llmos_operator.manifests.rollout import instead
from llmos_operator.manifests.status import learned_text
from llmos_operator.observability.logging import logger
from llmos_operator.state.types import Hold, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmos_operator.actuators.executor import Executor
    from llmos_operator.actuators.support import Support
    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.events import EventType
    from llmos_operator.control.demand import DemandBook
    from llmos_operator.control.expiry import Expiry
    from llmos_operator.control.feedback import Feedback
    from llmos_operator.control.gangs import GangLimits
    from llmos_operator.control.kueuekeeper import KueueKeeper
    from llmos_operator.control.profiles import Profiles
    from llmos_operator.control.reconcile import FailedReplica, Ruling
    from llmos_operator.control.records import Record, Records
    from llmos_operator.settings import SourceSettings
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Workload

log = logger(__name__)

# Refusals that stop a workload even where resources.memory makes its size known.
_UNSAFE = frozenset(
    {Reason.UNSAFE_CONFIG, Reason.UNSAFE_FORMAT, Reason.CORRUPTED, Reason.MODEL_NOT_FOUND, Reason.UNSUPPORTED}
)


REFUSED_SECONDS = 60.0  # a device plugin's word is with the scheduler long before


def _refusal_note(node: str) -> str:
    return (
        f"The kubelet of {node} had no device for the pod: its device plugin offers fewer than the node advertises, or "
        f"somebody else was given one. Nothing that needs whole devices is planned there for {REFUSED_SECONDS:.0f} s."
    )


class Reviewer:
    """Reviews workloads by key."""

    def __init__(
        self,
        *,
        store: Store,
        records: Records,
        executor: Executor,
        support: Support,
        profiles: Profiles,
        feedback: Feedback,
        queue: WriteQueue,
        demand: DemandBook,
        failures: KeyedBackoff[str],
        sources: SourceSettings,
        gangs: GangLimits,
        expiry: Expiry,
        kueue: KueueKeeper,
        clock: Clock,
        working: Callable[[str], str],
    ) -> None:
        """`working` returns what shows that a workload (by UID) works without requests, "" where nothing does."""
        self._store = store
        self._records = records
        self._executor = executor
        self._support = support
        self._profiles = profiles
        self._feedback = feedback
        self._queue = queue
        self._demand = demand
        self._failures = failures
        self._sources = sources
        self._gangs = gangs
        self._expiry = expiry
        self._kueue = kueue
        self._clock = clock
        self._scalers = Scalers(store, records, demand, profiles.load_seconds, working)
        self._timed: dict[str, float] = {}  # key -> monotonic seconds when it must be looked at again

    def due(self, now: float) -> list[str]:
        """Return workloads whose time to be looked at again has come at ``now`` (monotonic)."""
        keys = [key for key, at in self._timed.items() if at <= now]
        for key in keys:
            del self._timed[key]
        return keys

    def next_due(self) -> float | None:
        """Return when :meth:`due` will next return something (monotonic seconds)."""
        return min(self._timed.values(), default=None)

    def forget(self, record: Record) -> None:
        """Drop what is remembered of a workload that is gone, and let its pods go."""
        self._scalers.forget(record.key)
        self._timed.pop(record.key, None)
        self._kueue.forget(record.uid)
        self._demand.forget(record.key)
        self._failures.succeed(record.key)
        self._failures.succeed(f"service {record.key}")
        self._failures.succeed(f"gang service {record.key}")
        for retire in reconcile.orphans(self._store.pods_of(record.uid)):
            self._executor.retire(retire)

    def review(self, key: str) -> None:
        """Compare what the workload wants with what is there, and queue what has to be done."""
        record = self._records.get(key)
        workload = self._store.workload(key)
        if record is None or workload is None or workload.deleting:
            return
        now = self._clock.now()
        self._scale(record, workload, now)
        self._ask_kueue(record, workload)
        workload = self._store.workload(key) or workload
        ruling = reconcile.rule(
            reconcile.Situation(
                workload,
                now,
                pods=self._store.pods_of(record.uid),
                replicas=self._records.replicas_of(record.uid),
                reports=self._records.reports_of(record.uid),
                overdue=self._overdue(record, workload),
                limits=self._gangs,
                tries=record.tries,
                written=jobs.tries_of(record.status),
                instead=instead(workload, record.decision),
            )
        )
        record.tries = ruling.tries
        self._end(record, workload, ruling, now)
        self._take_failures(record, workload, ruling)
        self._take_refusals(record, ruling, now)
        record.trouble = ruling.trouble or self._service_trouble(record)
        self._hold(record, workload)
        for retire in ruling.retire:
            if self._executor.retire(retire) and retire.reason == Reason.GANG_INCOMPLETE:
                self._feedback.tell(
                    record, "Warning", Reason.GANG_INCOMPLETE, retire.message, key=retire.message
                )
        self._ensure_services(record, workload)
        again = self._expiry.look(workload, record.status)
        if again is not None:
            self._look_again(key, again)

    def _ask_kueue(self, record: Record, workload: Workload) -> None:
        pods = [pod for pod in self._store.pods_of(record.uid) if pod.ready]
        ready = bool(workload.replicas) and gangs.serving(workload, pods) >= workload.replicas
        again = self._kueue.look(workload, finish_of(record.status), ready=ready)
        if again is not None:
            self._look_again(record.key, again)

    # -- replicas -------------------------------------------------------------------------------------------

    def _scale(self, record: Record, workload: Workload, now: float) -> None:
        scaled = self._scalers.scale(record, workload, now)
        if scaled is None:
            self._store.set_replicas(record.key, None)
            self._store.set_idle(record.key, idle=False)
            self._store.set_lending(
                record.key, lending=False if has_lent(self._store.pods_of(record.uid)) else None
            )
            record.scaling = Scaling()
            ceilings.release(self._store, record.key, now)
            return
        self._store.set_replicas(record.key, scaled.replicas)
        self._store.set_idle(record.key, idle=scaled.dozes)
        self._store.set_lending(record.key, lending=scaled.lends)
        record.scaling = ceilings.told(scaled.verdict, self._store.workload(record.key) or workload)
        ceilings.release(self._store, record.key, now)
        # Demand ages by itself, so a scaled workload is looked at every second while anything of it runs.
        if scaled.replicas or self._store.pods_of(record.uid):
            self._look_again(record.key, self._clock.monotonic() + 1.0)

    def _look_again(self, key: str, at: float) -> None:
        self._timed[key] = min(at, self._timed.get(key, at))

    def _overdue(self, record: Record, workload: Workload) -> frozenset[int]:
        """Return which gaps of the workload's gangs have lasted for longer than their grace; look again when others will."""
        pods, now, limits = self._store.pods_of(record.uid), self._clock.monotonic(), self._gangs
        record.gaps = {gap: record.gaps.get(gap, now) for gap in gangs.gaps(workload, pods)}
        for since in record.gaps.values():
            if since + limits.grace > now:
                self._look_again(record.key, since + limits.grace)
        replicas = self._records.replicas_of(record.uid) if workload.members > 1 else {}
        late = gangs.next_look(workload, pods, replicas, limits.start)
        if late is not None:
            self._look_again(record.key, now + max(1.0, late - self._clock.now()))
        return frozenset(gap for gap, since in record.gaps.items() if since + limits.grace <= now)

    def _end(self, record: Record, workload: Workload, ruling: Ruling, now: float) -> None:
        """Say that the workload has finished: its work has ended, or its time is over.

        Pods that still run go once the API shows that it is said.
        """
        if workload.finished or record.ended is not None:
            return
        if ruling.ended is not None:
            record.ended = ruling.ended
            kind: EventType = "Normal" if ruling.ended.reason is Reason.SUCCEEDED else "Warning"
            self._feedback.tell(record, kind, ruling.ended.reason, ruling.ended.message)
            return
        due = lifetime.over_at(workload, self._store.pods_of(record.uid))
        if due is None:
            return
        if due > now:
            # By the wall clock, which may be set: look again at least once an hour.
            self._look_again(record.key, self._clock.monotonic() + min(due - now, 3600.0))
        else:
            record.ended = lifetime.verdict(workload, now)
            self._feedback.tell(record, "Normal", Reason.DEADLINE_EXCEEDED, record.ended.message)

    # -- failures -------------------------------------------------------------------------------------------

    def _take_failures(self, record: Record, workload: Workload, ruling: Ruling) -> None:
        for failed in ruling.failed:
            if failed.event not in record.counted:
                record.counted.add(failed.event)
                self._count(record, workload, failed)
        if ruling.running:
            record.preemption = None
        if ruling.recovered and (record.failure is not None or record.preemption is not None):
            record.failure = None
            if workload.wanted is None and not any(
                pod.claim is not None and (pod.claim.lowered or pod.claim.sleeping is not None)
                for pod in self._store.pods_of(record.uid)
            ):
                record.preemption = None
            record.permanent = False
            record.counted.clear()
            self._failures.succeed(record.key)

    def _take_refusals(self, record: Record, ruling: Ruling, now: float) -> None:
        """Leave alone, for a while, nodes whose kubelet had no devices for a pod: the next one would go there as well."""
        for uid, node in ruling.refused:
            if (event := f"refused {uid}") not in record.counted:
                record.counted.add(event)
                log.warning("kubelet refused devices", workload=record.key, node=node)
                self._store.note_refusal(node, now + REFUSED_SECONDS)
                self._feedback.tell(record, "Warning", Reason.DEVICES_REFUSED, _refusal_note(node), key=event)

    def _count(self, record: Record, workload: Workload, failed: FailedReplica) -> None:
        record.failure = failed.failure
        record.permanent = failed.permanent
        log.warning(
            "replica failed",
            workload=record.key,
            reason=failed.failure.reason,
            permanent=failed.permanent,
            error=failed.failure.message,
        )
        note = failed.failure.message
        if failed.retired and not failed.permanent:
            self._failures.fail(record.key, self._clock.monotonic())
        shortage = failed.shortage
        if shortage is not None and rightsizing.learns_alone(workload):
            record.learned = rightsizing.after_shortage(record.learned, workload, shortage.reserved_bytes)
            note += f" {learned_text(workload, record.learned)}"
            self._feedback.tell(record, "Warning", Reason.ESTIMATE_RAISED, note, key=failed.event)
            return
        if shortage is not None:
            note += " The estimate is raised; the next attempt reserves more or uses a narrower format."
            self._queue.submit(
                Job(
                    Rank.SUPPORT,
                    f"floor {failed.event}",
                    lambda: self._profiles.raise_floor(shortage),
                    lambda: record.counted.discard(failed.event),
                )
            )
            self._feedback.tell(record, "Warning", Reason.ESTIMATE_RAISED, note, key=failed.event)
            return
        self._feedback.tell(record, "Warning", Reason.FAILED, note, key=failed.event)

    def _hold(self, record: Record, workload: Workload) -> None:
        """Keep new replicas back while they cannot start, or lift that."""
        blocked = reconcile.refusal(
            workload, allow_file=self._sources.allow_file, allowed_hosts=self._sources.allowed_hosts
        )
        if blocked is None and not workload.finished:
            blocked = self._inspection(workload)
        record.uninspectable = blocked
        now, retry_at = self._clock.monotonic(), self._failures.ready_at(record.key)
        hold = reconcile.hold(
            workload,
            blocked,
            record.failure,
            permanent=record.permanent and not jobs.is_job(workload),  # such work has finished then
            backing_off=retry_at > now,
            unmountable=self._store.claim_trouble(record.key),
        )
        if record.ended is not None:
            hold = Hold(Reason.COMPLETE, record.ended.message, math.inf, workload.generation)
        self._store.set_hold(record.key, hold)
        if hold is not None and retry_at > now:
            self._look_again(record.key, retry_at)

    def _inspection(self, workload: Workload) -> Refusal | None:
        uri, revision = workload.model.uri, workload.model.revision
        refusal = self._profiles.want(uri, revision)
        if refusal is not None:
            # While it is being inspected again that time is past.
            soon = self._clock.monotonic() + 1.0
            self._look_again(workload.key, max(soon, self._profiles.retry_at(uri, revision)))
        if refusal is None or (workload.memory_bytes is not None and refusal.reason not in _UNSAFE):
            return None
        return refusal

    # -- service --------------------------------------------------------------------------------------------

    def _service_trouble(self, record: Record) -> Refusal | None:
        """Return the standing trouble with the Service's name, until it is solved."""
        trouble = record.trouble
        if (
            trouble is None
            or trouble.reason is not Reason.NAME_TAKEN
            or self._support.has_service(record.stub)
        ):
            return None
        return trouble

    def _ensure_services(self, record: Record, workload: Workload) -> None:
        """Make the Service clients use, and the one the members of a gang find each other by."""
        if not self._store.pods_of(record.uid):
            return
        if workload.kind is WorkloadKind.INFERENCE and not self._support.has_service(workload):
            self._make_service(
                record, f"service {record.key}", lambda: self._support.ensure_service(workload)
            )
        if not self._support.has_gang_service(workload):
            key = f"gang service {record.key}"
            self._make_service(record, key, lambda: self._support.ensure_gang_service(workload))

    def _make_service(self, record: Record, key: str, make: Callable[[], Awaitable[None]]) -> None:
        if self._queue.holds(key) or not self._failures.ready(key, self._clock.monotonic()):
            return
        self._queue.submit(Job(Rank.SUPPORT, key, lambda: self._try_service(record, key, make)))

    async def _try_service(self, record: Record, key: str, make: Callable[[], Awaitable[None]]) -> None:
        try:
            await make()
        except LlmosError as error:
            self._look_again(record.key, self._failures.fail(key, self._clock.monotonic()))
            log.warning("service not made", workload=record.key, error=error)
            if isinstance(error, Permanent) and error.reason == Reason.NAME_TAKEN:
                record.trouble = Refusal(Reason.NAME_TAKEN, str(error))
                self._feedback.tell(record, "Warning", Reason.NAME_TAKEN, str(error))
            return
        self._failures.succeed(key)

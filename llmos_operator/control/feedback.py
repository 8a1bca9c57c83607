"""Hears what became of plans: keeps it in the records, tells it as Events and metrics, and asks for another look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import human_bytes
from llmos_operator.cluster.events import Subject
from llmos_operator.errors import Permanent
from llmos_operator.manifests.observed import Failure, Preemption, Score

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.outcomes import Retire
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.events import EventRecorder, EventType
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.placement_spans import PlacementSpans
    from llmos_operator.control.records import Record, Records
    from llmos_operator.scheduler.plan import (
        Bind,
        Decision,
        Evict,
        Grow,
        Move,
        Restore,
        Shrink,
        Sleep,
        Wake,
    )
    from llmos_operator.state.types import Pod, PodKey

# Reasons a person has to act on: told as a Warning Event, not only in the status.
_ACTIONABLE = frozenset(
    {
        Reason.LARGER_THAN_ANY_DEVICE,
        Reason.NO_MATCHING_DEVICE,
        Reason.QUEUE_NOT_FOUND,
        Reason.NAMESPACE_NOT_ADMITTED,
        Reason.FORMAT_NOT_ALLOWED,
        Reason.EXCEEDS_QUOTA,
    }
)
_SILENT_RETIREMENTS = frozenset({Reason.SUSPENDED, Reason.SCALING})


def subject_of(record: Record) -> Subject:
    """Return the workload as the subject of an Event."""
    namespace, _, name = record.key.partition("/")
    return Subject(names.API_VERSION, "ModelWorkload", name, namespace, record.uid)


class Feedback:
    """:class:`~llmos_operator.actuators.outcomes.Outcomes` of the control loop."""

    def __init__(
        self,
        records: Records,
        recorder: EventRecorder,
        metrics: OperatorMetrics,
        clock: Clock,
        failures: KeyedBackoff[str],
        *,
        review: Callable[[str], None],
        evicted: Callable[[Evict], None],
        spans: PlacementSpans,
    ) -> None:
        """`review` looks at a workload again; `evicted` is told each accepted eviction, while its pod is still known."""
        self._records = records
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self._failures = failures
        self._review = review
        self._evicted = evicted
        self._spans = spans

    def tell(self, record: Record, kind: EventType, reason: Reason, note: str, *, key: str = "") -> None:
        """Record an Event on a workload."""
        self._recorder.record(subject_of(record), kind, reason, note, key=key)

    def bound(self, bind: Bind) -> None:
        """Say that a replica's pod exists."""
        self._spans.bound(bind)
        record = self._current(bind.workload.key, bind.workload.uid)
        if record is None:
            return
        claim = bind.claim
        if record.failure is not None and record.failure.reason == Reason.POD_NOT_CREATED:
            record.failure = None
        record.scores = {
            **_only(record.scores, record, self._records),
            claim.pod: Score(bind.score, bind.scored_by),
        }
        record.estimated_bytes = bind.estimated_bytes or claim.bytes_per_device
        self._metrics.bind_seconds.observe(max(0.0, self._clock.now() - bind.workload.created_at))
        reserved = human_bytes(claim.bytes_per_device or claim.memory_bytes)
        rank = f", rank {claim.member}," if bind.workload.members > 1 else ""
        where = f"node {claim.node}" + (f", devices {', '.join(claim.devices)}" if claim.devices else "")
        note = f"Replica {claim.ordinal}{rank} goes to {where} at {claim.format} with {reserved}. {bind.explanation}"
        self.tell(record, "Normal", Reason.BOUND_POD, note, key=claim.pod)

    def bind_failed(self, bind: Bind, error: Exception) -> None:
        """Say that a replica's pod could not be created, for sure."""
        self._metrics.bind_failures.inc()
        self._spans.dropped(bind.claim.pod)
        record = self._current(bind.workload.key, bind.workload.uid)
        if record is None:
            return
        reason = error.reason if isinstance(error, Permanent) else Reason.FAILED
        record.failure = Failure(
            str(reason), str(error), self._clock.now(), generation=bind.workload.generation
        )
        self._failures.fail(record.key, self._clock.monotonic())
        self.tell(record, "Warning", Reason.FAILED, f"The pod could not be created: {error}", key=str(reason))
        self._review(record.key)

    def bind_delayed(self, bind: Bind, error: Exception, seconds: float) -> None:
        """Say that a replica's pod could not be created yet; its place is kept."""
        record = self._current(bind.workload.key, bind.workload.uid)
        if record is None:
            return
        text = f"The pod {bind.claim.pod} could not be created yet and is tried again: {error}"
        record.failure = Failure(
            Reason.POD_NOT_CREATED, text, self._clock.now(), generation=bind.workload.generation
        )
        note = f"{text} (next try in {max(1, round(seconds))} s)"
        self.tell(record, "Warning", Reason.POD_NOT_CREATED, note, key=bind.claim.pod)
        self._review(record.key)

    def evicted(self, evict: Evict) -> None:
        """Say that an eviction was accepted."""
        self._metrics.evictions.labels(evict.reason.value, "accepted").inc()
        self._evicted(evict)
        self._spans.ended(evict.pod, evict.reason.value)
        record = self._current(evict.victim, evict.victim_uid)
        if record is None:
            return
        if evict.fewer:
            self._metrics.replicas_given_up.labels("given").inc()
            self._disrupted(record, "Shrink", evict.preemptor, evict)
            note = f"{evict.pod}: {evict.explanation}"
            self.tell(record, "Normal", Reason.FEWER_REPLICAS, note, key=evict.pod_uid)
        else:
            if evict.reason is Reason.CALLED_BACK:
                self._metrics.loans.labels("called_back").inc()
            self._disrupted(record, "Evict", evict.preemptor, evict)
            self.tell(record, "Warning", Reason.EVICTED, evict.explanation, key=evict.pod_uid)
        self._review(record.key)

    def eviction_refused(self, evict: Evict, error: Exception, retry_at: float) -> None:
        """Say that a disruption budget refused an eviction for now: to who needs the room, or to who should leave."""
        self._metrics.evictions.labels(evict.reason.value, "refused").inc()
        if evict.fewer:
            self._metrics.replicas_given_up.labels("refused").inc()
        if evict.preemptor:
            self._refused(evict.preemptor, evict.pod, "evicted", error, retry_at)
        else:
            self._refused(evict.victim, evict.pod, "evicted", error, retry_at, evict.reason)

    def moved(self, move: Move) -> None:
        """Say that a replica goes to another place."""
        self._metrics.moves.labels("accepted").inc()
        self._spans.ended(move.pod, Reason.MOVED.value)
        record = self._current(move.workload, move.workload_uid)
        if record is not None:
            self._disrupted(record, "Move", move.beneficiary, move)
            self.tell(record, "Normal", Reason.MOVED, f"{move.pod}: {move.explanation}", key=move.pod_uid)
            self._review(record.key)

    def move_refused(self, move: Move, error: Exception, retry_at: float) -> None:
        """Say that a replica that was to be moved stays for now."""
        self._metrics.moves.labels("refused").inc()
        self._refused(move.beneficiary, move.pod, "moved", error, retry_at)

    def shrunk(self, shrink: Shrink) -> None:
        """Say that a replica is asked to come down."""
        self._metrics.shrinks.labels("asked").inc()
        if shrink.loan:
            self._metrics.loans.labels("asked").inc()
        record = self._current(shrink.victim, shrink.victim_uid)
        if record is None:
            return
        if shrink.loan:  # of its own will: nothing was taken from it
            note = f"{shrink.pod}: {shrink.explanation}"
            self.tell(record, "Normal", Reason.LENT, note, key=shrink.pod_uid)
            self._review(record.key)
            return
        self._disrupted(record, "Shrink", shrink.preemptor, shrink)
        self.tell(record, "Normal", Reason.SHRUNK, f"{shrink.pod}: {shrink.explanation}", key=shrink.pod_uid)
        self._review(record.key)

    def yielded(self, pod: Pod) -> None:
        """Say that a replica was seen to have come down."""
        self._metrics.shrinks.labels("yielded").inc()
        if pod.claim is not None:
            self._review(pod.claim.workload)

    def not_shrunk(self, pod: Pod, why: str) -> None:
        """Say that a replica did not come down and keeps what it has."""
        self._metrics.shrinks.labels("refused").inc()
        record = self._current(pod.claim.workload, pod.claim.workload_uid) if pod.claim is not None else None
        if record is not None:
            kept = "precision" if pod.claim is not None and pod.claim.asked_format else "KV cache"
            note = f"{pod.key} keeps its {kept}, others make room instead: {why}"
            self.tell(record, "Warning", Reason.NOT_SHRUNK, note, key=pod.uid)
            self._review(record.key)

    def restored(self, restore: Restore) -> None:
        """Say that a replica gets back what it gave up."""
        self._metrics.shrinks.labels("restored").inc()
        if restore.loan:
            self._metrics.loans.labels("returned").inc()
        record = self._current(restore.workload, restore.workload_uid)
        if record is not None:
            note = f"{restore.pod}: {restore.explanation}"
            self.tell(record, "Normal", Reason.RESTORED, note, key=restore.pod_uid)
            self._review(record.key)

    def grown(self, grow: Grow) -> None:
        """Say that a workload may have replicas again that it gave up."""
        self._metrics.replicas_given_up.labels("restored").inc()
        record = self._current(grow.workload, grow.workload_uid)
        if record is not None:
            self.tell(record, "Normal", Reason.RESTORED, grow.explanation, key=f"replicas {grow.replicas}")
            self._review(record.key)

    def put_to_sleep(self, sleep: Sleep) -> None:
        """Say that a replica is asked to sleep."""
        self._metrics.sleeps.labels("asked").inc()
        record = self._current(sleep.victim, sleep.victim_uid)
        if record is None:
            return
        if sleep.preemptor:
            self._disrupted(record, "Sleep", sleep.preemptor, sleep)
        self.tell(record, "Normal", Reason.ASLEEP, f"{sleep.pod}: {sleep.explanation}", key=sleep.pod_uid)
        self._review(record.key)

    def fell_asleep(self, pod: Pod) -> None:
        """Say that a replica was seen to sleep."""
        self._metrics.sleeps.labels("asleep").inc()
        if pod.claim is not None:
            self._review(pod.claim.workload)

    def not_slept(self, pod: Pod, why: str) -> None:
        """Say that a replica did not go to sleep and keeps its place."""
        self._metrics.sleeps.labels("refused").inc()
        record = self._current(pod.claim.workload, pod.claim.workload_uid) if pod.claim is not None else None
        if record is not None:
            note = f"{pod.key} stays awake, others make room instead: {why}"
            self.tell(record, "Warning", Reason.NOT_SLEPT, note, key=pod.uid)
            self._review(record.key)

    def woken(self, wake: Wake) -> None:
        """Say that a replica that slept is to serve again."""
        self._metrics.sleeps.labels("woken").inc()
        record = self._current(wake.workload, wake.workload_uid)
        if record is not None:
            self.tell(record, "Normal", Reason.AWAKE, f"{wake.pod}: {wake.explanation}", key=wake.pod_uid)
            self._review(record.key)

    def retired(self, retire: Retire) -> None:
        """Say that the deletion of a pod was accepted."""
        self._spans.ended(retire.pod, retire.reason)
        record = self._current(retire.workload, retire.workload_uid)
        if record is not None and retire.reason not in _SILENT_RETIREMENTS:
            note = f"{retire.pod} was deleted: {retire.message}"
            self.tell(record, "Normal", Reason.POD_DELETED, note, key=retire.pod_uid)

    def settled(self, workload: str) -> None:
        """Say that nothing of the workload is in flight any more."""
        self._review(workload)

    def decided(self, decision: Decision) -> None:
        """Keep the scheduler's word on a workload; tell it if a person has to act."""
        record = self._current(decision.workload, decision.workload_uid)
        if record is None or (record.decision is not None and record.decision.tells(decision)):
            return
        before = record.decision.reason if record.decision is not None else None
        kept = record.decision.reserved if record.decision is not None else ()
        record.decision = decision
        if decision.reserved and decision.reserved != kept:
            self.tell(record, "Normal", Reason.PLACE_KEPT, decision.message, key=",".join(decision.reserved))
        if decision.reason in _ACTIONABLE and decision.reason is not before:
            self.tell(record, "Warning", decision.reason, decision.message)
        self._review(record.key)

    def _disrupted(self, record: Record, action: str, by: str, why: Evict | Move | Shrink | Sleep) -> None:
        """Note what was last done to a workload for another."""
        record.preemption = Preemption(
            by=by, action=action, reason=why.reason, message=why.explanation, time=self._clock.now()
        )

    def _refused(
        self,
        by: str,
        pod: PodKey,
        done: str,
        error: Exception,
        retry_at: float,
        reason: Reason = Reason.WAITING_FOR_PREEMPTION,
    ) -> None:
        """Say to whom it concerns that a pod stays for now."""
        record = self._records.get(by)
        if record is not None:
            wait = max(0, round(retry_at - self._clock.monotonic()))
            note = f"{pod} cannot be {done} yet, next try in {wait} s: {error}"
            self.tell(record, "Warning", reason, note, key=pod)

    def _current(self, key: str, uid: str) -> Record | None:
        """Return the record if the workload still is the one the plan was made for."""
        record = self._records.get(key)
        return record if record is not None and record.uid == uid else None


def _only(scores: dict[str, Score], record: Record, records: Records) -> dict[str, Score]:
    """Return the scores of pods that still exist."""
    pods = records.replicas_of(record.uid)
    return {pod: score for pod, score in scores.items() if pod in pods}

"""The status of a ModelWorkload: built from what is observed, and compared with what stands in the API.

`build` returns the whole status; `urgency` says whether writing it is worth a request, and how soon. In a quiet state
build(previous) equals previous, so nothing is written. Transition times move only when a condition's status does.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Condition, Reason
from llmos_operator.api.meta import ConditionEntry, ConditionStatus
from llmos_operator.api.quantity import format_bytes, format_seconds, human_bytes
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.api.v1alpha1.workload_status import (
    ActivityStatus,
    CeilingStatus,
    DecisionStatus,
    FailureStatus,
    LoadStatus,
    ModelStatus,
    ModelWorkloadStatus,
    PlacementStatus,
    PreemptionStatus,
    RejectedPlace,
    RunStatus,
    SizingStatus,
    StatusSummary,
    UsageStatus,
)
from llmos_operator.clock import parse_rfc3339, rfc3339
from llmos_operator.manifests import rollout
from llmos_operator.manifests.observed import Score
from llmos_operator.manifests.running import run_of
from llmos_operator.manifests.verdicts import Verdict, furthest_behind, phase, verdicts
from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.manifests.observed import Observed
    from llmos_operator.scheduler.plan import Decision
    from llmos_operator.state.types import Learned, Pod, Workload

Json = dict[str, Any]
USAGE_SECONDS = 600.0  # between writes for the sake of usage alone
_RUN_SECONDS = 60.0  # the same, of work that ends: its turns are made of it
_REJECTIONS = 5
_NODES = 64
_LOADING = frozenset(RuntimeState) - {
    RuntimeState.READY,
    RuntimeState.DRAINING,
    RuntimeState.ASLEEP,
    RuntimeState.FAILED,
}


class Urgency(IntEnum):
    """How soon a changed status has to be written."""

    NONE = 0  # nothing changed
    LATER = 1  # places in the queue, counts of candidates: twice a minute
    SOON = 2  # progress of a load: every few seconds
    NOW = 3  # anything a person or a program may act on


def build(seen: Observed) -> ModelWorkloadStatus:
    """Return the status. `seen.previous` supplies transition times."""
    previous = ModelWorkloadStatus.model_validate(seen.previous)
    run = RunStatus() if seen.serves else run_of(seen, previous.run)
    status = ModelWorkloadStatus(
        observed_generation=seen.workload.generation,
        phase=phase(seen),
        summary=_summary(seen, run),
        replicas=seen.live_count,
        ready_replicas=seen.ready_count if seen.serves else 0,
        updated_replicas=seen.current_count if seen.serves else 0,
        canary=rollout.canary(seen),
        selector=seen.selector,
        url=seen.url if seen.serves else "",
        model=_model(seen, previous.model),
        load=_load(furthest_behind(seen)),
        placements=_placements(seen),
        decision=_decision(seen, previous.decision),
        queue_position=seen.decision.told_position if seen.decision is not None else None,
        last_preemption=_preemption(seen) or previous.last_preemption,
        usage=previous.usage,
        activity=_activity(seen, previous.activity),
        sizing=_sizing(seen),
        ceiling=_ceiling(seen.workload),
        run=run if run != RunStatus() else None,
        failure=_failure(seen),
        conditions=merge_conditions(
            previous.conditions, verdicts(seen), now=seen.now, generation=seen.workload.generation
        ),
    )
    usage = _usage(seen, previous.usage)
    if usage == previous.usage or (status == previous and not _usage_due(seen, previous.usage)):
        return status
    if run == RunStatus() or seen.usage is None:
        return status.model_copy(update={"usage": usage})
    # One count feeds both, up to the moment that stands in usage.
    received = max(run.device_seconds, seen.usage.device_seconds)
    run = run.model_copy(update={"device_seconds": received})
    return status.model_copy(update={"usage": usage, "run": run})


def usage_seconds(workload: Workload) -> float:
    """Return after how many seconds what a workload has used is worth a write of its own."""
    return USAGE_SECONDS if workload.kind is WorkloadKind.INFERENCE else _RUN_SECONDS


def to_json(status: ModelWorkloadStatus) -> Json:
    """Return the status as it is applied: without fields at their defaults, but always with the replica counts."""
    body = status.model_dump(mode="json", exclude_defaults=True)
    return {"replicas": status.replicas, "readyReplicas": status.ready_replicas, **body}


def merge_conditions(
    previous: tuple[ConditionEntry, ...], found: dict[Condition, Verdict], *, now: float, generation: int
) -> tuple[ConditionEntry, ...]:
    """Return the conditions in the order of the vocabulary; times move only where the status did."""
    before = {entry.type: entry for entry in previous}
    entries = []
    for kind in Condition:
        verdict = found.get(kind)
        if verdict is None:
            continue
        old = before.get(kind.value)
        same = old is not None and old.status == verdict.status
        entries.append(
            ConditionEntry(
                type=kind.value,
                status=verdict.status,
                reason=str(verdict.reason),
                message=verdict.message[:4096],
                last_transition_time=old.last_transition_time if same and old else rfc3339(now),
                observed_generation=generation,
            )
        )
    return tuple(entries)


def urgency(previous: Json, status: ModelWorkloadStatus) -> Urgency:
    """Return how soon ``status`` must replace ``previous``."""
    old = ModelWorkloadStatus.model_validate(previous)
    if old == status:
        return Urgency.NONE
    if _core(old) != _core(status):
        return Urgency.NOW
    return Urgency.SOON if _progress(old) != _progress(status) else Urgency.LATER


def changes(previous: Json, status: ModelWorkloadStatus) -> list[str]:
    """Return the names of what differs, for logs: fields, and conditions as `Type=Status/Reason`."""
    old = ModelWorkloadStatus.model_validate(previous)
    fields = [name for name in type(status).model_fields if getattr(old, name) != getattr(status, name)]
    before = {entry.type: entry for entry in old.conditions}
    moved = [
        f"{entry.type}={entry.status}/{entry.reason}"
        for entry in status.conditions
        if before.get(entry.type) != entry
    ]
    return [name for name in fields if name != "conditions"] + moved


def _core(status: ModelWorkloadStatus) -> object:
    """Return what a person or a program may act on."""
    conditions = tuple(_settled(c) for c in status.conditions if c.type != Condition.MODEL_CACHED)
    quantization = status.model.quantization if status.model else ""
    decision = status.decision.reason if status.decision else ""
    return (
        (
            status.observed_generation,
            status.phase,
            status.replicas,
            status.ready_replicas,
            status.updated_replicas,
            status.canary,
            status.url,
        ),
        (status.placements, status.failure, status.last_preemption, quantization, decision, status.sizing),
        status.ceiling,
        conditions,
        status.run and (status.run.failures, status.run.completion_time, status.run.total),
    )


def _settled(entry: ConditionEntry) -> object:
    """Return what counts of a condition; the stages a load goes through do not, whatever they do to its status."""
    loading = entry.type in {Condition.MODEL_LOADED, Condition.READY} and entry.reason in _STAGES
    if loading:
        return entry.type, entry.status == ConditionStatus.TRUE, entry.observed_generation
    return entry.type, entry.status, entry.observed_generation, entry.reason


_STAGES = frozenset(
    {
        Reason.PENDING,
        Reason.STARTING,
        Reason.DOWNLOADING,
        Reason.VERIFYING,
        Reason.QUANTIZING,
        Reason.LOADING,
        Reason.WARMING,
        Reason.LOADED,
        Reason.NOT_READY,
    }
)


def _progress(status: ModelWorkloadStatus) -> object:
    model = status.model
    stages = tuple((c.type, c.status, c.reason) for c in status.conditions)
    return status.load, stages, model and (model.observed_memory, model.digest, model.sleep_state)


def _summary(seen: Observed, run: RunStatus) -> StatusSummary:
    live = seen.live
    products = [seen.products.get(uuid, "?") for pod in live if pod.claim for uuid in pod.claim.devices]
    counts = {name: products.count(name) for name in dict.fromkeys(products)}
    reserved = max((pod.claim.held_bytes for pod in live if pod.claim), default=0)
    return StatusSummary(
        ready=f"{seen.ready_count}/{seen.workload.replicas}" if seen.serves else _done(run),
        priority=str(seen.priority),
        queue=seen.queue,
        nodes=",".join(sorted({pod.node for pod in live}))[:1024],
        devices=",".join(f"{count}x{name}" for name, count in counts.items())[:1024],
        memory=_rounded(reserved),
    )


def _done(run: RunStatus) -> str:
    return f"{run.done}/{run.total}" if run.total else ""


def _rounded(count: int) -> str:
    return human_bytes(count).replace(" ", "").removesuffix("B") if count else ""


def _model(seen: Observed, former: ModelStatus | None) -> ModelStatus:
    """Return the model as it is served. What only runtimes know is kept from ``former`` until they have been asked."""
    reports = [report for pod in seen.live if (report := seen.report_of(pod)) is not None]
    served = next((report.model for report in reports if report.model.digest), None)
    formats = [pod.claim.served_format for pod in seen.live if pod.claim]
    fmt = formats[0] if formats else ""
    kept = former if former is not None and seen.live and former.quantization == fmt else ModelStatus()
    peak = max((report.memory.peak_bytes for report in reports), default=0)
    asleep = any(report.state is RuntimeState.ASLEEP for report in reports)
    return ModelStatus(
        resolved_revision=served.revision if served else kept.resolved_revision,
        digest=served.digest if served else kept.digest,
        quantization=fmt,
        estimated_memory=_rounded(seen.estimated_bytes) or kept.estimated_memory,
        # Rounded to 16 MiB: a value that jitters would be a write every few seconds for ever.
        observed_memory=_rounded(peak >> 24 << 24) or kept.observed_memory,
        sleep_state="Asleep" if asleep else "Awake" if seen.ready_count else "",
        profile=seen.profile,
    )


def _load(report: RuntimeStatus | None) -> LoadStatus | None:
    if report is None or report.state not in _LOADING:
        return None
    load = report.load
    return LoadStatus(
        stage=report.state.value,
        bytes_done=load.bytes_done,
        bytes_total=load.bytes_total,
        bytes_per_second=load.bytes_per_second,
        eta=format_seconds(load.eta_seconds) if load.eta_seconds is not None else "",
    )


def _placements(seen: Observed) -> tuple[PlacementStatus, ...]:
    return tuple(
        PlacementStatus(
            pod=pod.name,
            node=pod.node,
            device_uuids=pod.claim.devices,
            reserved_memory=format_bytes(pod.claim.held_bytes or pod.claim.memory_bytes),
            lent_memory=format_bytes(pod.claim.lent_bytes) if pod.claim.lent_bytes else "",
            borrowed_from=pod.claim.lender,
            score=_score(seen, pod).value,
            scored_by=_score(seen, pod).by,
        )
        for pod in sorted(seen.live, key=lambda one: one.key)
        if pod.claim is not None
    )


def _score(seen: Observed, pod: Pod) -> Score:
    """Return the score a place had, from the status itself where another process chose it."""
    known = seen.scores.get(pod.key)
    if known is not None:
        return known
    placements = seen.previous.get("placements") or ()
    former: Json = next((one for one in placements if one.get("pod") == pod.name), {})
    return Score(int(former.get("score") or 0), str(former.get("scoredBy") or ""))


def _decision(seen: Observed, previous: DecisionStatus | None) -> DecisionStatus | None:
    decision = seen.decision
    if decision is None:
        return previous
    same = previous is not None and previous.reason == decision.reason
    return DecisionStatus(
        reason=decision.reason.value,
        message=decision.message[:4096],
        candidates=decision.candidates,
        scored_by=decision.scored_by,
        rejected=_rejected(decision),
        reserved_nodes=decision.reserved[:_NODES],
        expected_start=rfc3339(decision.expected_start) if decision.expected_start is not None else None,
        time=previous.time if same and previous else rfc3339(seen.now),
    )


def _rejected(decision: Decision) -> tuple[RejectedPlace, ...]:
    places = {
        one.reason: RejectedPlace(reason=one.reason, count=one.nodes, message=one.nearest[:1024])
        for one in decision.rejected
    }
    return tuple(places.values())[:_REJECTIONS]


def _activity(seen: Observed, former: ActivityStatus | None) -> ActivityStatus | None:
    """Return whether it works or idles, as it was said last until there is news; nothing without a replica."""
    if not seen.live or seen.finished:
        return None
    found = seen.activity
    if found is None:
        return former
    return ActivityStatus(state=found.state, since=rfc3339(found.since), message=found.evidence[:1024])


def _usage(seen: Observed, former: UsageStatus | None) -> UsageStatus | None:
    """Return what the workload has had; no figure is ever lower than what was said before, and none is said twice."""
    usage, said = seen.usage, former or UsageStatus()
    if usage is None:
        return former
    found = UsageStatus(
        gpu_seconds=max(said.gpu_seconds, usage.gpu_seconds),
        energy_joules=max(said.energy_joules, usage.energy_joules),
        tokens=max(said.tokens, usage.tokens),
        time=said.time,
    )
    return former if found == said else found.model_copy(update={"time": rfc3339(usage.time)})


def _usage_due(seen: Observed, former: UsageStatus | None) -> bool:
    """Return whether usage is worth a write of its own: it always grows, and every write wakes every watch."""
    if seen.usage is None:
        return False
    since = parse_rfc3339(str(former.time)) if former is not None and former.time else seen.usage.since
    return seen.now - since >= usage_seconds(seen.workload)


def _sizing(seen: Observed) -> SizingStatus | None:
    learned = seen.learned
    if not learned.out_of_memory and not learned.needed:
        return None
    return SizingStatus(
        out_of_memory_bytes=learned.out_of_memory,
        needed_bytes=learned.needed,
        message=learned_text(seen.workload, learned)[:1024],
        spec_hash=learned.spec_hash,
    )


def learned_text(workload: Workload, learned: Learned) -> str:
    """Return what was learned of a workload's memory, and what the next start makes of it."""
    asked = f"resources.memory is {human_bytes(workload.memory_bytes)}; " if workload.memory_bytes else ""
    if learned.out_of_memory:
        return f"{asked}with {human_bytes(learned.out_of_memory)} it ran out of memory, so the next start reserves more."
    return f"{asked}it was seen to need {human_bytes(learned.needed)}, so the next start reserves an eighth more than that."


def _ceiling(workload: Workload) -> CeilingStatus | None:
    """Return the newest word on how many replicas there may be; once there was one it stays, because the newer word counts."""
    ceiling = workload.ceiling
    if ceiling is None:
        return None
    return CeilingStatus(replicas=ceiling.replicas or 0, by=ceiling.beneficiary, time=rfc3339(ceiling.at))


def _preemption(seen: Observed) -> PreemptionStatus | None:
    event = seen.preemption
    if event is None:
        return None
    return PreemptionStatus(by=event.by, action=event.action, time=rfc3339(event.time))


def _failure(seen: Observed) -> FailureStatus | None:
    failure = seen.failure
    if failure is None:
        return None
    return FailureStatus(
        reason=failure.reason,
        message=failure.message[:4096],
        exit_code=failure.exit_code,
        time=rfc3339(failure.time),
    )

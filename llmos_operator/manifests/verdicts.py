"""One verdict per condition: what is observed of a workload, in the words of `api.conditions`.

Each function looks at one question and returns status, reason and message; `manifests.status` puts them together and
keeps transition times. The phase is a summary of them for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Condition, Reason
from llmos_operator.api.meta import ConditionStatus
from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.clock import rfc3339
from llmos_operator.manifests.rollout import progress

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.manifests.observed import Observed
    from llmos_operator.state.types import Sleeping

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_AFTER_DOWNLOAD = frozenset(RuntimeState) - {
    RuntimeState.STARTING,
    RuntimeState.DOWNLOADING,
    RuntimeState.FAILED,
}
_STAGE_REASON = {
    RuntimeState.STARTING: Reason.STARTING,
    RuntimeState.DOWNLOADING: Reason.DOWNLOADING,
    RuntimeState.VERIFYING: Reason.VERIFYING,
    RuntimeState.QUANTIZING: Reason.QUANTIZING,
    RuntimeState.LOADING: Reason.LOADING,
    RuntimeState.WARMING: Reason.WARMING,
}
# Words of the kubelet: pkg/kubelet/images/types.go.
_NO_IMAGE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
_QUOTA_REASONS = frozenset({Reason.EXCEEDS_QUOTA, Reason.QUEUE_NOT_FOUND, Reason.NAMESPACE_NOT_ADMITTED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one condition's question."""

    status: ConditionStatus
    reason: str
    message: str = ""


def verdicts(seen: Observed) -> dict[Condition, Verdict]:
    """Return the verdict of every condition that says something of this workload."""
    found: dict[Condition, Verdict | None] = {
        Condition.ACCEPTED: accepted(seen),
        Condition.QUOTA_RESERVED: quota_reserved(seen),
        Condition.SCHEDULED: scheduled(seen),
        Condition.MODEL_CACHED: model_cached(seen),
        Condition.MODEL_LOADED: model_loaded(seen),
        # Work that ends serves nobody: whether it goes on is told by Progressing, how it ended by Finished.
        Condition.AVAILABLE: available(seen) if seen.serves else None,
        Condition.READY: ready(seen) if seen.serves else None,
        Condition.PROGRESSING: progressing(seen),
        Condition.DEGRADED: degraded(seen),
        Condition.PREEMPTED: preempted(seen),
        Condition.SUSPENDED: suspended(seen),
        Condition.ASLEEP: asleep(seen) if seen.serves else None,
        Condition.SCALING_ACTIVE: scaling_active(seen) if seen.serves else None,
        Condition.FINISHED: finished(seen),
    }
    return {kind: verdict for kind, verdict in found.items() if verdict is not None}


def idle_reason(seen: Observed) -> tuple[Reason, str] | None:
    """Return why no replica is wanted, None if some are."""
    if seen.finished:
        return Reason.COMPLETE, "It has finished; create it anew to run it again."
    if seen.workload.gate is not None and seen.workload.gate.closed:
        return Reason.WAITING_FOR_KUEUE, seen.workload.gate.message
    if seen.workload.suspended:
        return Reason.SUSPENDED, "spec.suspend is true; set it to false to start."
    if seen.workload.replicas == 0:
        if seen.scaling.reason is Reason.SCALED_TO_ZERO:
            return Reason.SCALED_TO_ZERO, seen.scaling.message
        return Reason.SCALED_TO_ZERO, "No replica is wanted: spec.replicas is 0."
    return None


def accepted(seen: Observed) -> Verdict:
    """Whether the workload can be taken as it is written."""
    if seen.refusal is not None:
        return Verdict(FALSE, seen.refusal.reason, seen.refusal.message)
    return Verdict(TRUE, Reason.ACCEPTED, "The workload is valid.")


def quota_reserved(seen: Observed) -> Verdict:
    """Whether the queue lets it have what it asks for."""
    idle = idle_reason(seen)
    if idle is not None:
        return Verdict(FALSE, *idle)
    decision = seen.decision
    if seen.live_count >= seen.workload.replicas:
        return Verdict(TRUE, Reason.RESERVED, f"Queue {seen.queue} holds quota for all replicas.")
    if decision is None:
        return Verdict(UNKNOWN, Reason.PENDING, "Not looked at yet.")
    if decision.reason in _QUOTA_REASONS:
        return Verdict(FALSE, decision.reason, decision.message)
    return Verdict(FALSE, decision.reason if decision.pending else Reason.PENDING, decision.message)


def _of(count: int, wanted: int) -> str:
    return f"{count} of {wanted} replicas" if count <= wanted else f"{count} replicas (wanted: {wanted})"


def scheduled(seen: Observed) -> Verdict:
    """Whether every wanted replica has a node and devices."""
    wanted = seen.workload.replicas
    idle = idle_reason(seen)
    if idle is not None:
        return Verdict(FALSE, *idle)
    placed = seen.live_count
    if placed >= wanted:
        nodes = ", ".join(sorted({pod.node for pod in seen.live}))
        return Verdict(TRUE, Reason.BOUND, f"{_of(placed, wanted)} are on {nodes}.")
    if seen.hold is not None:
        return Verdict(FALSE, seen.hold.reason, seen.hold.message)
    if seen.decision is None:
        return Verdict(UNKNOWN, Reason.PENDING, "Not looked at yet.")
    if not seen.decision.pending:  # it is of before there were so many to place
        return Verdict(
            FALSE, Reason.PENDING, f"{placed} of {wanted} replicas have a place; the rest is next."
        )
    return Verdict(FALSE, seen.decision.reason, seen.decision.message)


def _reports(seen: Observed) -> list[RuntimeStatus]:
    return [report for pod in seen.live if (report := seen.report_of(pod)) is not None]


def model_cached(seen: Observed) -> Verdict:
    """Whether the weights are where the replicas run."""
    if seen.all_ready:
        return Verdict(TRUE, Reason.CACHED, "The weights are on every replica's node.")
    reports = _reports(seen)
    if not reports:
        return Verdict(UNKNOWN, Reason.PENDING, "No replica has begun to load.")
    if all(report.state in _AFTER_DOWNLOAD for report in reports):
        return Verdict(TRUE, Reason.CACHED, "The weights are on every replica's node.")
    return Verdict(FALSE, Reason.DOWNLOADING, "The weights are being fetched.")


def model_loaded(seen: Observed) -> Verdict:
    """Whether every live replica has its model in memory."""
    if seen.all_ready:
        return Verdict(TRUE, Reason.LOADED, "The model is loaded.")
    behind, failure = furthest_behind(seen), seen.failure
    if failure is not None and failure.generation != seen.workload.generation:
        failure = None
    # Containers that keep ending say more than the progress of the latest try.
    crashing = failure is not None and failure.reason == Reason.BACK_OFF
    if behind is not None and (behind.failure is not None or not crashing):
        return _loading(behind)
    if failure is not None:
        return Verdict(FALSE, failure.reason, failure.message)
    if seen.live:
        return image_missing(seen) or Verdict(
            FALSE, Reason.STARTING, _waiting(seen) or "The runtime is starting."
        )
    return Verdict(UNKNOWN, Reason.PENDING, "No replica is placed.")


def _loading(report: RuntimeStatus) -> Verdict:
    if report.failure is not None:
        return Verdict(FALSE, report.failure.reason, report.failure.message)
    reason = _STAGE_REASON.get(report.state)
    if reason is not None:
        return Verdict(FALSE, reason, _progress(report))
    return Verdict(TRUE, Reason.LOADED, "The model is loaded.")


def furthest_behind(seen: Observed) -> RuntimeStatus | None:
    """Return the report of the replica whose load is furthest behind; a failed one first."""
    order = list(RuntimeState)
    reports = _reports(seen)
    failed = next((report for report in reports if report.failure is not None), None)
    return failed or min(reports, key=lambda report: order.index(report.state), default=None)


def _progress(report: RuntimeStatus) -> str:
    load = report.load
    text = f"{report.state}: {human_bytes(load.bytes_done)}"
    if load.bytes_total:
        text += f" of {human_bytes(load.bytes_total)}"
    if load.eta_seconds is not None:
        text += f", about {load.eta_seconds} s to go"
    return text + "."


def image_missing(seen: Observed) -> Verdict | None:
    """Say that a live pod waits for an image that cannot be pulled; the kubelet goes on trying."""
    for pod in seen.live:
        replica = seen.replicas.get(pod.key)
        if replica is not None and replica.waiting in _NO_IMAGE:
            # The kubelet says by turns that it failed and that it waits after having failed: the cause is the same.
            cause = replica.waiting_message.rpartition("ErrImagePull: ")[2]
            text = (
                f"{pod.name}: {cause or replica.waiting}. Correct spec.engine.image (or, for all workloads, "
                "operator.config.runtime.image), or name a pull Secret in spec.podTemplate.spec.imagePullSecrets; "
                "the kubelet tries again by itself."
            )
            return Verdict(FALSE, Reason.IMAGE_MISSING, text)
    return None


def _waiting(seen: Observed) -> str:
    for pod in seen.live:
        replica = seen.replicas.get(pod.key)
        if replica is not None and replica.waiting and replica.waiting != "ContainerCreating":
            return f"{pod.name}: {replica.waiting}: {replica.waiting_message}".rstrip(": ")
    return ""


def available(seen: Observed) -> Verdict:
    """Whether enough replicas serve for clients to be answered."""
    rollout = seen.workload.spec.get("rollout") or {}
    missing_allowed = int(rollout.get("maxUnavailable", 1))
    needed = max(1, seen.workload.replicas - missing_allowed)
    if seen.ready_count >= needed:
        return Verdict(TRUE, Reason.AVAILABLE, f"{seen.ready_count} replicas serve.")
    return Verdict(
        FALSE, Reason.MINIMUM_UNAVAILABLE, f"{seen.ready_count} replicas serve, {needed} are needed."
    )


def ready(seen: Observed) -> Verdict:
    """The roll-up: accepted, and every wanted replica serves."""
    wanted = seen.workload.replicas
    if seen.refusal is not None and seen.ready_count < max(1, wanted):
        return Verdict(FALSE, seen.refusal.reason, seen.refusal.message)
    if wanted and seen.ready_count >= wanted and not seen.workload.suspended:
        return Verdict(TRUE, Reason.READY, f"{_of(seen.ready_count, wanted)} serve.")
    for verdict in (scheduled(seen), model_loaded(seen)):
        if verdict.status is not TRUE:
            return Verdict(FALSE, verdict.reason, verdict.message)
    return Verdict(FALSE, Reason.NOT_READY, f"{seen.ready_count} of {wanted} replicas serve.")


def progressing(seen: Observed) -> Verdict:
    """Whether something is on its way to what is wanted."""
    if seen.hold is not None:
        return Verdict(FALSE, seen.hold.reason, seen.hold.message)
    if idle_reason(seen) is not None and not seen.pods:
        return Verdict(FALSE, Reason.COMPLETE, "No replica is wanted and none exists.")
    wanted = seen.workload.replicas
    pods = wanted * seen.workload.members
    if not seen.serves:
        return _running(seen)
    if len(seen.current) == len(seen.pods) == pods and seen.ready_count >= wanted:
        return Verdict(FALSE, Reason.COMPLETE, "All replicas run the current spec.")
    return Verdict(TRUE, Reason.PROGRESSING, progress(seen))


def _running(seen: Observed) -> Verdict:
    """Whether work that ends is on its way to its end."""
    if seen.finished:
        return Verdict(FALSE, Reason.COMPLETE, "It has finished.")
    if not seen.live:
        return Verdict(FALSE, Reason.PENDING, "It waits for a place.")
    report = next(iter(_reports(seen)), None)
    if report is not None and report.progress is not None and report.progress.total:
        return Verdict(TRUE, Reason.PROGRESSING, f"It works on its {report.progress.unit or 'data'}.")
    return Verdict(TRUE, Reason.PROGRESSING, "It has a place and starts.")


def degraded(seen: Observed) -> Verdict:
    """Whether it runs worse than it should."""
    if seen.degraded is not None:
        return Verdict(TRUE, seen.degraded.reason, seen.degraded.message)
    return Verdict(FALSE, Reason.AS_EXPECTED)


def preempted(seen: Observed) -> Verdict:
    """Whether it lost its place and has not got it back."""
    event = seen.preemption
    if (
        event is None
        or event.action == "Shrink"
        or (seen.workload.replicas and seen.ready_count >= seen.workload.replicas)
    ):
        return Verdict(FALSE, Reason.NOT_PREEMPTED)
    return Verdict(TRUE, event.reason, event.message)


def suspended(seen: Observed) -> Verdict:
    """Whether its user, or Kueue, keeps it from running."""
    if seen.workload.gate is not None and seen.workload.gate.closed:
        return Verdict(TRUE, Reason.WAITING_FOR_KUEUE, seen.workload.gate.message)
    if seen.workload.suspended:
        return Verdict(TRUE, Reason.SUSPENDED, "spec.suspend is true.")
    return Verdict(FALSE, Reason.RESUMED)


def asleep(seen: Observed) -> Verdict:
    """Whether its weights are in host memory."""
    if seen.live and seen.asleep_count == len(seen.live):
        sleeping = next((pod.claim.sleeping for pod in seen.live if pod.claim is not None), None)
        return Verdict(TRUE, Reason.ASLEEP, f"The weights are in host memory {_until(sleeping)}.")
    return Verdict(FALSE, Reason.AWAKE)


def _until(sleeping: Sleeping | None) -> str:
    """Return since when and for whom a replica sleeps, and what wakes it."""
    if sleeping is None:
        return "until it is told to wake"
    since = rfc3339(sleeping.at)
    if not sleeping.beneficiary:
        return f"since {since}, because nobody asked anything of it; a request wakes it"
    return (
        f"since {since}, to make room for {sleeping.beneficiary}; it wakes when its devices have room again"
    )


def scaling_active(seen: Observed) -> Verdict:
    """Whether the operator decides the number of replicas."""
    return Verdict(TRUE if seen.scaling.active else FALSE, seen.scaling.reason, seen.scaling.message)


def finished(seen: Observed) -> Verdict | None:
    """Whether it has ended for good; None while it has not. Once said it stays said, in the same words."""
    if seen.ended is not None:
        return Verdict(TRUE, seen.ended.reason, seen.ended.message)
    if not seen.workload.finished:
        return None
    said = [one for one in seen.previous.get("conditions") or () if one.get("type") == Condition.FINISHED]
    if not said:
        return Verdict(TRUE, Reason.SUCCEEDED)
    return Verdict(TRUE, str(said[0].get("reason", Reason.SUCCEEDED)), str(said[0].get("message", "")))


def phase(seen: Observed) -> str:
    """Return the summary word for `kubectl get`."""
    wanted, serving = seen.workload.replicas, seen.ready_count
    # Work that ends and has failed is tried again: it has failed when it is said to have finished so.
    held = seen.serves and seen.failure is not None and seen.hold is not None
    failed = seen.refusal is not None or held
    end = finished(seen)
    ended_badly = end is not None and not seen.serves and end.reason != Reason.SUCCEEDED
    words = (
        (ended_badly, "Failed"),
        (seen.finished, "Succeeded"),
        (seen.workload.suspended and seen.workload.gate is None, "Suspended"),
        (failed and not serving, "Failed"),
        (seen.live and seen.asleep_count == len(seen.live), "Asleep"),
        (serving and (serving < wanted or seen.degraded is not None), "Degraded"),
        (serving, "Running"),
        (seen.live, "Loading"),
    )
    return next((word for holds, word in words if holds), "Pending")

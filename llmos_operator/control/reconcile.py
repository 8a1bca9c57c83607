"""What has to be repaired for one workload: pods to take away, failures to remember, reasons to hold back. Pure.

The scheduler decides where replicas go and who makes room; this decides which of the existing pods are still wanted.
Each ruling depends on what is observed now, never on what was done before, so it can be repeated at any time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmos_operator.actuators.outcomes import Retire
from llmos_operator.api import vllm
from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime import data
from llmos_operator.api.runtime.uris import carries_credentials
from llmos_operator.control import engines, gangs, jobs, rollouts
from llmos_operator.manifests.observed import Failure, Refusal, Tries
from llmos_operator.state.handouts import refuses_devices
from llmos_operator.state.snapshot import most_of_present, outdated, wanted_ordinals
from llmos_operator.state.types import Hold, Pod, PodPhase, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.state.replicas import Replica
    from llmos_operator.state.types import PodKey

# A claim's files cannot be looked into before a pod runs. Nor can object stores and registries, for which the operator
# has no credentials; the inspector then asks for spec.resources.memory.
MODEL_SCHEMES = frozenset({"hf", "https", "file", "s3", "gs", "oci", "pvc"})
OOM_KILLED = "OOMKilled"
_LAST_WORDS = 300  # characters
_CRASHES = 3  # restarts after which a crash is shown as a failure


@dataclass(frozen=True, slots=True)
class Shortage:
    """A runtime ran out of memory with this reservation: its format needs more."""

    uri: str
    revision: str
    format: str
    reserved_bytes: int
    pod_uid: str


@dataclass(frozen=True, slots=True)
class FailedReplica:
    """A replica that failed. `event` names the failure, so that it is counted once however often it is seen."""

    event: str
    failure: Failure
    permanent: bool = False
    retired: bool = True  # its pod goes; False: the kubelet restarts it
    shortage: Shortage | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What to do about one workload now."""

    retire: tuple[Retire, ...] = ()
    failed: tuple[FailedReplica, ...] = ()
    trouble: Refusal | None = None
    recovered: bool = False  # all wanted replicas serve: failures are over
    running: bool = False  # a pod of work that ends is at work again: the preemption is over
    ended: Refusal | None = None  # work that ends has ended for good
    tries: Tries = field(default_factory=Tries)  # failures of work that ends, with those seen now
    refused: tuple[
        tuple[str, str], ...
    ] = ()  # (pod UID, node): the node's kubelet had no devices for the pod


@dataclass(frozen=True, slots=True)
class Situation:
    """One workload as it stands."""

    workload: Workload
    now: float
    pods: tuple[Pod, ...] = ()
    replicas: Mapping[str, Replica] = field(default_factory=dict)  # by pod key
    reports: Mapping[str, RuntimeStatus] = field(default_factory=dict)  # by pod UID
    overdue: frozenset[int] = frozenset()  # `gangs.gaps` that have lasted for longer than their grace
    limits: gangs.GangLimits = field(default_factory=gangs.GangLimits)
    tries: Tries = field(default_factory=Tries)  # of work that ends: counted by this process
    written: Tries = field(default_factory=Tries)  # as the status in the API says
    instead: PodKey = ""  # who has to go before a replica of the present spec can start: `Decision.instead`


def rule(seen: Situation) -> Ruling:
    """Return what to do about the workload."""
    ruling = _rule_serving(seen) if not jobs.is_job(seen.workload) else _rule_job(seen)
    return replace(ruling, refused=_refused(seen))


def _refused(seen: Situation) -> tuple[tuple[str, str], ...]:
    """Return the pods that found no devices. Where they ended it says nothing about them, and much about the node."""
    found = ((pod, seen.replicas.get(pod.key)) for pod in seen.pods if pod.phase is PodPhase.FINISHED)
    return tuple(
        (pod.uid, pod.node)
        for pod, replica in found
        if pod.claim is not None
        and pod.claim.devices
        and replica is not None
        and refuses_devices(replica.failure)
    )


def _rule_job(seen: Situation) -> Ruling:
    """Return what to do about work that ends; `control.jobs` tells the story."""
    workload, tries = seen.workload, seen.tries
    pods = [pod for pod in seen.pods if pod.claim is not None]
    live = [pod for pod in pods if pod.phase is PodPhase.BOUND]
    retire = _unwanted(seen, live)
    if not retire:
        retire = rollouts.replaced(workload, live)
    failed: list[FailedReplica] = []
    ended: Refusal | None = None
    for pod in pods:
        if pod.phase is not PodPhase.FINISHED:
            continue
        replica = seen.replicas.get(pod.key)
        if jobs.succeeded(pod):
            ended = jobs.success(workload, replica)
        elif replica is None or workload.finished:
            continue  # its container's status is not known yet; or it is kept for its log
        elif jobs.disrupted(replica):
            _, message = jobs.told(replica)
            retire.append(_retire(workload, pod, Reason.NODE_LOST, f"It was ended from outside: {message}"))
        else:
            one = _failed_run(seen, pod, replica)
            if pod.uid != tries.last_pod:
                tries = Tries(tries.failures + 1, pod.uid)
            failed.append(one)
            ended = ended or jobs.given_up(workload, tries, one.failure.message, permanent=one.permanent)
            # The count is written before the pod goes: a successor that finds the pod knows whether it was counted.
            if ended is None and seen.written == tries:
                retire.append(_retire(workload, pod, one.failure.reason, one.failure.message))
    return Ruling(
        retire=tuple(retire),
        failed=tuple(failed),
        trouble=_trouble(seen),
        running=any(pod.ready for pod in live),
        ended=ended,
        tries=tries,
    )


def _failed_run(seen: Situation, pod: Pod, replica: Replica) -> FailedReplica:
    """Return the failure of a program that was to end well."""
    end = replica.latest_exit
    code = end.exit_code if end is not None else None
    if end is not None and end.reason == OOM_KILLED:
        failure = _failure(seen, Reason.OUT_OF_MEMORY, _oom_message(pod), code)
        return FailedReplica(pod.uid, failure, shortage=_shortage(seen.workload, pod))
    reason, message = jobs.told(replica)
    failure = _failure(seen, reason, message, code)
    shortage = _shortage(seen.workload, pod) if reason == Reason.OUT_OF_MEMORY else None
    return FailedReplica(pod.uid, failure, permanent=jobs.hopeless(replica), shortage=shortage)


def _rule_serving(seen: Situation) -> Ruling:
    live = [pod for pod in seen.pods if pod.claim is not None and pod.phase is PodPhase.BOUND]
    # One that was told to go, by a drain or a person, has not failed: its containers end before it is gone.
    finished = [
        pod
        for pod in seen.pods
        if pod.claim is not None and pod.phase is PodPhase.FINISHED and not pod.deletion_at
    ]
    failed = {pod.key: one for pod in (*live, *finished) if (one := _failed(seen, pod)) is not None}
    broken = [
        _retire(seen.workload, pod, failed[pod.key].failure.reason, failed[pod.key].failure.message)
        for pod in (*live, *finished)
        if pod.key in failed and failed[pod.key].retired
    ]
    gone = {retire.pod for retire in broken}
    healthy = [pod for pod in live if pod.key not in gone]
    unwanted = _unwanted(seen, healthy)
    gone |= {retire.pod for retire in unwanted}
    staying = [pod for pod in healthy if pod.key not in gone]
    former = rollouts.replaced(seen.workload, staying, instead=seen.instead)
    gone |= {retire.pod for retire in former}
    begun = [
        pod for pod in seen.pods if pod.phase is PodPhase.ASSUMED
    ]  # their creation may be in doubt for long
    late = _late(seen, [*(pod for pod in live if pod.key not in gone), *begun])
    gone |= {pod.key for one in late for pod in one[1]}
    tied = gangs.given_back(
        seen.workload, live, [pod for pod in (*live, *finished) if pod.key in gone], seen.overdue
    )
    given_back = [
        _retire(seen.workload, pod, one[0].failure.reason, one[0].failure.message)
        for one in late
        for pod in one[1]
    ]
    old = outdated(seen.workload, healthy)
    # Of the present spec: that the old replicas serve on says nothing about the failures of those beside them.
    ready = gangs.serving(seen.workload, [pod for pod in healthy if pod.ready and pod not in old])
    return Ruling(
        retire=(*broken, *unwanted, *former, *given_back, *tied),
        failed=(*failed.values(), *(one[0] for one in late)),
        trouble=_trouble(seen),
        recovered=bool(seen.workload.replicas) and ready >= max(1, most_of_present(seen.workload, healthy)),
    )


def _late(seen: Situation, live: list[Pod]) -> list[tuple[FailedReplica, tuple[Pod, ...]]]:
    found = gangs.late(seen.workload, live, seen.replicas, seen.now, seen.limits.start)
    return [(FailedReplica(event, failure), pods) for event, (failure, pods) in found.items()]


# -- failures -------------------------------------------------------------------------------------------------


def _failed(seen: Situation, pod: Pod) -> FailedReplica | None:
    report, replica = seen.reports.get(pod.uid), seen.replicas.get(pod.key)
    if report is not None and report.failure is not None:
        cause = report.failure
        shortage = _shortage(seen.workload, pod) if cause.reason == Reason.OUT_OF_MEMORY else None
        lasting = cause.permanent and shortage is None
        failure = _failure(seen, cause.reason, cause.message)
        return FailedReplica(pod.uid, failure, permanent=lasting, shortage=shortage)
    return _ended(seen, pod, replica) if replica is not None else None


def _ended(seen: Situation, pod: Pod, replica: Replica) -> FailedReplica | None:
    """Return the failure the kubelet reports: killed for memory, a pod that ended, a container that keeps crashing."""
    end = replica.latest_exit
    code = end.exit_code if end is not None else None
    if end is not None and end.reason == OOM_KILLED:
        failure = _failure(seen, Reason.OUT_OF_MEMORY, _oom_message(pod), code)
        return FailedReplica(pod.uid, failure, shortage=_shortage(seen.workload, pod))
    if pod.phase is PodPhase.FINISHED:
        word = replica.failure or (end.reason if end else "") or Reason.FAILED
        text = replica.failure_message or (end.message if end else "") or "the pod ended"
        return FailedReplica(pod.uid, _failure(seen, word, f"{pod.name}: {text}", code))
    if replica.restarts >= _CRASHES and end is not None and not pod.ready:
        text = f"{pod.name}: {_crashed(seen.workload, replica.restarts, code, end.message)}"
        failure = _failure(seen, Reason.BACK_OFF, text, code)
        return FailedReplica(f"{pod.uid}/{replica.restarts}", failure, retired=False)
    return None


def _crashed(workload: Workload, times: int, code: int | None, message: str) -> str:
    """Return what is said of containers that keep ending; of an engine beside the runtime its last words as well."""
    if workload.engine != vllm.ENGINE:
        return f"the runtime ended {times} times, last with exit code {code}; see its logs."
    last = next((line.strip() for line in reversed(message.splitlines()) if line.strip()), "")
    said = f" Its last words: {last[:_LAST_WORDS]}" if last else ""
    return f"vLLM ended {times} times, last with exit code {code}; see its logs (container engine).{said}"


def _failure(seen: Situation, reason: str, message: str, exit_code: int | None = None) -> Failure:
    return Failure(str(reason), message, seen.now, exit_code, seen.workload.generation)


def _oom_message(pod: Pod) -> str:
    reserved = pod.claim.bytes_per_device or pod.claim.memory_bytes if pod.claim else 0
    return f"{pod.name} was killed for using more memory than the {human_bytes(reserved)} reserved."


def _shortage(workload: Workload, pod: Pod) -> Shortage:
    claim = pod.claim
    reserved = (claim.bytes_per_device or claim.memory_bytes) if claim else 0
    return Shortage(
        workload.model.uri, workload.model.revision, claim.format if claim else "", reserved, pod.uid
    )


# -- pods that are not wanted ---------------------------------------------------------------------------------


def _unwanted(seen: Situation, pods: list[Pod]) -> list[Retire]:
    workload = seen.workload
    if workload.finished:
        return [_retire(workload, pod, Reason.COMPLETE, "The workload has finished.") for pod in pods]
    if workload.suspended:
        gate = workload.gate
        reason, text = (
            (Reason.WAITING_FOR_KUEUE, gate.message)
            if gate is not None and gate.closed
            else (Reason.SUSPENDED, "spec.suspend is true.")
        )
        return [_retire(workload, pod, reason, text) for pod in pods]
    wanted = wanted_ordinals(workload, seen.pods)
    surplus = [pod for pod in pods if pod.claim and pod.claim.ordinal not in wanted]
    text = f"{workload.replicas} replicas are wanted."
    return [_retire(workload, pod, Reason.SCALING, text) for pod in surplus]


def _retire(workload: Workload, pod: Pod, reason: str, message: str) -> Retire:
    return Retire(pod.key, pod.uid, workload.key, workload.uid, str(reason), message)


def orphans(pods: tuple[Pod, ...]) -> list[Retire]:
    """Return the removal of pods whose workload is not known (any more)."""
    return [
        Retire(
            pod.key,
            pod.uid,
            pod.claim.workload,
            pod.claim.workload_uid,
            Reason.POD_DELETED,
            "Its workload is gone.",
            orphan=True,
        )
        for pod in pods
        if pod.claim is not None and pod.uid and pod.phase is not PodPhase.TERMINATING
    ]


# -- reasons not to start -------------------------------------------------------------------------------------


def _trouble(seen: Situation) -> Refusal | None:
    """Return what keeps a placed replica from starting that only the user can supply."""
    for replica in seen.replicas.values():
        if replica.waiting == "CreateContainerConfigError" and "secret" in replica.waiting_message.lower():
            return Refusal(
                Reason.SECRET_NOT_FOUND,
                f"{replica.waiting_message}; create it in namespace {seen.workload.namespace} (with the key the "
                "workload's reference expects), the replica then starts by itself.",
            )
    return None


def refusal(workload: Workload, *, allow_file: bool, allowed_hosts: tuple[str, ...]) -> Refusal | None:
    """Return why the workload cannot be accepted under the operator's settings, None if it can."""
    served = workload.model.name
    if any(one.name == served for one in workload.adapters):
        return Refusal(
            Reason.INVALID_SPEC,
            f"spec.adapters: {served} is the name of the model itself; name the adapter otherwise.",
        )
    if workload.engine == vllm.ENGINE and (unfit := engines.refusal(workload)):
        return Refusal(Reason.INVALID_SPEC, f"{unfit}.")
    sources = [("spec.model.uri", workload.model.uri)]
    sources += [(f"spec.adapters[{one.name}].uri", one.uri) for one in workload.adapters]
    found = (
        _source_refusal(*source, allow_file=allow_file, allowed_hosts=allowed_hosts) for source in sources
    )
    refused = next((one for one in found if one is not None), None)
    return refused or jobs.refusal(workload, allow_file=allow_file, allowed_hosts=allowed_hosts)


def _source_refusal(
    field: str, uri: str, *, allow_file: bool, allowed_hosts: tuple[str, ...]
) -> Refusal | None:
    if carries_credentials(uri):  # stored before the API refused it; said without the URI
        return Refusal(
            Reason.SOURCE_NOT_ALLOWED,
            f"{field}: carries a user or password; put the token into a Secret and name it in "
            "spec.model.secretRef.",
        )
    scheme, _, rest = uri.partition("://")
    if scheme not in MODEL_SCHEMES:
        return Refusal(
            Reason.UNSUPPORTED_SCHEME,
            f"{field}: {scheme}:// cannot be loaded by this release; use hf://, https://, s3://, gs://, oci:// or "
            "pvc://claim/path.",
        )
    if scheme == "pvc":
        try:
            data.parse(uri)
        except ValueError as error:
            return Refusal(Reason.INVALID_SPEC, f"{field}: {error}.")
    if scheme == "file" and not allow_file:
        return Refusal(
            Reason.SOURCE_NOT_ALLOWED,
            f"{field}: file:// models are not allowed in this cluster; use hf://, or ask an administrator to set "
            "sources.allowFile.",
        )
    host = rest.partition("/")[0].partition(":")[0].lower()
    if scheme == "https" and host not in allowed_hosts:
        return Refusal(
            Reason.SOURCE_NOT_ALLOWED,
            f"{field}: host {host} is not an allowed model source; ask an administrator to add it to "
            "sources.allowedHosts.",
        )
    return None


def hold(
    workload: Workload,
    blocked: Refusal | None,
    failure: Failure | None,
    *,
    permanent: bool,
    backing_off: bool,
    unmountable: tuple[Reason, str] | None = None,
) -> Hold | None:
    """Return why no new replica may be started, None if one may; `unmountable` says why its claims cannot be mounted.

    A hold has no end of its own: the review that comes when the back-off is over, by a clock that does not jump, lifts it.
    """
    generation = workload.generation
    if blocked is not None:
        return Hold(blocked.reason, blocked.message, math.inf, generation)
    if (unable := _unable(workload, unmountable)) is not None:
        return Hold(unable.reason, unable.message, math.inf, generation)
    if failure is None or failure.generation != generation:
        return None
    if permanent:
        return Hold(
            _reason(failure), f"{failure.message} Change the spec to try again.", math.inf, generation
        )
    if backing_off:
        return Hold(Reason.BACK_OFF, f"Waiting after a failure: {failure.message}", math.inf, generation)
    return None


def _unable(workload: Workload, unmountable: tuple[Reason, str] | None) -> Refusal | None:
    """Return why nothing of it can start here and now, whatever has failed before."""
    if workload.gate is not None and workload.gate.held:
        return Refusal(Reason.WAITING_FOR_KUEUE, workload.gate.message)
    missing = engines.unsupported(workload)
    if missing:
        return Refusal(Reason.UNSUPPORTED, missing)
    return Refusal(*unmountable) if unmountable is not None else None


def _reason(failure: Failure) -> Reason:
    try:
        return Reason(failure.reason)
    except ValueError:
        return Reason.LOAD_FAILED

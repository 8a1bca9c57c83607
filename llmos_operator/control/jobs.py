"""The life of work that ends: what the pod of a FineTune or Batch says of the run, and what follows from it. Pure.

    Succeeded                                    Finished=True/Succeeded; the pod is kept for its log
    Failed, by the program                       counted; a new try after a back-off, until `backoffLimit` is used up
    Failed, and no new try can help (exit 65)    Finished=True/Failed at once
    deleted, evicted, lost with its node         not counted: the run waits for another place and goes on there
    the completion window is over                Finished=True/DeadlineExceeded

A failure is counted in the status before its pod goes, and a pod that ended well is never taken away by a ruling: so
whatever a restarted operator finds, nothing is counted twice and nothing that has succeeded is run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime import data
from llmos_operator.api.runtime.endings import FAILED_FOR_GOOD, parse_reason
from llmos_operator.manifests import jobs as manifest
from llmos_operator.manifests.observed import Refusal, Tries
from llmos_operator.state.handouts import refuses_devices
from llmos_operator.state.types import PodPhase, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.state.replicas import Replica
    from llmos_operator.state.types import Pod, Workload

# status.reason of pods the kubelet or a controller ended or never started, through no fault of the program:
# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions and pkg/kubelet of Kubernetes.
_NOT_ITS_FAULT: Final = frozenset(
    {
        "Evicted",
        "NodeLost",
        "NodeShutdown",
        "Preempting",
        "Shutdown",
        "Terminated",
        "NodeAffinity",
        "OutOfcpu",
        "OutOfmemory",
        "OutOfpods",
    }
)


def is_job(workload: Workload) -> bool:
    """Return whether the workload is work that ends."""
    return workload.kind is not WorkloadKind.INFERENCE


def tries_of(status: Mapping[str, Any]) -> Tries:
    """Return what a status says has been counted."""
    run = status.get("run") or {}
    return Tries(int(run.get("failures") or 0), str(run.get("lastFailedPod") or ""))


def succeeded(pod: Pod) -> bool:
    """Return whether a pod ended well."""
    return pod.phase is PodPhase.FINISHED and not pod.failed


def disrupted(replica: Replica) -> bool:
    """Return whether a failed pod was ended from outside: that says nothing about its program."""
    ended = replica.failure in _NOT_ITS_FAULT or refuses_devices(replica.failure)
    return replica.deleting or replica.disrupted or ended


def told(replica: Replica) -> tuple[str, str]:
    """Return (reason, message) of a failed pod: what its program said, else what the kubelet says."""
    end = replica.latest_exit
    reason, message = parse_reason(end.message) if end is not None else ("", "")
    if reason not in set(Reason):
        word = replica.failure or (end.reason if end is not None else "")
        reason = word if word and word not in {"Error", "Completed"} else Reason.FAILED
    if not message:
        code = f" with exit code {end.exit_code}" if end is not None else ""
        message = replica.failure_message or f"the program ended{code}; see its logs"
    return str(reason), message


def hopeless(replica: Replica) -> bool:
    """Return whether the program said that trying again cannot help."""
    end = replica.latest_exit
    return end is not None and end.exit_code == FAILED_FOR_GOOD


def success(workload: Workload, replica: Replica | None) -> Refusal:
    """Return what is said of a run that ended well."""
    end = replica.latest_exit if replica is not None else None
    reason, said = parse_reason(end.message) if end is not None else ("", "")
    return Refusal(Reason.SUCCEEDED, said if reason else f"The {workload.kind} has ended well.")


def given_up(workload: Workload, tries: Tries, message: str, *, permanent: bool) -> Refusal | None:
    """Return what is said of a run that has failed for good, None while it may be tried again."""
    if permanent:
        return Refusal(Reason.FAILED, f"{message} Correct it and create the workload anew.")
    if tries.failures <= workload.backoff_limit:
        return None
    times = "once" if tries.failures == 1 else f"{tries.failures} times"
    return Refusal(
        Reason.FAILED,
        f"The program has failed {times}, more often than backoffLimit ({workload.backoff_limit}) allows; the last "
        f"time: {message}",
    )


def refusal(workload: Workload, *, allow_file: bool, allowed_hosts: tuple[str, ...]) -> Refusal | None:
    """Return why work that ends cannot be accepted as it is written, None if it can. Names field, value and fix."""
    if not is_job(workload):
        return None
    for at, uri, write in manifest.uris(workload):
        refused = data.refusal(uri, write=write, allow_file=allow_file, allowed_hosts=allowed_hosts)
        if refused is not None:
            return Refusal(refused[0], f"{at}: {refused[1]}")
    found = _unfit(workload)
    return Refusal(*found) if found is not None else None


def _unfit(workload: Workload) -> tuple[Reason, str] | None:
    """Return what of the spec is for serving alone, or makes no sense of a run."""
    given = manifest.block(workload)
    if given.get("input") is not None and given.get("input") == given.get("output"):
        return (
            Reason.INVALID_SPEC,
            f"spec.batch.output.uri: {given['output'].get('uri')} is the input, which it would replace; name another file.",
        )
    if workload.replicas > 1:
        return (
            Reason.INVALID_SPEC,
            f"spec.replicas: {workload.replicas}: a {workload.kind} is one run in one pod; remove it.",
        )
    if workload.members > 1:
        return (
            Reason.UNSUPPORTED,
            f"spec.parallelism: a {workload.kind} runs in one pod in this release; remove pods and data.",
        )
    template = (workload.spec.get("podTemplate") or {}).get("spec") or {}
    if template.get("containers"):
        text = (
            f"spec.podTemplate.spec.containers: a {workload.kind} ends with its own program, and containers beside it "
            "would not; remove them, or use initContainers for what has to run before."
        )
        return Reason.INVALID_SPEC, text
    return None

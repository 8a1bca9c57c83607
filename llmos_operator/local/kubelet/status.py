"""From containers to PodStatus: phase and conditions, by the rules of the kubelet. Pure.

Source: Kubernetes docs "Pod Lifecycle"; pkg/kubelet/kubelet_pods.go (getPhase) and status/generate.go of 1.36 for the
words of reasons and messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.clock import rfc3339
from llmos_operator.local.kubelet.model import Running, Terminated, Waiting, wants_restart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.local.kubelet.model import ContainerView, Json, PodViews

TERMINAL = ("Succeeded", "Failed")


def phase_of(spec: Json, views: PodViews) -> str:
    """Return the pod's phase."""
    policy = spec.get("restartPolicy", "Always")
    for view in views.init:
        if view.sidecar:
            if not view.started and isinstance(view.state, Waiting) and view.last is None:
                return "Pending"
            continue
        if not view.done:
            end = view.state
            failed = isinstance(end, Terminated) and not wants_restart(view, policy, end.exit_code)
            return "Failed" if failed else "Pending"
    return _app_phase(policy, views)


def _app_phase(policy: str, views: PodViews) -> str:
    running = [view for view in views.app if isinstance(view.state, Running)]
    stopped = [view for view in views.app if not isinstance(view.state, Running)]
    ended = [(view, _last_end(view)) for view in stopped]
    ends = [(view, end.exit_code) for view, end in ended if end is not None]
    if len(ends) != len(ended):
        return "Pending"  # some have never run
    if running:
        return "Running"
    sidecars_run = any(view.sidecar and isinstance(view.state, Running) for view in views.init)
    if sidecars_run or any(wants_restart(view, policy, code) for view, code in ends):
        return "Running"
    return "Succeeded" if all(code == 0 for _, code in ends) else "Failed"


def _last_end(view: ContainerView) -> Terminated | None:
    return view.state if isinstance(view.state, Terminated) else view.last


def conditions_of(pod: Json, views: PodViews, phase: str, *, sandbox: bool, now: float) -> list[Json]:
    """Return the kubelet's own conditions; transition times of unchanged ones are kept."""
    containers_ready = _containers_ready(views, phase)
    fresh = [
        _condition("PodReadyToStartContainers", sandbox),
        _initialized(views, phase),
        _ready(pod, containers_ready, phase),
        containers_ready,
        _condition("PodScheduled", status=True),
    ]
    old = {entry["type"]: entry for entry in pod.get("status", {}).get("conditions") or []}
    for entry in fresh:
        before = old.get(entry["type"])
        same = before is not None and before.get("status") == entry["status"]
        entry["lastTransitionTime"] = before["lastTransitionTime"] if before and same else rfc3339(now)
    return fresh


def _condition(name: str, status: bool, reason: str = "", message: str = "") -> Json:
    """Reasons and messages are always present: in a patch, null removes what an earlier one said."""
    return {
        "type": name,
        "status": "True" if status else "False",
        "reason": reason or None,
        "message": message or None,
    }


def _initialized(views: PodViews, phase: str) -> Json:
    if phase == "Succeeded":
        return _condition("Initialized", status=True, reason="PodCompleted")
    waiting = [view.name for view in views.init if not view.done]
    if not waiting:
        return _condition("Initialized", status=True)
    message = f"containers with incomplete status: [{' '.join(waiting)}]"
    return _condition("Initialized", status=False, reason="ContainersNotInitialized", message=message)


def _containers_ready(views: PodViews, phase: str) -> Json:
    if phase in TERMINAL:
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
        return _condition("ContainersReady", status=False, reason=reason)
    unready = [view.name for view in [*filter(_is_sidecar, views.init), *views.app] if not view.ready]
    if not unready:
        return _condition("ContainersReady", status=True)
    message = f"containers with unready status: [{' '.join(unready)}]"
    return _condition("ContainersReady", status=False, reason="ContainersNotReady", message=message)


def _is_sidecar(view: ContainerView) -> bool:
    return view.sidecar


def _ready(pod: Json, containers_ready: Json, phase: str) -> Json:
    if containers_ready["status"] == "False" or phase in TERMINAL:
        return {**containers_ready, "type": "Ready"}
    present = {entry["type"]: entry.get("status") for entry in pod.get("status", {}).get("conditions") or []}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    problems = [
        f'corresponding condition of pod readiness gate "{gate}" '
        + ("does not exist." if gate not in present else 'is not "True".')
        for gate in gates
        if present.get(gate) != "True"
    ]
    if problems:
        return _condition("Ready", status=False, reason="ReadinessGatesNotReady", message=", ".join(problems))
    return _condition("Ready", status=True)


def pod_status(
    pod: Json, views: PodViews, *, pod_ip: str, host_ip: str, started_at: float, now: float, phase: str = ""
) -> Json:
    """Return what the kubelet writes to `.status`, ready for a strategic merge patch."""
    phase = phase or phase_of(pod["spec"], views)
    status: Json = {
        "phase": phase,
        "observedGeneration": pod["metadata"].get("generation"),
        "conditions": conditions_of(
            pod, views, phase, sandbox=bool(pod_ip) and phase not in TERMINAL, now=now
        ),
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": rfc3339(started_at),
        "containerStatuses": _statuses(views.app),
    }
    if views.init:
        status["initContainerStatuses"] = _statuses(views.init)
    if pod_ip:
        status |= {"podIP": pod_ip, "podIPs": [{"ip": pod_ip}]}
    return status


def _statuses(views: Sequence[ContainerView]) -> list[Json]:
    return [view.to_json() for view in views]


def rejected_status(pod: Json, reason: str, message: str, *, host_ip: str, now: float) -> Json:
    """Return the status of a pod this node refuses to run."""
    return {
        "phase": "Failed",
        "reason": reason,
        "message": f"Pod was rejected: {message}",
        "startTime": pod.get("status", {}).get("startTime") or rfc3339(now),
        "observedGeneration": pod["metadata"].get("generation"),
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
    }


def differs(current: Json, wanted: Json) -> bool:
    """Return whether patching ``wanted`` into the status ``current`` would change anything."""
    by_type = {entry["type"]: entry for entry in current.get("conditions") or []}
    conditions = wanted.get("conditions") or []
    if not all(_covers(by_type.get(entry["type"]), entry) for entry in conditions):
        return True
    return not all(_covers(current.get(key), value) for key, value in wanted.items() if key != "conditions")


def _covers(current: object, wanted: object) -> bool:
    """Return whether ``current`` says all that ``wanted`` says; null and empty count as absent."""
    if isinstance(wanted, dict):
        have = current if isinstance(current, dict) else {}
        return all(_covers(have.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        have_list = current if isinstance(current, list) else []
        return len(have_list) == len(wanted) and all(map(_covers, have_list, wanted))
    if wanted in (None, ""):
        return current in (None, "")
    return current == wanted

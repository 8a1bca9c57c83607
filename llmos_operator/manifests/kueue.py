"""The Workload by which a ModelWorkload asks Kueue for quota, and the statuses Kueue expects of who owns one.

What Kueue's own job integrations do (kubernetes-sigs/kueue v0.17.0, pkg/controller/jobframework/reconciler.go and
pkg/workload/workload.go) is done here: quota of what was evicted is given back once its pods are gone, not before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api import names
from llmos_operator.clock import rfc3339
from llmos_operator.manifests import template
from llmos_operator.manifests.pod import labels, owner_reference
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from llmos_operator.state.reservation import Reservation
    from llmos_operator.state.types import Workload

Json = dict[str, Any]

POD_SET: Final = "main"
_PLACES: Final = ("nodeSelector", "affinity", "tolerations")
_MESSAGE_LIMIT: Final = 1024
_REQUEUED: Final = frozenset({"Preempted", "NodeFailures"})  # evictions after which it queues again at once


@dataclass(frozen=True, slots=True)
class Priority:
    """What a Workload waits with: a class by its API group, and its value."""

    name: str
    value: int
    kueue: bool  # a WorkloadPriorityClass; else a PriorityClass of Kubernetes

    def reference(self) -> Json:
        """Return `spec.priorityClassRef`."""
        group, kind = (
            ("kueue.x-k8s.io", "WorkloadPriorityClass")
            if self.kueue
            else ("scheduling.k8s.io", "PriorityClass")
        )
        return {"group": group, "kind": kind, "name": self.name}


@dataclass(frozen=True, slots=True)
class Ask:
    """What a workload asks of Kueue: so many pods, each with these resources; no pods: it wants nothing now."""

    queue: str
    pods: int
    each: tuple[tuple[str, str], ...]
    places: str  # where its pods may be, as the template says, in JSON
    priority: str = ""  # name of its class

    @property
    def mark(self) -> str:
        """Hash of what one pod asks for: what cannot be changed while quota is held."""
        return hashlib.sha256(repr((self.each, self.places)).encode()).hexdigest()[:10]


def workload_name(workload: Workload) -> str:
    """Return the name of a workload's Workload, the same for the same UID."""
    digest = hashlib.sha256(workload.uid.encode()).hexdigest()[:8]
    return f"modelworkload-{workload.name[:40].rstrip('-.')}-{digest}"


def ask(workload: Workload, host: tuple[int, int]) -> Ask:
    """Return what a workload asks for. `host` are thousandths of a core and bytes, for work without devices.

    One that scales asks for the most it may have: quota that came and went with every replica would have to be
    waited for just when there is most to do.
    """
    scaling = workload.spec.get("scaling") or {}
    most = int(scaling.get("maxReplicas", 1)) if scaling else workload.replicas
    wanted = bool(workload.replicas) and not workload.suspended and not workload.finished
    user = (workload.spec.get("podTemplate") or {}).get("spec") or {}
    places = {key: value for key, value in template.kept_pod_spec(user).items() if key in _PLACES}
    return Ask(
        queue=workload.kueue_queue,
        pods=max(most, workload.replicas) * workload.members if wanted else 0,
        each=_each(workload, host),
        places=json.dumps(places, sort_keys=True),
        priority=workload.kueue_priority or workload.priority_class,
    )


def _each(workload: Workload, host: tuple[int, int]) -> tuple[tuple[str, str], ...]:
    """Return the resources of one pod: devices, as ResourceFlavors name them; of work without devices CPU and memory."""
    count = workload.accelerators
    if not count:
        return (("cpu", f"{host[0]}m"), ("memory", str(host[1])))
    if workload.sharing is Sharing.MIG and workload.mig_profile is not None:
        return ((workload.mig_profile.resource, str(count)),)
    if workload.sharing is Sharing.SHARED and workload.memory_bytes is not None:
        return ((names.RESOURCE_GPU_MEMORY, str(count * workload.memory_bytes)),)
    return ((names.RESOURCE_GPU, str(count)),)


def build(workload: Workload, asked: Ask, priority: Priority | None) -> Json:
    """Return the Workload to be created."""
    spec: Json = {"queueName": asked.queue, "active": True, "podSets": [_pod_set(asked)]}
    if priority is not None:
        spec |= {"priorityClassRef": priority.reference(), "priority": priority.value}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {
            "name": workload_name(workload),
            "namespace": workload.namespace,
            "labels": labels(workload) | {names.LABEL_KUEUE_QUEUE: asked.queue},
            "annotations": {names.ANNOTATION_ASKED: asked.mark},
            "ownerReferences": [owner_reference(workload)],
        },
        "spec": spec,
    }


def _pod_set(asked: Ask) -> Json:
    amounts = dict(asked.each)
    container = {"name": "runtime", "resources": {"requests": amounts, "limits": amounts}}
    places: Json = json.loads(asked.places)
    return {
        "name": POD_SET,
        "count": asked.pods,
        "template": {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [container], **places}},
    }


# -- statuses --------------------------------------------------------------------------------------------------


def released(found: Reservation, now: float) -> Json:
    """Return the patch that gives the quota of an evicted Workload back."""
    requeued = "True" if found.evicted in _REQUEUED else "False"
    changed = (
        _condition("Requeued", requeued, found.evicted, found.message),
        _condition("QuotaReserved", "False", "Pending", found.message),
        _condition("Admitted", "False", "NoReservation", "The workload has no reservation"),
    )
    return _patch(found, {"admission": None, "conditions": _merged(found, changed, now)})


def finished(found: Reservation, reason: str, message: str, now: float) -> Json:
    """Return the patch that says that the work has ended: its quota is free."""
    changed = (_condition("Finished", "True", reason, message),)
    return _patch(found, {"conditions": _merged(found, changed, now)})


def pods_ready(found: Reservation, now: float, *, ready: bool) -> Json:
    """Return the patch that says whether all pods of an admitted Workload are ready."""
    changed = _condition(
        "PodsReady",
        "True" if ready else "False",
        "Started" if ready else "WaitForRecovery",
        "All pods are ready" if ready else "Not all pods are ready any more",
    )
    return _patch(found, {"conditions": _merged(found, (changed,), now)})


def _condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message[:_MESSAGE_LIMIT]}


def _merged(found: Reservation, changed: tuple[dict[str, str], ...], now: float) -> list[Json]:
    """Return all conditions with some changed; a time changes with a status only."""
    before = {one["type"]: one for one in map(dict, found.conditions)}
    for one in changed:
        old = before.get(one["type"], {})
        same = old.get("status") == one["status"]
        before[one["type"]] = {
            **one,
            "lastTransitionTime": old["lastTransitionTime"] if same else rfc3339(now),
        }
    return list(before.values())


def _patch(found: Reservation, status: Json) -> Json:
    return {"metadata": {"uid": found.uid, "resourceVersion": found.version}, "status": status}

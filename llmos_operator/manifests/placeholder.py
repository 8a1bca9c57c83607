"""The placeholder of one pod that waits for capacity: an unschedulable pod, which is how cluster autoscalers learn of need.

Cluster Autoscaler and Karpenter look at pods whose condition `PodScheduled` is False with reason `Unschedulable`, whoever
their scheduler is, and add a node on which such a pod would fit. A placeholder asks for what the real pod will ask for, in
the terms nodes advertise. No scheduler binds it: its schedulerName is nobody's, so it never runs and holds nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api import names
from llmos_operator.clock import rfc3339
from llmos_operator.manifests import template
from llmos_operator.manifests.pod import labels, owner_reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.types import Workload

Json = dict[str, Any]

ROLE: Final = "placeholder"
SCHEDULER: Final = "llmos.dev/placeholder"
_IMAGE: Final = "registry.k8s.io/pause:3.10"  # never pulled
_MESSAGE_LIMIT: Final = 1024
_NOBODY: Final = 65534
_PLACES: Final = ("nodeSelector", "affinity", "tolerations", "topologySpreadConstraints")


def placeholder_name(workload: Workload, number: int) -> str:
    """Return the name of a workload's placeholder, the same for the same number."""
    digest = hashlib.sha256(workload.uid.encode()).hexdigest()[:8]
    return f"{workload.name[:40].rstrip('-.')}-wanted-{digest}-{number}"


def placeholder(workload: Workload, needs: tuple[int, int], products: Iterable[str], number: int) -> Json:
    """Return the pod of that number.

    ``needs`` are thousandths of a core and bytes of host memory; ``products`` the device products that would do, as NVML
    names them; none: any.
    """
    user = (workload.spec.get("podTemplate") or {}).get("spec") or {}
    spec: Json = {key: value for key, value in template.kept_pod_spec(user).items() if key in _PLACES}
    wanted = sorted({one.replace(" ", "-") for one in products})
    if wanted:
        requirement = {"key": names.LABEL_GPU_PRODUCT, "operator": "In", "values": wanted}
        spec["affinity"] = _with_requirement(spec.get("affinity") or {}, requirement)
    if workload.priority_class:
        spec["priorityClassName"] = workload.priority_class
    return {
        "metadata": {
            "name": placeholder_name(workload, number),
            "namespace": workload.namespace,
            "labels": labels(workload)
            | {names.LABEL_ROLE: ROLE, "app.kubernetes.io/name": "llmos-placeholder"},
            "ownerReferences": [owner_reference(workload)],
        },
        "spec": spec
        | {
            "schedulerName": SCHEDULER,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _NOBODY,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(workload, needs)],
        },
    }


def _container(workload: Workload, needs: tuple[int, int]) -> Json:
    cpu_milli, memory_bytes = needs
    devices = {names.RESOURCE_GPU: str(workload.accelerators)} if workload.accelerators else {}
    return {
        "name": "placeholder",
        "image": _IMAGE,
        "resources": {
            "requests": {"cpu": f"{cpu_milli}m", "memory": str(memory_bytes), **devices},
            "limits": devices,
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _with_requirement(affinity: Json, requirement: Json) -> Json:
    """Return the affinity with a requirement on the node's labels in each of its alternatives."""
    nodes = affinity.get("nodeAffinity") or {}
    required = nodes.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: list[Json] = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), requirement]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    required = {"nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": {**nodes, "requiredDuringSchedulingIgnoredDuringExecution": required}}


def unschedulable(why: str, since: float) -> Json:
    """Return the status that cluster autoscalers look for; ``since`` in epoch seconds."""
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": why[:_MESSAGE_LIMIT],
        "lastTransitionTime": rfc3339(since),
    }
    return {"conditions": [condition]}


def is_marked(pod: Mapping[str, Any]) -> bool:
    """Return whether autoscalers can see it: its condition is set."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(
        one.get("type") == "PodScheduled" and one.get("reason") == "Unschedulable" for one in conditions
    )

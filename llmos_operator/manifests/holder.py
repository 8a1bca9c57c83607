"""The pod that takes one device of a node from its device plugin, for shared work: it asks for one, and waits to be ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmos_operator.api import names

Json = dict[str, Any]

# Signals that nobody handles do not reach the first process of a container: they are waited for instead.
_WAIT = (
    "import signal; ends = {signal.SIGTERM, signal.SIGINT}; "
    "signal.pthread_sigmask(signal.SIG_BLOCK, ends); signal.sigwait(ends)"
)
_USER = 65532


@dataclass(frozen=True, slots=True)
class HolderPodSettings:
    """What an administrator decides about holder pods; empty strings mean "none"."""

    namespace: str
    image: str  # of the operator
    pause_image: str = ""  # instead of it
    image_pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    priority_class_name: str = ""


def build(node: str, slot: int, settings: HolderPodSettings, owner: Json | None = None) -> Json:
    """Return the pod. `slot` tells the holder pods of a node apart, `owner` is the Deployment that it goes with."""
    meta: Json = {
        "name": names.holder_name(node, slot),
        "namespace": settings.namespace,
        "labels": {
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_ROLE: names.ROLE_HOLDER,
            "app.kubernetes.io/name": "llmos-holder",
        },
    }
    if owner is not None:
        meta["ownerReferences"] = [_reference(owner)]
    spec: Json = {
        "nodeName": node,
        "containers": [_container(settings)],
        "restartPolicy": "Always",
        # 0 would take the pod out of the API before the kubelet has ended it.
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [{"operator": "Exists"}],  # it stays where the work stays that it holds the device for
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    if settings.priority_class_name:
        spec["priorityClassName"] = settings.priority_class_name
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _container(settings: HolderPodSettings) -> Json:
    container: Json = {
        "name": "holder",
        "image": settings.pause_image or settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "resources": {
            "requests": {"cpu": "1m", "memory": "16Mi"},
            "limits": {"memory": "64Mi", names.RESOURCE_GPU: "1"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if not settings.pause_image:
        container["command"] = ["python", "-I", "-S", "-c", _WAIT]
    return container


def _reference(owner: Json) -> Json:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,  # `kubectl drain` leaves alone what nobody controls, and refuses
    }

"""The pod of one replica: built from the workload, the claim the scheduler made and the operator's settings.

The same inputs give the same pod. Its requests add up to exactly what the claim counts, because after a restart the
ledger is rebuilt from the pod.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.manifests import gang, jobs, template, vllm
from llmos_operator.manifests.container import (
    engine_container,
    grace_seconds,
    runtime_container,
    serving_port,
)
from llmos_operator.state.convert import claim_json
from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.state.types import Claim, Workload

Json = dict[str, Any]
ENDPOINT = "LLMOS_ENDPOINT"  # where application containers of the pod find the model


def build(
    workload: Workload,
    claim: Claim,
    settings: PodSettings,
    *,
    simulated: bool = False,
    kept: bool = False,
    share: str = "",
) -> Json:
    """Return the pod; with ``kept`` the node's copy of the model is mounted, read-only; ``share`` is the claimed part of each device's memory, "" without real ones.

    Raises Permanent(InvalidSpec) if the workload asks for what tenants must not have.
    """
    user = workload.spec.get("podTemplate") or {}
    template.check(user, settings.service_account)
    template.check_engine(workload.spec.get("engine") or {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(workload, claim, user.get("metadata") or {}),
        "spec": _spec(
            workload, claim, settings, user.get("spec") or {}, simulated=simulated, kept=kept, share=share
        ),
    }


def owner_reference(workload: Workload) -> Json:
    """Return the reference that lets the API's garbage collector end what belongs to the workload."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelWorkload",
        "name": workload.name,
        "uid": workload.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels(workload: Workload) -> dict[str, str]:
    """Return the labels everything of a workload carries."""
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        "app.kubernetes.io/name": "llmos-runtime",
        "app.kubernetes.io/instance": names.label_value(workload.name),
        names.LABEL_WORKLOAD: names.label_value(workload.name),
        names.LABEL_WORKLOAD_UID: workload.uid,
    }


def selector(workload: Workload) -> str:
    """Return the label selector of the workload's pods, as status.selector shows it."""
    return f"{names.LABEL_WORKLOAD_UID}={workload.uid},{names.LABEL_ROLE}=runtime"


def _metadata(workload: Workload, claim: Claim, user: Json) -> Json:
    namespace, _, name = claim.pod.partition("/")
    role = "runtime" if claim.member == gang.LEADER else "worker"
    own = labels(workload) | {names.LABEL_ORDINAL: str(claim.ordinal), names.LABEL_ROLE: role}
    if workload.members > 1:
        own[names.LABEL_MEMBER] = str(claim.member)
    notes = {names.ANNOTATION_CLAIM: claim_json(claim), names.ANNOTATION_SPEC_HASH: workload.template_hash}
    return {
        "name": name,
        "namespace": namespace,
        "labels": {**(user.get("labels") or {}), **own},
        "annotations": {**(user.get("annotations") or {}), **notes},
        "ownerReferences": [owner_reference(workload)],
    }


def _spec(
    workload: Workload,
    claim: Claim,
    settings: PodSettings,
    user: Json,
    *,
    simulated: bool,
    kept: bool,
    share: str,
) -> Json:
    sidecar = bool(user.get("containers"))
    engine, front = _parts(workload, claim, sidecar=sidecar)
    runtime = runtime_container(workload, claim, settings, front, simulated=simulated, kept=kept)
    beside = (
        engine_container(workload, claim, settings, engine, simulated=simulated, kept=kept, share=share)
        if vllm.fronts(workload)
        else None
    )
    own = template.kept_pod_spec(user)
    spec: Json = {
        **own,
        **gang.place_in_gang(workload, claim),
        "nodeName": claim.node,
        # Work that ends is tried again by the operator, which counts failures, not by the kubelet, which would not.
        "restartPolicy": "Always" if workload.kind is WorkloadKind.INFERENCE else "Never",
        "terminationGracePeriodSeconds": grace_seconds(workload),
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "runAsGroup": settings.run_as_user,
            "fsGroup": settings.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            *own.get("volumes", ()),
            *_volumes(settings),
            *_copy(workload, settings, kept=kept),
            *jobs.volumes(workload),
            *(vllm.volumes(claim) if beside else []),
        ],
        **_containers(runtime, beside, user, serving_port(workload), gang.environment(workload, claim)),
    }
    if workload.priority_class:
        spec["priorityClassName"] = workload.priority_class
    if claim.resource_claim:
        spec["resourceClaims"] = [{"name": names.POD_CLAIM, "resourceClaimName": claim.resource_claim}]
    if settings.runtime_class_name and claim.devices and not simulated:
        spec["runtimeClassName"] = settings.runtime_class_name
    return spec


def _containers(
    runtime: Json, engine: Json | None, user: Json, port: int, rendezvous: dict[str, str]
) -> Json:
    """Return the containers: the runtime alone, or as a native sidecar that is up before the user's containers start.

    A separate engine is a sidecar before it in either case: sidecars end last, and in reverse.
    """
    init = [_without_devices(copy.deepcopy(one)) for one in user.get("initContainers") or ()]
    apps = [
        _without_devices(_with_endpoint(copy.deepcopy(one), port, rendezvous))
        for one in user.get("containers") or ()
    ]
    beside = [engine] if engine is not None else []
    if not apps:
        # After the user's own: they end before it starts, so that their requests do not add up with its.
        first = [*init, *beside]
        return {"containers": [runtime]} | ({"initContainers": first} if first else {})
    sidecars = [*beside, {**runtime, "restartPolicy": "Always"}]
    return {"initContainers": [*sidecars, *init], "containers": apps}


def _with_endpoint(container: Json, port: int, rendezvous: dict[str, str]) -> Json:
    address: Json = {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    endpoint = {"name": ENDPOINT, "value": f"http://$({names.ENV_POD_IP}):{port}/v1"}
    meeting: list[Json] = [{"name": name, "value": value} for name, value in rendezvous.items()]
    given = list(container.get("env") or ())
    taken = {str(one.get("name")) for one in given}
    container["env"] = [one for one in (address, endpoint, *meeting) if one["name"] not in taken] + given
    return container


def _without_devices(container: Json) -> Json:
    """Keep devices from a container beside the runtime: its image or envFrom may ask the container runtime for all."""
    container["env"] = [*(container.get("env") or ()), {"name": names.ENV_DEVICES, "value": "void"}]
    return container


def _parts(workload: Workload, claim: Claim, *, sidecar: bool) -> tuple[Json, Json]:
    """Return the requests of a separate engine and of the runtime; all are the runtime's where it has the engine itself."""
    if not vllm.fronts(workload):
        return {}, _requests(workload, claim, sidecar=sidecar)
    cpu = min(vllm.FRONT_CPU_MILLI, claim.cpu_milli // 2)
    memory = min(vllm.FRONT_MEMORY_BYTES, claim.memory_bytes // 2)
    rest = replace(claim, cpu_milli=claim.cpu_milli - cpu, memory_bytes=claim.memory_bytes - memory)
    return _requests(workload, rest, sidecar=sidecar), {"cpu": f"{cpu}m", "memory": str(memory)}


def _requests(workload: Workload, claim: Claim, *, sidecar: bool) -> Json:
    """Return the runtime's requests: the claim less what the user's containers ask for themselves.

    Beside containers that run all the time a sidecar's requests add up. A main container only shares its pod with init
    containers that end before it starts, where the larger counts: so it asks for the whole claim.
    """
    cpu = claim.cpu_milli - (workload.cpu_milli if sidecar else 0)
    memory = claim.memory_bytes - (workload.host_memory_bytes if sidecar else 0)
    amounts = {"cpu": f"{cpu}m" if cpu > 0 else "", "memory": str(memory) if memory > 0 else ""}
    return {key: value for key, value in amounts.items() if value}


def _copy(workload: Workload, settings: PodSettings, *, kept: bool) -> list[Json]:
    """Return the volume with the node's copy of this model alone: tenants do not see what else is kept."""
    if not kept:
        return []
    path = f"{settings.model_cache_path}/models/{workload.model.key}"
    return [{"name": "llmos-model", "hostPath": {"path": path, "type": "Directory"}}]


def _volumes(settings: PodSettings) -> list[Json]:
    cache: Json = {"name": "llmos-cache", "emptyDir": {}}
    if settings.cache_host_path:
        cache = {
            "name": "llmos-cache",
            "hostPath": {"path": settings.cache_host_path, "type": "DirectoryOrCreate"},
        }
    return [cache, {"name": "llmos-tmp", "emptyDir": {}}]

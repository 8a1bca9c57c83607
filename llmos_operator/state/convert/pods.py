"""Pods, and the claims that are written on them.

The ledger is rebuilt from pods after a restart: `claim_json` and `claim_of` are exact inverses. A claim is believed
only on a pod whose controlling owner is the workload it names, in the same namespace; on any other pod the annotation
is ignored and the pod counts by its requests. Annotations can be edited, a pod's environment cannot: where the runtime was told
its devices and memory at creation, that is what it holds, whatever the annotation says by now.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.quantity import parse_bytes, parse_count, parse_milli
from llmos_operator.api.runtime.memory import FORMAT_BITS
from llmos_operator.clock import parse_rfc3339
from llmos_operator.errors import Permanent
from llmos_operator.state.convert.fields import Fields, invalid, shown
from llmos_operator.state.convert.nodes import condition_true
from llmos_operator.state.convert.partitions import partition_requests
from llmos_operator.state.types import FULL_MILLI, Claim, Pod, PodPhase, Sharing, Sleeping, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORKLOAD_KIND = "ModelWorkload"
_RUNTIME = "runtime"  # as manifests.container names it
_CLAIM_VERSION = 1
_MILLISECONDS = 1000
_DEFAULT_GRACE = 30  # of the API
_LONGEST_GRACE = 1 << 31
# More than any node has. What anybody writes on a pod is cut or refused here, so that sums over all pods of a node stay
# far inside the int64 the scheduler counts with.
_MOST = 1 << 50


def pod(obj: Mapping[str, Any], *, holders_in: str = "") -> Pod:
    """Return a Pod from its JSON. Holder pods are believed to be such in the namespace `holders_in` only.

    A claim that cannot be read leaves `problem` set and the pod counted as foreign; one that contradicts the pod's own
    environment leaves `problem` set and is corrected.
    """
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    key = f"{meta.text('namespace')}/{meta.required('name')}"
    node = spec.text("nodeName")
    cpu, memory, gpus = requests(spec)
    asked, resource_claim = partition_requests(spec), _resource_claim(spec)
    claim, problem = None, ""
    annotation = meta.child("annotations").data.get(names.ANNOTATION_CLAIM)
    if annotation is not None:
        try:
            told = claim_of(annotation, meta, key, node, (cpu, memory))
            claim, problem = _as_created(_asking(told, gpus, asked, resource_claim), spec)
        except Permanent as error:
            problem = str(error)
    phase, labels = status.text("phase"), meta.labels("labels")
    return Pod(
        key=key,
        uid=meta.text("uid"),
        node=node,
        phase=_phase(meta, phase),
        claim=claim,
        labels=labels if claim is not None else {},
        cpu_milli=cpu,
        memory_bytes=memory,
        gpus=gpus,
        partitions=asked if claim is None else {},
        ready=condition_true(status, "Ready"),
        started_at=status.parsed("startTime", parse_rfc3339, 0.0),
        grace_seconds=spec.number("terminationGracePeriodSeconds", _DEFAULT_GRACE, most=_LONGEST_GRACE),
        deletion_at=meta.parsed("deletionTimestamp", parse_rfc3339, 0.0),
        spec_hash=meta.child("annotations").text(names.ANNOTATION_SPEC_HASH),
        failed=phase == "Failed",
        problem=problem,
        mounts=tuple(
            one.child("persistentVolumeClaim").text("claimName")
            for one in spec.objects("volumes")
            if one.has("persistentVolumeClaim")
        ),
        resource_claim=resource_claim,
        holder=bool(holders_in)
        and annotation is None
        and meta.text("namespace") == holders_in
        and labels.get(names.LABEL_ROLE) == names.ROLE_HOLDER,
    )


def _resource_claim(spec: Fields) -> str:
    """Return the ResourceClaim by which a pod of ours gets its devices."""
    found = (one for one in spec.objects("resourceClaims") if one.text("name") == names.POD_CLAIM)
    return next((one.text("resourceClaimName") for one in found), "")


def _asking(claim: Claim, gpus: int, asked: Mapping[str, int], resource_claim: str) -> Claim:
    """Return the claim with what its pod gets its devices by: what the pod says, nobody can change later."""
    if resource_claim:
        claim = replace(claim, resource_claim=resource_claim)
    if claim.sharing is not Sharing.MIG:
        return claim
    resource = next(iter(sorted(asked)), names.RESOURCE_GPU if gpus else "")
    return replace(claim, partition_resource=resource)


def _as_created(claim: Claim, spec: Fields) -> tuple[Claim, str]:
    """Return the claim as the runtime was created with it, and what the annotation says otherwise ("": nothing)."""
    told = environment(spec)
    devices, limit = told.get(names.ENV_DEVICES, ""), told.get(names.ENV_MEMORY_LIMIT, "")
    changes: dict[str, Any] = {}
    if devices and devices != "void" and tuple(devices.split(",")) != claim.devices:
        changes["devices"] = tuple(devices.split(","))
    if devices == "void" and claim.devices:
        changes["devices"] = ()
    held = changes.get("devices", claim.devices)
    if held and limit.isdigit() and min(int(limit), _MOST) != claim.bytes_per_device:
        changes["bytes_per_device"] = min(int(limit), _MOST)
    if claim.lowered and claim.asked_bytes >= changes.get("bytes_per_device", claim.bytes_per_device):
        changes |= {"asked_bytes": 0, "asked_format": "", "asked_at": 0.0, "yielded": False, "lent": False}
    if claim.sleeping is not None and not _may_be_asleep(
        claim, changes.get("bytes_per_device", claim.bytes_per_device)
    ):
        changes |= {"sleeping": None}
    if not changes:
        return claim, ""
    wrong = ", ".join(sorted(changes))
    path = f"metadata.annotations[{names.ANNOTATION_CLAIM}]"
    return replace(
        claim, **changes
    ), f"{path}: {wrong} are not what the pod was created with; that is counted instead"


def _may_be_asleep(claim: Claim, bound_bytes: int) -> bool:
    """Return whether a pod that was created with so many bytes may have been put to sleep: not where it holds devices whole."""
    sleeping = claim.sleeping
    return (
        sleeping is not None
        and claim.sharing is Sharing.SHARED
        and 0 < sleeping.bytes_per_device < min(bound_bytes, claim.awake_bytes)
    )


def environment(spec: Fields) -> dict[str, str]:
    """Return the literal environment of the runtime container."""
    for one in (*spec.objects("containers"), *spec.objects("initContainers")):
        if one.data.get("name") == _RUNTIME:
            return {e.text("name"): e.text("value") for e in one.objects("env") if not e.has("valueFrom")}
    return {}


def _phase(meta: Fields, phase: str) -> PodPhase:
    if phase in {"Succeeded", "Failed"}:
        return PodPhase.FINISHED
    return PodPhase.TERMINATING if meta.has("deletionTimestamp") else PodPhase.BOUND


def requests(spec: Fields) -> tuple[int, int, int]:
    """Return (CPU milli, memory bytes, GPUs) a pod asks of its node, by the rules of the Kubernetes scheduler.

    Containers and native sidecars add up; a plain init container counts beside the sidecars started before it, and the
    larger of the two sums holds. Pod-level requests replace the sum, overhead comes on top.
    https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers
    """
    running, sidecars, starting = (0, 0, 0), (0, 0, 0), (0, 0, 0)
    for one in spec.objects("containers"):
        running = _plus(running, _container(one))
    for one in spec.objects("initContainers"):
        asked = _container(one)
        if one.data.get("restartPolicy") == "Always":
            sidecars = _plus(sidecars, asked)
            asked = sidecars
        else:
            asked = _plus(sidecars, asked)
        starting = _most(starting, asked)
    total = _most(_plus(running, sidecars), starting)
    if spec.child("resources"):
        whole = _container(spec)
        total = (whole[0] or total[0], whole[1] or total[1], total[2])
    if spec.has("overhead"):
        total = _plus(total, _amounts(spec.child("overhead")))
    return min(total[0], _MOST), min(total[1], _MOST), min(total[2], _MOST)


def _container(fields: Fields) -> tuple[int, int, int]:
    resources = fields.child("resources")
    asked, limits = resources.child("requests"), resources.child("limits")
    if not limits:
        return _amounts(asked)
    return _amounts(Fields({**limits.data, **asked.data}, resources.at("requests")))


def _amounts(fields: Fields) -> tuple[int, int, int]:
    return (
        fields.parsed("cpu", parse_milli, 0),
        fields.parsed("memory", parse_bytes, 0),
        fields.parsed(names.RESOURCE_GPU, parse_count, 0),
    )


def _plus(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _most(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return (max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]))


def claim_json(claim: Claim) -> str:
    """Return the annotation's value; pod and node are not in it, they are the pod's own."""
    return json.dumps(
        {
            "v": _CLAIM_VERSION,
            "workload": claim.workload,
            "uid": claim.workload_uid,
            "ordinal": claim.ordinal,
            **({"member": claim.member} if claim.member else {}),
            "devices": list(claim.devices),
            "bytesPerDevice": claim.bytes_per_device,
            "computeMilli": claim.compute_milli,
            "sharing": claim.sharing,
            "domain": claim.domain,
            "format": claim.format,
            "maxModelLen": claim.max_model_len,
            "kvTokens": claim.kv_tokens,
            "priority": claim.priority,
            "queue": claim.queue,
            "gpuMilli": claim.gpu_milli,
            "chargedBytes": claim.charged_bytes,
            "boundAtMilli": round(claim.bound_at * _MILLISECONDS),
            "minRuntimeMilli": round(claim.min_runtime * _MILLISECONDS),
            **(_lowered_json(claim) if claim.lowered else {}),
            **({"lender": claim.lender} if claim.lender else {}),
            **({"movedAtMilli": round(claim.moved_at * _MILLISECONDS)} if claim.moved_at else {}),
            **({"target": _target_json(claim.target)} if claim.target is not None else {}),
            **({"sleeping": _sleeping_json(claim.sleeping)} if claim.sleeping is not None else {}),
            **({"drawMilliwatts": claim.draw_milliwatts} if claim.draw_milliwatts is not None else {}),
        },
        separators=(",", ":"),
    )


def _lowered_json(claim: Claim) -> dict[str, Any]:
    return {
        "askedBytes": claim.asked_bytes,
        **({"askedFormat": claim.asked_format} if claim.asked_format else {}),
        "askedAtMilli": round(claim.asked_at * _MILLISECONDS),
        **({"yielded": True} if claim.yielded else {}),
        **({"lent": True} if claim.lent else {}),
    }


def _sleeping_json(sleeping: Sleeping) -> dict[str, Any]:
    return {
        "bytesPerDevice": sleeping.bytes_per_device,
        "hostBytes": sleeping.host_bytes,
        "atMilli": round(sleeping.at * _MILLISECONDS),
        **({"for": sleeping.beneficiary} if sleeping.beneficiary else {}),
        **({"down": True} if sleeping.down else {}),
    }


def _sleeping_of(fields: Fields) -> Sleeping:
    return Sleeping(
        bytes_per_device=fields.number("bytesPerDevice", most=_MOST),
        host_bytes=fields.number("hostBytes", most=_MOST),
        at=fields.number("atMilli", most=_MOST) / _MILLISECONDS,
        beneficiary=fields.text("for"),
        down=fields.flag("down"),
    )


def _target_json(target: Target) -> dict[str, Any]:
    return {
        "node": target.node,
        "devices": list(target.devices),
        "format": target.format,
        "maxModelLen": target.max_model_len,
        "kvTokens": target.kv_tokens,
        "atMilli": round(target.at * _MILLISECONDS),
        "untilMilli": round(target.until * _MILLISECONDS),
        "for": target.beneficiary,
    }


def _target_of(fields: Fields) -> Target:
    return Target(
        node=fields.required("node"),
        devices=fields.texts("devices"),
        format=fields.text("format"),
        max_model_len=fields.number("maxModelLen", most=_MOST),
        kv_tokens=fields.number("kvTokens", most=_MOST),
        at=fields.number("atMilli", most=_MOST) / _MILLISECONDS,
        until=fields.number("untilMilli", most=_MOST) / _MILLISECONDS,
        beneficiary=fields.text("for"),
    )


def claim_of(annotation: object, meta: Fields, key: str, node: str, host: tuple[int, int] = (0, 0)) -> Claim:
    """Return the claim of a pod; `host` is its CPU milli and memory bytes. Permanent: unreadable or not its owner's."""
    path = f"metadata.annotations[{names.ANNOTATION_CLAIM}]"
    try:
        fields = Fields(json.loads(str(annotation)), path)
    except (ValueError, RecursionError) as error:
        raise invalid(path, f"is not JSON: {error}") from error
    workload, uid = fields.required("workload"), fields.required("uid")
    if workload.partition("/")[0] != key.partition("/")[0]:
        raise invalid(path, f"names {workload}, which is not in the pod's namespace")
    if not _owned_by(meta, uid):
        raise invalid(path, f"names {workload} (uid {uid}), which does not own the pod")
    fmt = fields.text("format")
    if fmt and fmt not in FORMAT_BITS:
        raise invalid(fields.at("format"), f"{shown(fmt)} is not one of {', '.join(FORMAT_BITS)}")
    return Claim(
        workload=workload,
        workload_uid=uid,
        ordinal=fields.number("ordinal", most=_MOST),
        member=fields.number("member", most=_MOST),
        pod=key,
        node=node,
        devices=fields.texts("devices"),
        bytes_per_device=fields.number("bytesPerDevice", most=_MOST),
        compute_milli=fields.number("computeMilli", FULL_MILLI, most=FULL_MILLI),
        sharing=fields.choice("sharing", Sharing, Sharing.EXCLUSIVE),
        domain=fields.text("domain"),
        format=fmt,
        max_model_len=fields.number("maxModelLen", most=_MOST),
        kv_tokens=fields.number("kvTokens", most=_MOST),
        cpu_milli=host[0],
        memory_bytes=host[1],
        priority=fields.number("priority", least=-(1 << 31), most=_MOST),
        queue=fields.text("queue"),
        gpu_milli=fields.number("gpuMilli", most=_MOST),
        charged_bytes=fields.number("chargedBytes", most=_MOST),
        bound_at=fields.number("boundAtMilli", most=_MOST) / _MILLISECONDS,
        min_runtime=fields.number("minRuntimeMilli", most=_MOST) / _MILLISECONDS,
        asked_bytes=fields.number("askedBytes", most=_MOST),
        asked_format=_asked_format(fields),
        asked_at=fields.number("askedAtMilli", most=_MOST) / _MILLISECONDS,
        yielded=fields.flag("yielded"),
        lent=fields.flag("lent") and fields.number("askedBytes", most=_MOST) > 0,
        lender=fields.text("lender"),
        moved_at=fields.number("movedAtMilli", most=_MOST) / _MILLISECONDS,
        target=_target_of(fields.child("target")) if fields.has("target") else None,
        sleeping=_sleeping_of(fields.child("sleeping")) if fields.has("sleeping") else None,
        draw_milliwatts=fields.number("drawMilliwatts", most=_MOST) if fields.has("drawMilliwatts") else None,
    )


def _asked_format(fields: Fields) -> str:
    """Return the narrower format that a claim was asked to serve at, "" where none is known by that name."""
    asked = fields.text("askedFormat")
    return asked if asked in FORMAT_BITS and fields.number("askedBytes", most=_MOST) else ""


def _owned_by(meta: Fields, uid: str) -> bool:
    return any(
        o.data.get("uid") == uid and o.data.get("kind") == _WORKLOAD_KIND and o.data.get("controller") is True
        for o in meta.objects("ownerReferences")
    )

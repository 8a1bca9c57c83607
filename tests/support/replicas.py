"""Builders for replicas of workloads as the operator's own packages see them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmos_operator.api import names
from llmos_operator.manifests.settings import PodSettings
from llmos_operator.state import convert
from llmos_operator.state.types import Claim, Pod, PodPhase, Sharing, Workload

NOW = 1_700_000_000.0
SETTINGS = PodSettings(image="runtime:1", hub_endpoint="http://hub")


def a_manifest(name: str = "chat", uid: str = "uid-1", **spec: Any) -> dict[str, Any]:
    """Return a ModelWorkload as the API serves it."""
    return {
        "metadata": {"name": name, "namespace": "team", "uid": uid, "generation": 1, "resourceVersion": "1"},
        "spec": {"model": {"uri": "hf://acme/tiny"}, **spec},
    }


def a_work(name: str = "chat", uid: str = "uid-1", **spec: Any) -> Workload:
    """Return a ModelWorkload as a domain value."""
    return convert.workload(a_manifest(name, uid, **spec))


def a_claim_of(workload: Workload, ordinal: int = 0, **changes: Any) -> Claim:
    """Return the claim of one replica on node n1."""
    claim = Claim(
        workload=workload.key,
        workload_uid=workload.uid,
        ordinal=ordinal,
        pod=f"{workload.namespace}/{names.pod_name(workload.name, workload.uid, ordinal, workload.template_hash[:5])}",
        node="n1",
        devices=(f"GPU-{ordinal}",),
        bytes_per_device=1 << 30,
        sharing=Sharing.EXCLUSIVE,
        format="bf16",
        cpu_milli=500,
        memory_bytes=512 << 20,
        gpu_milli=1000,
        bound_at=NOW,
    )
    return replace(claim, **changes)


def a_pod_of(workload: Workload, ordinal: int = 0, *, ready: bool = False, **changes: Any) -> Pod:
    """Return the pod of one replica as the store holds it."""
    claim = a_claim_of(workload, ordinal)
    pod = Pod(
        key=claim.pod,
        uid=f"pod-{ordinal}",
        node="n1",
        phase=PodPhase.BOUND,
        claim=claim,
        spec_hash=workload.template_hash,
        ready=ready,
    )
    return replace(pod, **changes)

"""ResourceClaims of the operator (resource.k8s.io/v1): each has the devices of one pod, as the ledger decided them.

kube-scheduler writes `status.allocation` for pods it places. Ours are created bound, so the operator writes it; what the
kubelet, the driver and kube-scheduler make of it is the same.
https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.state.types import Sharing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.state.slices import Handle
    from llmos_operator.state.types import Claim

Json = dict[str, Any]

# kube-controller-manager takes it off, with the allocation, when the last pod has ended: also where no operator is left.
FINALIZER = "resource.kubernetes.io/delete-protection"
_REQUEST = "devices"


def build(claim: Claim, device_class: str, mig_device_class: str) -> Json:
    """Return the ResourceClaim of a pod, without an allocation. The workload owns it."""
    namespace, _, pod = claim.pod.partition("/")
    kind = mig_device_class if claim.sharing is Sharing.MIG else device_class
    asked = {"deviceClassName": kind, "allocationMode": "ExactCount", "count": len(claim.devices)}
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": "ModelWorkload",
        "name": claim.workload.partition("/")[2],
        "uid": claim.workload_uid,
        "controller": True,
    }
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {
            "name": claim.resource_claim,
            "namespace": namespace,
            "labels": {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_WORKLOAD_UID: claim.workload_uid,
            },
            "annotations": {names.ANNOTATION_CLAIM_POD: pod},
            "finalizers": [FINALIZER],
            "ownerReferences": [owner],
        },
        "spec": {"devices": {"requests": [{"name": _REQUEST, "exactly": asked}]}},
    }


def allocation(node: str, handles: Sequence[Handle]) -> Json:
    """Return `status.allocation`: these devices, on this node."""
    results = [
        {"request": _REQUEST, "driver": one.driver, "pool": one.pool, "device": one.device} for one in handles
    ]
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"devices": {"results": results}, "nodeSelector": {"nodeSelectorTerms": [term]}}


def allocated(body: Json) -> bool:
    """Return whether a ResourceClaim has devices."""
    return bool((body.get("status") or {}).get("allocation"))


def is_for(body: Json, claim: Claim) -> bool:
    """Return whether a ResourceClaim was made by the operator for a pod of this workload, and still says so.

    One without the label is not seen as the operator's (:func:`convert.resource_claim`), and may not be written by it.
    """
    meta = body["metadata"]
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    return (
        labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
        and notes.get(names.ANNOTATION_CLAIM_POD) == claim.pod.partition("/")[2]
        and any(one.get("uid") == claim.workload_uid for one in meta.get("ownerReferences") or ())
    )


def users(body: Json) -> list[Json]:
    """Return `status.reservedFor`: the pods that may use it."""
    return list((body.get("status") or {}).get("reservedFor") or ())


def user(pod: str, uid: str) -> Json:
    """Return the entry of a pod in `status.reservedFor`."""
    return {"resource": "pods", "name": pod, "uid": uid}

"""The Service of a workload: its stable address inside the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.manifests import gang
from llmos_operator.manifests.pod import labels, owner_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.state.types import Workload

Json = dict[str, Any]
PORT = 80


def build(workload: Workload) -> Json:
    """Return the Service: port 80 to the serving port of ready replicas."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": workload.name,
            "namespace": workload.namespace,
            "labels": labels(workload),
            "ownerReferences": [owner_reference(workload)],
        },
        "spec": {
            "type": "ClusterIP",
            "selector": {names.LABEL_WORKLOAD_UID: workload.uid, names.LABEL_ROLE: "runtime"},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def build_headless(workload: Workload) -> Json:
    """Return the headless Service of the members of a workload's replicas."""
    return gang.service(workload, labels(workload), owner_reference(workload))


def is_ours(body: Mapping[str, Any]) -> bool:
    """Return whether a Service was made by this operator, for a workload of any UID."""
    found = (body.get("metadata") or {}).get("labels") or {}
    return found.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY and names.LABEL_WORKLOAD_UID in found


def owner_uid(body: Mapping[str, Any]) -> str:
    """Return the UID of the workload a Service belongs to, "" if none."""
    references = (body.get("metadata") or {}).get("ownerReferences") or ()
    return next((str(ref.get("uid", "")) for ref in references if ref.get("kind") == "ModelWorkload"), "")

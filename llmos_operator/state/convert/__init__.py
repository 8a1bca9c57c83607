"""The only reader of Kubernetes shapes: raw JSON in, domain values out.

A value that cannot be read raises Permanent(reason=InvalidSpec) with the field's path; nothing here does I/O.
"""

from llmos_operator.state.convert.nodes import gpu_node, node
from llmos_operator.state.convert.pods import claim_json, claim_of, pod
from llmos_operator.state.convert.policy import disruption_budget, namespace, priority_class, profile, queue
from llmos_operator.state.convert.slices import resource_claim, resource_slice
from llmos_operator.state.convert.volumes import volume, volume_claim
from llmos_operator.state.convert.workloads import template_hash, workload

__all__ = [
    "claim_json",
    "claim_of",
    "disruption_budget",
    "gpu_node",
    "namespace",
    "node",
    "pod",
    "priority_class",
    "profile",
    "queue",
    "resource_claim",
    "resource_slice",
    "template_hash",
    "volume",
    "volume_claim",
    "workload",
]

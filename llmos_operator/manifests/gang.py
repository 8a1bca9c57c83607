"""How the pods of one replica find each other: names, environment, and the headless Service behind the names.

Ranks are stable: member r of a replica always has the pod name that ends in its ordinal and r, the host name of that
name, and NODE_RANK r. Rank r holds copy r // pods, stage r % pods. The variables are those of torch.distributed's
`env://` (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE) counted in pods, one process each, and those torchrun takes its
options from (PET_*), which then sets the former for every process it starts:
https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api import names

if TYPE_CHECKING:
    from llmos_operator.state.types import Claim, Workload

Json = dict[str, Any]
LEADER: Final = 0  # the member that serves, and that the others meet at


def place_in_gang(workload: Workload, claim: Claim) -> Json:
    """Return what of a PodSpec gives a member its name; nothing for a replica of one pod."""
    if workload.members == 1:
        return {}
    return {
        "hostname": claim.pod.partition("/")[2],
        "subdomain": names.gang_service(workload.name, workload.uid),
    }


def environment(workload: Workload, claim: Claim) -> dict[str, str]:
    """Return the rendezvous of a member; nothing for a replica of one pod."""
    if workload.members == 1:
        return {}
    leader = names.pod_name(workload.name, workload.uid, claim.ordinal, member=LEADER)
    service = names.gang_service(workload.name, workload.uid)
    address, port = f"{leader}.{service}.{workload.namespace}.svc", str(names.PORT_RENDEZVOUS)
    count, rank = str(workload.members), str(claim.member)
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "NNODES": count,
        "NODE_RANK": rank,
        "WORLD_SIZE": count,
        "RANK": rank,
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": port,
        "PET_NNODES": count,
        "PET_NODE_RANK": rank,
        "PET_NPROC_PER_NODE": str(max(1, len(claim.devices))),
    }


def service(workload: Workload, labels: dict[str, str], owner: Json) -> Json:
    """Return the headless Service that gives members their names, ready or not: they meet before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.gang_service(workload.name, workload.uid),
            "namespace": workload.namespace,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_WORKLOAD_UID: workload.uid},
            "ports": [{"name": "rendezvous", "port": names.PORT_RENDEZVOUS, "protocol": "TCP"}],
        },
    }

"""Node objects of simulated nodes, and the heartbeats that keep them Ready.

A node is registered once, at the start of the node process; one deleted later stays deleted, as with a kubelet.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llmos_operator import __version__
from llmos_operator.api import names
from llmos_operator.clock import rfc3339
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.local.addresses import PORT_KUBELET
from llmos_operator.local.binaries.versions import KUBERNETES, go_platform
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.spec import GpuModel, NodeSpec

Json = dict[str, Any]
log = logger(__name__)

ANNOTATION_DEVICES = "llmos.dev/simulated-gpus"
LEASE_NAMESPACE = "kube-node-lease"
_LEASE_SECONDS = 40
_RENEW_SECONDS = 10.0
_STATUS_SECONDS = 300.0
_MIB = 1 << 20
_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "the process kubelet runs pods of this node"),
)


def device_uuid(node: str, index: int) -> str:
    """Return the UUID of a simulated device."""
    return f"GPU-sim-{node}-{index}"


def instance_uuid(node: str, index: int, number: int) -> str:
    """Return the UUID of a simulated MIG instance of a device."""
    return f"MIG-sim-{node}-{index}-{number}"


def plugin_devices(spec: NodeSpec) -> dict[str, list[str]]:
    """Return the UUIDs that a device plugin with the strategy "mixed" would hand out, by resource."""
    found: dict[str, list[str]] = {}
    for index, gpu in enumerate(spec.gpus):
        if not gpu.mig:
            found.setdefault(names.RESOURCE_GPU, []).append(device_uuid(spec.name, index))
        for number, profile in enumerate(gpu.profiles):
            found.setdefault(profile.resource, []).append(instance_uuid(spec.name, index, number))
    return found


def capacity(spec: NodeSpec) -> dict[str, str]:
    """Return the node's capacity, which is also its allocatable: nothing is reserved."""
    quantities = {
        "cpu": spec.cpu,
        "memory": spec.memory,
        "pods": str(spec.pods),
        "ephemeral-storage": "100Gi",
    }
    return quantities | {resource: str(len(uuids)) for resource, uuids in plugin_devices(spec).items()}


def labels(spec: NodeSpec) -> dict[str, str]:
    """Return the node's labels, the GPU feature discovery's included."""
    system, machine = go_platform()
    result = {
        "kubernetes.io/hostname": spec.name,
        "kubernetes.io/os": system,
        "kubernetes.io/arch": machine,
        "topology.kubernetes.io/zone": spec.zone,
        names.LABEL_RACK: spec.rack,
        names.LABEL_SIMULATED: "true",
    }
    if spec.gpus:
        result |= {
            names.LABEL_GPU_PRODUCT: spec.gpus[0].product,
            names.LABEL_GPU_MEMORY_MIB: str(spec.gpus[0].memory_bytes // _MIB),
            "nvidia.com/gpu.count": str(len(spec.gpus)),
            "nvidia.com/gpu.present": "true",
        }
    if any(gpu.mig for gpu in spec.gpus):
        result[names.LABEL_MIG_STRATEGY] = "mixed"
    return result


def devices_annotation(spec: NodeSpec) -> str:
    """Return the JSON the agent's simulated backend reads."""
    return json.dumps(
        [
            {
                "uuid": device_uuid(spec.name, index),
                "index": index,
                "product": gpu.product,
                "memoryBytes": gpu.memory_bytes,
                "computeCapability": gpu.compute_capability,
            }
            | _instances(spec.name, index, gpu)
            for index, gpu in enumerate(spec.gpus)
        ],
        separators=(",", ":"),
    )


def _instances(node: str, index: int, gpu: GpuModel) -> Json:
    mig = [
        {"uuid": instance_uuid(node, index, number), "profile": text} for number, text in enumerate(gpu.mig)
    ]
    return {"mig": mig} if mig else {}


def node_object(spec: NodeSpec) -> Json:
    """Return the Node to create."""
    annotations = {ANNOTATION_DEVICES: devices_annotation(spec)} if spec.gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": spec.name, "labels": labels(spec), "annotations": annotations},
        "spec": {"providerID": f"llmos-local://{spec.name}"},
    }


def node_status(spec: NodeSpec, address: str, now: float, *, since: float) -> Json:
    """Return the Node's status; ``since`` is when it became Ready."""
    system, machine = go_platform()
    stamp = {"lastHeartbeatTime": rfc3339(now), "lastTransitionTime": rfc3339(since)}
    return {
        "capacity": capacity(spec),
        "allocatable": capacity(spec),
        "addresses": [
            {"type": "InternalIP", "address": address},
            {"type": "Hostname", "address": spec.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT_KUBELET}},
        "conditions": [
            {"type": kind, "status": status, "reason": reason, "message": message, **stamp}
            for kind, status, reason, message in _CONDITIONS
        ],
        "nodeInfo": {
            "architecture": machine,
            "operatingSystem": system,
            "osImage": "llmos local node",
            "kernelVersion": "",
            "kubeletVersion": f"v{KUBERNETES}",
            "kubeProxyVersion": "",
            "containerRuntimeVersion": f"process://{__version__}",
            "machineID": spec.name,
            "systemUUID": spec.name,
            "bootID": spec.name,
        },
    }


class NodeAgent:
    """Registers one node and keeps it Ready."""

    def __init__(self, transport: Transport, clock: Clock, spec: NodeSpec, address: str) -> None:
        self._transport = transport
        self._clock = clock
        self._spec = spec
        self._address = address
        self._since = clock.now()

    async def register(self) -> None:
        """Create the Node (or take over one left by an earlier life) and write its status."""
        try:
            await self._transport.create(port.NODES, node_object(self._spec))
        except AlreadyExists:
            meta = node_object(self._spec)["metadata"]
            patch = {"metadata": {"labels": meta["labels"], "annotations": meta["annotations"]}}
            await self._transport.merge_patch(port.NODES, self._spec.name, patch)
        await self._write_status()

    async def run(self, phase: float) -> None:
        """Renew the Lease every ten seconds, beginning ``phase`` seconds from now, and the status every five minutes."""
        await asyncio.sleep(phase)
        status_at = self._clock.monotonic() + _STATUS_SECONDS
        while True:
            try:
                await self._renew()
                if self._clock.monotonic() >= status_at:
                    await self._write_status()
                    status_at = self._clock.monotonic() + _STATUS_SECONDS
            except LlmosError as error:
                log.warning("no heartbeat", node=self._spec.name, error=error)
            await asyncio.sleep(_RENEW_SECONDS)

    async def _write_status(self) -> None:
        status = node_status(self._spec, self._address, self._clock.now(), since=self._since)
        body = {"status": status}
        await self._transport.request(
            "PATCH",
            port.NODES.path(name=self._spec.name, subresource="status"),
            body=body,
            content_type="application/strategic-merge-patch+json",
            verb="patch",
            plural="nodes",
        )

    async def _renew(self) -> None:
        stamp = datetime.fromtimestamp(self._clock.now(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        patch = {"spec": {"renewTime": stamp}}
        name, namespace = self._spec.name, LEASE_NAMESPACE
        try:
            await self._transport.merge_patch(port.LEASES, name, patch, namespace=namespace)
        except NotFound:
            spec = {"holderIdentity": name, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": stamp}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name},
                "spec": spec,
            }
            try:
                await self._transport.create(port.LEASES, lease, namespace=namespace)
            except Conflict:
                log.debug("lease was made meanwhile", node=name)

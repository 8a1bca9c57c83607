"""GPUNode (`gn`, cluster-scoped, named as its Node): the devices of a node, their health and what is reserved on them.

Two writers share the status by server-side apply: the node's agent owns ``devices``, ``driver`` and ``mode``; the
operator owns ``ledger`` and ``care``. Samples never come here, only what changes rarely.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.meta import Conditions, ObjectMeta
from llmos_operator.api.names import API_VERSION
from llmos_operator.api.schema import (
    INT32_MAX,
    INT64_MAX,
    KubeModel,
    ListAtomic,
    ListSet,
    Quantity,
    Time,
)
from llmos_operator.api.telemetry import MAX_DEVICES, MAX_HOLDERS, Verdict
from llmos_operator.api.v1alpha1.modelcache import CopyState

Uuid = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Word = Annotated[str, StringConstraints(max_length=253)]
Count = Annotated[int, Field(ge=0, le=INT64_MAX)]


class DeviceHealth(KubeModel):
    """The agent's verdict on one device."""

    verdict: Verdict = Field(
        default=Verdict.UNKNOWN,
        description="Healthy. Degraded: works, but avoid it. Unhealthy: nothing new is placed on it. Unknown: not measured.",
    )
    reason: Word = Field(
        default="", description="Why, one CamelCase word, such as XID79 or EccUncorrectable."
    )
    since: Time | None = Field(default=None, description="When the verdict last changed.")


class LinkType(StrEnum):
    """Ways two devices of a node are connected."""

    NVLINK = "NVLink"
    PCIE_SWITCH = "PCIeSwitch"
    PCIE_HOST = "PCIeHost"
    NUMA = "NUMA"
    SYSTEM = "System"


class DeviceLink(KubeModel):
    """The connection of one device to another one of the node."""

    uuid: Uuid = Field(description="UUID of the other device.")
    type: LinkType = Field(
        description="The closest connection: NVLink, PCIeSwitch, PCIeHost, NUMA or System."
    )
    lanes: Annotated[int, Field(ge=0, le=INT32_MAX)] = Field(
        default=0,
        description="NVLink connections between the two; over NVSwitches, those of the one that has fewer.",
    )


class DeviceHolder(KubeModel):
    """A container the kubelet gave the device to."""

    pod: Annotated[str, StringConstraints(min_length=1, max_length=317)] = Field(
        description="Its pod, as namespace/name."
    )
    container: Annotated[str, StringConstraints(max_length=63)] = Field(
        default="", description="Name of the container."
    )
    resource: Annotated[str, StringConstraints(max_length=317)] = Field(
        default="", description="Extended resource it asked for, such as nvidia.com/gpu."
    )


class GPUDevice(KubeModel):
    """One device of the node."""

    uuid: Uuid = Field(description="UUID of the device, as the driver names it.")
    index: Annotated[int, Field(ge=0, le=255)] = Field(
        default=0, description="Index of the device on its node."
    )
    product: Annotated[str, StringConstraints(max_length=128)] = Field(
        default="", description="Product name."
    )
    memory: Quantity = Field(default="0", description="Memory of the device.")
    compute_capability: Annotated[str, StringConstraints(max_length=8)] = Field(
        default="", description='CUDA compute capability, like "8.0".'
    )
    mig: bool = Field(
        default=False,
        description="Whether it is a MIG instance. The GPU it is cut from is not among the devices: nobody can have it as a whole.",
    )
    parent: Annotated[str, StringConstraints(max_length=128)] = Field(
        default="", description="UUID of the GPU a MIG instance is cut from."
    )
    mig_profile: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="",
        description="Profile of a MIG instance, like 1g.10gb; empty where the driver does not say.",
    )
    part_milli: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="Thousandths of its GPU that a MIG instance is: the larger of its parts of compute slices and of memory. Quota is charged by it.",
    )
    numa_node: Annotated[int, Field(ge=-1, le=1023)] | None = Field(
        default=None, description="NUMA node of the device, -1 if it has none."
    )
    power_limit_milliwatts: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = Field(
        default=None,
        description="Power limit the driver enforces; of a MIG instance the part of its memory. Absent where the device does not tell.",
    )
    health: DeviceHealth | None = Field(default=None, description="The agent's verdict on the device.")
    links: Annotated[tuple[DeviceLink, ...], ListAtomic(), Field(max_length=MAX_DEVICES)] = Field(
        default=(), description="Connections to the other devices of the node."
    )
    capabilities: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=64)], ...], ListSet(), Field(max_length=32)
    ] = Field(
        default=(),
        description="What the device can do and the agent can measure, such as bf16, fp8, energy, processes.",
    )
    resource: Annotated[str, StringConstraints(max_length=317)] = Field(
        default="",
        description="Extended resource under which the kubelet hands the device out; empty where it does not, or does not tell.",
    )
    holders: Annotated[tuple[DeviceHolder, ...], ListAtomic(), Field(max_length=MAX_HOLDERS)] = Field(
        default=(), description="Containers that were given the device, as the kubelet tells."
    )


class KeptModel(KubeModel):
    """A model on the node's disk, or on its way there."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="Name of its entry: 16 hex digits of sha256 over uri@revision, as in the name of its ModelProfile."
    )
    uri: Annotated[str, StringConstraints(max_length=1024)] = Field(
        default="", description="Where it came from, without a query."
    )
    revision: Annotated[str, StringConstraints(max_length=255)] = Field(
        default="main", description="Branch, tag or commit of it."
    )
    state: CopyState = Field(default=CopyState.PENDING, description="Pending, Downloading, Ready or Failed.")
    bytes: Count = Field(default=0, description="Bytes that are on the disk.")
    bytes_total: Count = Field(default=0, description="Bytes of the whole model; 0 while it is not known.")
    eta_seconds: Count | None = Field(
        default=None, description="Seconds the download is expected to take from here."
    )
    reason: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", description="Why it failed, one CamelCase word."
    )
    message: Annotated[str, StringConstraints(max_length=1024)] = Field(
        default="", description="Why it failed."
    )


class LedgerDevice(KubeModel):
    """What is reserved on one device."""

    uuid: Uuid = Field(description="UUID of the device.")
    reserved: Quantity = Field(default="0", description="Memory reserved by workloads.")
    claims: Annotated[int, Field(ge=0, le=INT32_MAX)] = Field(
        default=0, description="Number of claims on the device."
    )
    strangers: Quantity = Field(
        default="0",
        description="Memory used by processes of nobody the ledger knows of there; nothing new is placed meanwhile.",
    )


class Ledger(KubeModel):
    """The operator's view of the node."""

    devices: Annotated[tuple[LedgerDevice, ...], ListAtomic(), Field(max_length=MAX_DEVICES)] = Field(
        default=(), description="What is reserved on each device."
    )


class TreatmentPhase(StrEnum):
    """Where a treatment stands."""

    DRAINING = "Draining"
    RESETTING = "Resetting"
    WAITING = "Waiting"
    PROBATION = "Probation"
    RELEASED = "Released"


class Treatment(KubeModel):
    """What is done about one sick device, or about the node."""

    target: Uuid = Field(description="UUID of the device, or node for the whole node.")
    action: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", description="What the finding asks for, such as EvictAndReset or RebootNode."
    )
    reason: Word = Field(default="", description="The finding it began with.")
    phase: TreatmentPhase = Field(
        default=TreatmentPhase.WAITING,
        description="Draining, Resetting, Waiting (for a healthy verdict), Probation, Released. Nothing new is placed before Released.",
    )
    since: Time | None = Field(default=None, description="When the phase began.")
    times: Annotated[int, Field(ge=0, le=INT32_MAX)] = Field(
        default=0, description="How often it fell ill again within a day; each time doubles the probation."
    )


class Care(KubeModel):
    """What the operator does about sick devices of the node. It is the memory of the circuit breaker, too."""

    disturbed_at: Time | None = Field(default=None, description="When the node was acted on last.")
    cordoned: bool = Field(default=False, description="Whether the operator cordoned the node.")
    treatments: Annotated[tuple[Treatment, ...], ListAtomic(), Field(max_length=MAX_DEVICES + 1)] = Field(
        default=(), description="Treatments by target."
    )


class GPUNodeStatus(KubeModel):
    """The devices of the node and what is reserved on them."""

    mode: Annotated[str, StringConstraints(max_length=32)] = Field(
        default="", description="How the agent reads devices: nvml or simulated."
    )
    driver: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", description="Version of the device driver."
    )
    devices: Annotated[tuple[GPUDevice, ...], ListAtomic(), Field(max_length=MAX_DEVICES)] = Field(
        default=(), description="Devices of the node, written by its agent."
    )
    models: Annotated[tuple[KeptModel, ...], ListAtomic(), Field(max_length=128)] = Field(
        default=(), description="Models on the node's disk, written by its agent."
    )
    ledger: Ledger | None = Field(
        default=None, description="What is reserved on them, written by the operator."
    )
    care: Care | None = Field(
        default=None, description="What is done about sick devices, written by the operator."
    )
    conditions: Conditions = Field(
        default=(), description="Observations by type: Ready, DevicesHealthy, AllocationsKnown."
    )


class GPUNode(KubeModel):
    """The devices of one node: kind, memory, health, and what the operator has reserved on them."""

    api_version: str = API_VERSION
    kind: str = "GPUNode"
    metadata: ObjectMeta
    status: GPUNodeStatus | None = Field(
        default=None, description="The devices of the node and what is reserved on them."
    )

"""Domain values: nodes, devices, pods and the claims they hold.

Everything is frozen, exact (bytes, thousandths of a core, thousandths of a device) and free of Kubernetes shapes;
`state.convert` makes these values, `state.store` keeps them, the scheduler reads them through a snapshot.
Workloads, queues and profiles are in `state.work`; they are re-exported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from llmos_operator.api import names
from llmos_operator.api.telemetry import Verdict
from llmos_operator.state.care import NO_CARE, Care
from llmos_operator.state.cutting import Recut
from llmos_operator.state.work import (
    AUTO,
    DEFAULT_ORDER,
    Adapter,
    Ceiling,
    ClaimUse,
    DeviceSelector,
    DisruptionStep,
    Draw,
    FormatProfile,
    Gate,
    Hold,
    Learned,
    LoadTime,
    Model,
    MountLimit,
    Placement,
    PreemptionPolicy,
    Profile,
    Quantization,
    QuantizationMode,
    Queue,
    Requirement,
    Selector,
    Sharing,
    Toleration,
    Topology,
    TrainingSpec,
    Workload,
    WorkloadKey,
    WorkloadKind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.mig import MigProfile

__all__ = [
    "AUTO",
    "DEFAULT_ORDER",
    "FULL_MILLI",
    "Adapter",
    "Busy",
    "Care",
    "Ceiling",
    "Claim",
    "ClaimUse",
    "Device",
    "DeviceSelector",
    "DisruptionBudget",
    "DisruptionStep",
    "Draw",
    "FormatProfile",
    "Gate",
    "GpuNode",
    "Hold",
    "Kind",
    "Learned",
    "Link",
    "LoadTime",
    "Model",
    "MountLimit",
    "Namespace",
    "Node",
    "Placement",
    "Pod",
    "PodKey",
    "PodPhase",
    "PreemptionPolicy",
    "PriorityClass",
    "Profile",
    "Quantization",
    "QuantizationMode",
    "Queue",
    "Recut",
    "Requirement",
    "Selector",
    "Sharing",
    "Sleeping",
    "Taint",
    "Target",
    "Toleration",
    "Topology",
    "TrainingSpec",
    "Verdict",
    "Workload",
    "WorkloadKey",
    "WorkloadKind",
]

PodKey: TypeAlias = str  # "namespace/name"
FULL_MILLI = 1000  # compute of a whole device


class Kind(StrEnum):
    """Kinds the store holds; each must be listed completely before a decision is taken."""

    NODE = "Node"
    GPU_NODE = "GPUNode"
    POD = "Pod"
    WORKLOAD = "ModelWorkload"
    QUEUE = "WorkloadQueue"
    PROFILE = "ModelProfile"
    PRIORITY_CLASS = "PriorityClass"
    DISRUPTION_BUDGET = "PodDisruptionBudget"
    NAMESPACE = "Namespace"
    RESOURCE_SLICE = "ResourceSlice"
    RESOURCE_CLAIM = "ResourceClaim"
    VOLUME_CLAIM = "PersistentVolumeClaim"
    VOLUME = "PersistentVolume"


@dataclass(frozen=True, slots=True)
class Taint:
    """A node's taint. `effect` is NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True)
class Node:
    """A Kubernetes Node: what it can hold (allocatable) and whether it takes pods."""

    name: str
    uid: str = ""
    ready: bool = True
    unschedulable: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cpu_milli: int = 0
    memory_bytes: int = 0
    pods: int = 110
    gpus: int = 0  # allocatable nvidia.com/gpu
    partitions: Mapping[str, int] = field(default_factory=dict)  # allocatable nvidia.com/mig-*, by resource
    power_milliwatts: int | None = None  # that its devices may draw together; None: no budget
    rack_milliwatts: int | None = None  # that those of its rack may
    recut: Recut | None = None  # that the operator asked for its GPUs to be cut anew


@dataclass(frozen=True, slots=True)
class Link:
    """The closest connection of a device to another one of its node."""

    uuid: str  # of the other device
    kind: str  # NVLink, PCIeSwitch, PCIeHost, NUMA or System


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator (or MIG instance) as its node's agent reports it in GPUNode."""

    uuid: str
    index: int
    product: str
    memory_bytes: int
    compute_capability: tuple[int, int] = (0, 0)  # (0, 0): unknown
    mig: bool = False
    verdict: Verdict = Verdict.HEALTHY
    reason: str = ""  # of the verdict
    numa: int | None = None  # NUMA node; None: not known
    links: tuple[Link, ...] = ()
    holders: tuple[PodKey, ...] = ()  # pods the kubelet gave it to; () where none, or where nobody tells
    offered: bool = False  # a device plugin hands it out as nvidia.com/gpu; False where nobody tells
    withdrawn: bool = False  # it did, and does not now: the plugin is starting, or thinks it sick
    limit_milliwatts: int | None = None  # the power limit in force; None: it does not tell
    parent: str = ""  # UUID of the GPU a MIG instance is cut from
    profile: MigProfile | None = None  # of a MIG instance; None where the driver does not say
    part_milli: int = FULL_MILLI  # of its GPU, which quota is charged for a MIG instance
    resource: str = ""  # under which the kubelet hands it out; "" where it does not tell
    published: bool = False  # by a DRA driver, in a ResourceSlice
    claimed_by: tuple[str, ...] = ()  # ResourceClaims, "namespace/name", that have it, or what excludes it
    claimable: bool = False  # the operator's pods get it by ResourceClaims of their own


@dataclass(frozen=True, slots=True)
class GpuNode:
    """The devices of one node. `mode` is "nvml" or "simulated"."""

    name: str
    devices: tuple[Device, ...] = ()
    driver: str = ""
    mode: str = "nvml"
    care: Care = NO_CARE  # what the operator does about sick ones
    models: frozenset[str] = frozenset()  # keys of models that are whole on its disk
    coming: frozenset[str] = frozenset()  # keys of models that are being downloaded
    told: bool = False  # the kubelet tells the agent what device plugins offer


class PodPhase(StrEnum):
    """Where a pod stands for the ledger. All but FINISHED hold what they claim."""

    ASSUMED = "Assumed"  # decided by us, its create not yet seen in the watch
    BOUND = "Bound"  # exists with a node; containers may or may not run
    TERMINATING = "Terminating"  # deletion asked for (seen, or assumed by our own eviction)
    FINISHED = "Finished"  # Succeeded or Failed: holds its name, but no capacity


@dataclass(frozen=True, slots=True)
class Target:
    """Where a replica that is moved starts again. The place is kept for it until `until`, also while its pod is still leaving."""

    node: str
    devices: tuple[str, ...]  # UUIDs
    format: str  # it keeps precision and context
    max_model_len: int
    kv_tokens: int
    at: float  # epoch seconds of the decision
    until: float  # epoch seconds
    beneficiary: WorkloadKey  # who starts in its former place


@dataclass(frozen=True, slots=True)
class Sleeping:
    """That a replica was asked to sleep: its weights wait in its node's memory, its devices are for others."""

    bytes_per_device: int  # that it keeps while it sleeps
    host_bytes: int  # of the node's memory, for its weights; counted from the moment it is asked
    at: float  # epoch seconds at which it was asked
    beneficiary: WorkloadKey = ""  # whom it makes room for; "": nobody asked for it
    down: bool = False  # it was seen to sleep


@dataclass(frozen=True, slots=True)
class Claim:
    """What one replica of a workload holds: written to the pod as annotation `llmos.dev/claim`, rebuilt from it.

    Memory is bytes on each of `devices`; `gpu_milli` and `charged_bytes` are what quota is charged for all devices
    together: whole devices count whole, shared ones by the part that is reserved.
    """

    workload: WorkloadKey
    workload_uid: str
    ordinal: int  # of the replica
    pod: PodKey
    node: str
    devices: tuple[str, ...] = ()  # UUIDs; empty for CPU-only workloads
    bytes_per_device: int = 0
    compute_milli: int = FULL_MILLI  # of each device
    sharing: Sharing = Sharing.EXCLUSIVE
    domain: str = ""  # Shared: only claims of one sharing domain live on a device together
    format: str = ""
    max_model_len: int = 0  # tokens; 0: the runtime decides
    kv_tokens: int = 0  # 0: the runtime decides
    cpu_milli: int = 0
    memory_bytes: int = 0  # host memory requested by the pod
    priority: int = 0
    queue: str = ""
    gpu_milli: int = 0
    charged_bytes: int = 0
    bound_at: float = 0.0  # epoch seconds of the decision
    min_runtime: float = 0.0  # seconds during which it must not be disrupted
    member: int = 0  # rank of the pod among those of its replica
    asked_bytes: int = 0  # of each device, that it was asked to come down to; 0: it was not asked
    asked_format: str = (
        ""  # narrower than `format`, that it was asked to serve at with that; "": it keeps its own
    )
    asked_at: float = 0.0  # epoch seconds of that
    yielded: bool = False  # it was seen to have come down
    lent: bool = False  # what it came down by is lent, and called back when it works again
    lender: PodKey = ""  # whose lent memory it stands in; "": it borrows nothing
    moved_at: float = 0.0  # epoch seconds at which its replica was moved to this place; 0: it was not
    target: Target | None = None  # its replica is being moved there
    sleeping: Sleeping | None = None  # it was put to sleep, on top of what it may have come down to before
    draw_milliwatts: int | None = None  # of each device, as its model's was measured; None: by its share
    partition_resource: str = ""  # MIG: extended resource its pod asks for; "": it names the instance itself
    resource_claim: str = ""  # name of the ResourceClaim its pod gets its devices by; "": it has none

    @property
    def resource(self) -> str:
        """Extended resource by which its pod gets its devices from a device plugin; "": it names them itself."""
        if not self.devices or self.sharing is Sharing.SHARED or self.resource_claim:
            return ""
        return names.RESOURCE_GPU if self.sharing is Sharing.EXCLUSIVE else self.partition_resource

    @property
    def whole_units(self) -> int:
        """How many of the whole devices that its node gives to pods it takes: units of nvidia.com/gpu, or by a ResourceClaim."""
        by_claim = self.resource_claim and self.sharing is Sharing.EXCLUSIVE
        return len(self.devices) if by_claim or self.resource == names.RESOURCE_GPU else 0

    @property
    def held_bytes(self) -> int:
        """Memory of each device that counts as its own: all it was bound with until it was seen to do with less."""
        return self.sleeping.bytes_per_device if self.asleep and self.sleeping else self.awake_bytes

    @property
    def awake_bytes(self) -> int:
        """Memory of each device that counts as its own while it is awake."""
        return self.asked_bytes if self.yielded and self.asked_bytes else self.bytes_per_device

    @property
    def served_format(self) -> str:
        """The format it serves at, as far as it was seen to."""
        return self.asked_format if self.yielded and self.asked_format else self.format

    @property
    def held_milli(self) -> int:
        """Compute of each device that counts as its own: none while it sleeps."""
        return 0 if self.asleep else self.compute_milli

    @property
    def asleep(self) -> bool:
        """Whether it was seen to sleep."""
        return self.sleeping is not None and self.sleeping.down

    @property
    def host_bytes(self) -> int:
        """Memory of the node that its weights take beside what its pod asks for."""
        return self.sleeping.host_bytes if self.sleeping is not None else 0

    @property
    def lent_bytes(self) -> int:
        """Memory of each device that it has lent and was seen to give up."""
        return self.bytes_per_device - self.awake_bytes if self.lent else 0

    @property
    def lowered(self) -> bool:
        """Whether it was asked to do with less than it was bound with."""
        return self.asked_bytes > 0


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that sits on a node: one of ours (with a claim) or anybody's (counted by its requests)."""

    key: PodKey
    uid: str
    node: str
    phase: PodPhase = PodPhase.BOUND
    claim: Claim | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0  # requested nvidia.com/gpu
    partitions: Mapping[str, int] = field(default_factory=dict)  # requested nvidia.com/mig-*, by resource
    ready: bool = False
    started_at: float = 0.0  # status.startTime, 0.0 before
    grace_seconds: int = 30  # spec.terminationGracePeriodSeconds
    deletion_at: float = 0.0  # metadata.deletionTimestamp: when its grace ends; 0.0 if not deleted
    spec_hash: str = ""  # annotation llmos.dev/spec-hash
    failed: bool = False  # phase Failed (FINISHED pods only)
    problem: str = ""  # why its claim annotation was not believed
    holder: bool = False  # one of ours that takes a device from the device plugin, for shared work
    firm_until: float = 0.0  # epoch seconds before which it is not asked (again) to come down: it did not
    mounts: tuple[str, ...] = ()  # PersistentVolumeClaims of its namespace, by name
    resource_claim: str = ""  # of its spec: the operator's, by which it gets its devices

    @property
    def namespace(self) -> str:
        """Namespace part of the key."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """Name part of the key."""
        return self.key.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Busy:
    """What a replica that serves is in the middle of, as its runtime said last."""

    streams: int  # requests that are being answered, or wait in its engine
    warm_bytes: int = 0  # of its KV cache that hold something, on each device


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """A scheduling.k8s.io PriorityClass."""

    name: str
    value: int
    is_default: bool = False
    preemption_policy: PreemptionPolicy = PreemptionPolicy.LOWER_PRIORITY


@dataclass(frozen=True, slots=True)
class DisruptionBudget:
    """A PodDisruptionBudget: `allowed` is status.disruptionsAllowed as last seen."""

    key: str  # "namespace/name"
    selector: Selector | None = None  # None selects nothing
    allowed: int = 0

    @property
    def namespace(self) -> str:
        """Namespace part of the key."""
        return self.key.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace's labels, for queues' namespaceSelector."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)

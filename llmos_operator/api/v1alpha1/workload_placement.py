"""ModelWorkload: what it needs of the cluster and how it may be placed and disturbed."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.mig import PATTERN
from llmos_operator.api.schema import (
    Capability,
    Duration,
    KubeModel,
    LabelValue,
    ListAtomic,
    ListSet,
    PositiveDuration,
    PositiveQuantity,
    Quantity,
    Rule,
)

MigProfileName = Annotated[
    str,
    StringConstraints(max_length=64),
    Rule(
        f"self.matches('^{PATTERN}$')",
        "must be the name of a MIG profile, like 1g.10gb, as nvidia-smi mig -lgip lists them",
    ),
]


class Sharing(StrEnum):
    """How a device is used."""

    EXCLUSIVE = "Exclusive"
    SHARED = "Shared"
    MIG = "MIG"


class DeviceSelector(KubeModel):
    """Which devices are acceptable; all given fields must hold."""

    product: Annotated[tuple[LabelValue, ...], ListSet(), Field(max_length=32)] = Field(
        default=(),
        description="Acceptable products. A word matches a product of that name or one that contains it as a part between "
        "dashes, so A100 matches NVIDIA-A100-SXM4-80GB. Empty: any.",
    )
    min_memory: Quantity | None = Field(default=None, description="Least memory of a device.")
    min_compute_capability: Capability | None = Field(
        default=None, description='Least CUDA compute capability of a device, as text, like "8.0".'
    )


class Resources(KubeModel):
    """What one replica needs."""

    rules = (
        Rule(
            "self.sharing == 'Exclusive' || self.accelerators <= 1",
            "sharing Shared and MIG are for one accelerator: a model split over several devices needs them whole (Exclusive)",
            ".accelerators",
        ),
        Rule(
            "!has(self.migProfile) || self.sharing == 'MIG'",
            "migProfile is for sharing MIG: set sharing to MIG, or leave migProfile out",
            ".migProfile",
        ),
    )
    accelerators: int = Field(
        default=1, ge=0, le=64, description="Devices of one replica. 0: run on the CPU only."
    )
    memory: PositiveQuantity | None = Field(
        default=None,
        description="Memory to reserve on each device (of the host when accelerators is 0), instead of the operator's estimate. Where running "
        "shows it to be too little or far too much, the next start reserves what status.sizing says.",
    )
    selector: DeviceSelector | None = Field(
        default=None, description="Which devices are acceptable. Empty: any."
    )
    sharing: Sharing = Field(
        default=Sharing.EXCLUSIVE,
        description="Exclusive: whole devices. Shared: the reserved part of a device, beside other workloads of the namespace's "
        "sharing domain; a memory cap, not isolation. MIG: a hardware partition, the smallest instance that is large enough.",
    )
    mig_profile: MigProfileName | None = Field(
        default=None,
        description="Least MIG profile, like 1g.10gb: the instance has at least its compute slices, its memory and what follows a plus sign. "
        "Without it: any instance with enough memory.",
    )


class Parallelism(KubeModel):
    """How one replica is split over its devices."""

    tensor: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Devices that share each layer. Without it: accelerators divided by pipeline.",
    )
    pipeline: int = Field(
        default=1, ge=1, le=64, description="Groups of devices that hold consecutive layers."
    )
    pods: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pods one copy of the model is spread over: by its pipeline stages, of which there must be a multiple of it, or with "
        "pipeline 1 by the devices that share each layer. Each pod has accelerators divided by pods. 1: all devices of a copy are on one node.",
    )
    data: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Copies of the model that work in step, each on accelerators of its own. A replica has data x pods pods. More than "
        "one start together or not at all, restart as a whole when one is lost, and find each other through MASTER_ADDR and RANK.",
    )


class PreemptionPolicy(StrEnum):
    """Whether a workload may take devices from others."""

    PREEMPT_LOWER_PRIORITY = "PreemptLowerPriority"
    NEVER = "Never"


class DisruptionStep(StrEnum):
    """What may be done to a workload so that another one fits."""

    SHRINK = "Shrink"
    SLEEP = "Sleep"
    CHECKPOINT = "Checkpoint"
    EVICT = "Evict"


class Disruption(KubeModel):
    """What may be done to this workload when others need its place."""

    order: Annotated[tuple[DisruptionStep, ...], ListAtomic(), Field(min_length=1, max_length=4)] = Field(
        default=(DisruptionStep.SHRINK, DisruptionStep.SLEEP, DisruptionStep.EVICT),
        description="Steps that may be taken, mildest first. Shrink: less KV cache, fewer replicas or a narrower format. Sleep: "
        "weights to host memory. Checkpoint: save and requeue (FineTune, Batch). Evict: end the pod.",
    )
    min_runtime: Duration | None = Field(
        default=None,
        description="Time after a start during which nothing is taken from it. Without it: the operator's setting.",
    )


class Placement(StrEnum):
    """Preference between devices that fit equally."""

    BIN_PACK = "BinPack"
    SPREAD = "Spread"


class TopologyLevel(StrEnum):
    """Domains of the cluster, from tight to wide."""

    NVLINK = "nvlink"
    PCIE = "pcie"
    NUMA = "numa"
    NODE = "node"
    RACK = "rack"
    BLOCK = "block"
    ZONE = "zone"


class Topology(KubeModel):
    """How close the devices of one replica are to be: all pods of it together."""

    required: TopologyLevel | None = Field(
        default=None,
        description="All devices of a replica must be in one such domain; it waits until they can. rack, block and zone are read from node "
        "labels (operator setting scheduling.topologyLabels), nvlink, pcie and numa from GPUNode.",
    )
    preferred: TopologyLevel | None = Field(
        default=None,
        description="All devices of a replica should be in one such domain; where they cannot be, as few as possible are used.",
    )


class Scheduling(KubeModel):
    """Standing in the queue and rules of placement."""

    priority_class_name: Annotated[
        str,
        StringConstraints(max_length=253),
        Rule(
            "self == '' || self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
            "must be the name of a PriorityClass, like llmos-prod",
        ),
    ] = Field(
        default="", description="PriorityClass of the workload and its pods. Empty: the cluster's default."
    )
    preemption_policy: PreemptionPolicy = Field(
        default=PreemptionPolicy.PREEMPT_LOWER_PRIORITY,
        description="PreemptLowerPriority: may take devices from workloads of lower priority. Never: waits instead.",
    )
    disruption: Disruption = Field(
        default_factory=Disruption,
        description="What may be done to this workload when others need its place.",
    )
    min_replicas: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Replicas that start together or not at all. More are added as there is room and are given up first. While fewer are "
        "left, the missing ones are placed anew; after the grace (operator setting scheduling.gangGrace) all are given back and wait.",
    )
    max_runtime: PositiveDuration | None = Field(
        default=None,
        description="Time the workload may run, from the moment its first replica was given a place. Then it has finished: its pods go and "
        "no new ones come. Work with such an end may use a place that is kept for larger work until then. Without it: no end.",
    )
    placement: Placement = Field(
        default=Placement.BIN_PACK,
        description="BinPack: fill devices and nodes that are in use. Spread: keep replicas apart.",
    )
    topology: Topology | None = Field(
        default=None, description="How close the devices of one replica are to be. Empty: no demand."
    )

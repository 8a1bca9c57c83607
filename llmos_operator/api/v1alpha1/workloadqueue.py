"""WorkloadQueue (`wq`, cluster-scoped): a share of the cluster's devices and who may use it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.meta import Conditions, LabelSelector, ObjectMeta
from llmos_operator.api.names import API_VERSION
from llmos_operator.api.schema import INT32_MAX, INT64_MAX, KubeModel, PositiveDuration, Quantity, Rule

Amount = Annotated[str, StringConstraints(max_length=32)]
Count = Annotated[int, Field(ge=0, le=INT64_MAX)]


class QueueAmount(KubeModel):
    """An amount of devices and device memory; a field left out is not limited."""

    gpus: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Devices. Empty: not limited."
    )
    memory: Quantity | None = Field(default=None, description="Memory of devices. Empty: not limited.")


class WithinQueue(StrEnum):
    """Whether work of a queue may take devices from work of the same queue."""

    NEVER = "Never"
    LOWER_PRIORITY = "LowerPriority"


class Reclaim(StrEnum):
    """Whether a queue takes lent devices back."""

    NEVER = "Never"
    LOWER_PRIORITY = "LowerPriority"
    ANY = "Any"


class QueuePreemption(KubeModel):
    """What the queue's pending work may take, and from whom."""

    within_queue: WithinQueue = Field(
        default=WithinQueue.LOWER_PRIORITY,
        description="Never: waits. LowerPriority: may take devices from work of lower priority in the same queue.",
    )
    reclaim: Reclaim = Field(
        default=Reclaim.ANY,
        description="How devices lent to other queues come back. Never: when their work ends. LowerPriority: from work of lower "
        "priority. Any: from any work that borrowed them.",
    )


class Fairness(KubeModel):
    """How past use counts against a queue."""

    half_life: PositiveDuration = Field(default="168h", description="Time after which past use counts half.")


class WorkloadQueueSpec(KubeModel):
    """The desired share and its rules."""

    parent: Annotated[
        str,
        StringConstraints(max_length=253),
        Rule(
            "self == '' || self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
            "must be the name of a WorkloadQueue, like research",
        ),
    ] = Field(default="", description="Queue this one is a part of. Empty: a root.")
    weight: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Share of what the parent has free, relative to the queues beside it.",
    )
    nominal: QueueAmount | None = Field(
        default=None,
        description="What the queue may use at any time. Empty: not limited, everything that is free.",
    )
    borrowing_limit: QueueAmount | None = Field(
        default=None,
        description="Most it may use beyond nominal while others leave it free. Empty: no limit.",
    )
    lending_limit: QueueAmount | None = Field(
        default=None, description="Most of nominal that others may use while it is free. Empty: all of it."
    )
    namespace_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Namespaces whose workloads may use the queue, by labels. Empty: all namespaces.",
    )
    priority_ceiling: Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX)] | None = Field(
        default=None,
        description="Highest priority work has in this queue; a higher priority class counts as this. Empty: no ceiling.",
    )
    preemption: QueuePreemption = Field(
        default_factory=QueuePreemption, description="What the queue's pending work may take, and from whom."
    )
    fairness: Fairness = Field(default_factory=Fairness, description="How past use counts against the queue.")


class QueueUse(KubeModel):
    """Devices and memory in use; shared devices count by the part that is reserved."""

    gpus: Amount = Field(default="", description="Devices, like 3500m for three and a half.")
    memory: Amount = Field(default="", description="Memory of devices.")


class WorkloadQueueStatus(KubeModel):
    """What the operator observed."""

    observed_generation: Count = Field(
        default=0, description="metadata.generation the status was computed from."
    )
    usage: QueueUse | None = Field(default=None, description="What the queue's admitted work has reserved.")
    borrowed: QueueUse | None = Field(default=None, description="The part of usage beyond nominal.")
    share_milli: Count = Field(
        default=0,
        description="Weighted dominant share of the parent, in thousandths, with past use decayed. The lowest goes first.",
    )
    pending: Annotated[int, Field(ge=0, le=INT32_MAX)] = Field(default=0, description="Workloads that wait.")
    admitted: Annotated[int, Field(ge=0, le=INT32_MAX)] = Field(
        default=0, description="Workloads that have quota."
    )
    conditions: Conditions = Field(default=(), description="Observations by type: Ready.")


class WorkloadQueue(KubeModel):
    """A share of the cluster's devices, who may use it, and what happens when it is exceeded."""

    rules = (
        Rule(
            "!has(self.spec.parent) || self.spec.parent != self.metadata.name",
            "parent must be another queue: a queue cannot be a part of itself",
            ".spec.parent",
        ),
        Rule(
            "!has(self.spec.lendingLimit) || has(self.spec.nominal)",
            "lendingLimit needs nominal: a queue without nominal owns nothing to lend",
            ".spec.lendingLimit",
        ),
        Rule(
            "!has(self.spec.borrowingLimit) || has(self.spec.nominal)",
            "borrowingLimit needs nominal: a queue without nominal is not limited",
            ".spec.borrowingLimit",
        ),
    )
    api_version: str = API_VERSION
    kind: str = "WorkloadQueue"
    metadata: ObjectMeta
    spec: WorkloadQueueSpec = Field(
        default_factory=WorkloadQueueSpec, description="The desired share and its rules."
    )
    status: WorkloadQueueStatus | None = Field(default=None, description="What the operator observed.")

"""ModelWorkload: what the operator observed and decided. Written by the operator only."""

from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.meta import Conditions
from llmos_operator.api.schema import INT32_MAX, INT64_MAX, KubeModel, ListAtomic, Time

Word = Annotated[str, StringConstraints(max_length=253)]
Text = Annotated[str, StringConstraints(max_length=1024)]
Amount = Annotated[str, StringConstraints(max_length=32)]
Count = Annotated[int, Field(ge=0, le=INT64_MAX)]
Replicas = Annotated[int, Field(ge=0, le=INT32_MAX)]


class StatusSummary(KubeModel):
    """One line for people and for the columns of `kubectl get`. Nothing branches on it."""

    ready: Amount = Field(
        default="",
        description='Ready and wanted replicas, like "2/2"; of FineTune and Batch what is done of the run, like "120/500".',
    )
    priority: Amount = Field(default="", description="Priority the workload is queued with.")
    queue: Word = Field(default="", description="WorkloadQueue the workload is in.")
    nodes: Text = Field(default="", description="Nodes of the replicas.")
    devices: Text = Field(default="", description="Devices of the replicas, as product and number.")
    memory: Amount = Field(default="", description="Memory reserved on each device.")


class ModelStatus(KubeModel):
    """The model as it is served."""

    resolved_revision: Word = Field(
        default="", description="Commit the revision stood for when it was loaded."
    )
    digest: Annotated[str, StringConstraints(max_length=71)] = Field(
        default="", description="sha256 over the weight files."
    )
    quantization: Amount = Field(default="", description="Format the weights have: the scheduler's choice.")
    estimated_memory: Amount = Field(default="", description="Estimated memory on each device.")
    observed_memory: Amount = Field(default="", description="Largest measured memory on a device.")
    sleep_state: Amount = Field(default="", description="Awake, Asleep or Waking.")
    profile: Word = Field(default="", description="ModelProfile the estimate comes from.")


class LoadStatus(KubeModel):
    """Progress of the load that is furthest behind."""

    stage: Amount = Field(
        default="", description="Starting, Downloading, Verifying, Quantizing, Loading, Warming or Ready."
    )
    bytes_done: Count = Field(default=0, description="Bytes of the stage that are done.")
    bytes_total: Count = Field(default=0, description="Bytes of the stage altogether.")
    bytes_per_second: Count = Field(default=0, description="Speed of the stage.")
    eta: Amount = Field(default="", description="Time until the model is ready, as a duration.")


class PlacementStatus(KubeModel):
    """Where one replica is."""

    pod: Word = Field(description="Name of the replica's pod.")
    node: Word = Field(default="", description="Its node.")
    device_uuids: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=128)], ...], ListAtomic(), Field(max_length=64)
    ] = Field(default=(), alias="deviceUUIDs", description="UUIDs of its devices.")
    reserved_memory: Amount = Field(default="", description="Memory reserved on each of them.")
    lent_memory: Amount = Field(
        default="", description="Memory of each of them it has lent while it idles; absent where none is."
    )
    borrowed_from: Word = Field(
        default="",
        description="Pod, as namespace/name, in whose lent memory it stands: it is evicted when that works again.",
    )
    score: Annotated[int, Field(ge=-INT64_MAX, le=INT64_MAX)] = Field(
        default=0, description="Score the place had when it was chosen."
    )
    scored_by: Word = Field(
        default="", description="What the score is of: Fragmentation (prices of expected work) or BestFit."
    )


class RejectedPlace(KubeModel):
    """Nodes that were out, and why."""

    reason: Word = Field(description="Why these nodes were out, one CamelCase word.")
    count: Replicas = Field(default=0, description="How many nodes.")
    message: Text = Field(default="", description="The nearest miss, for people.")


class DecisionStatus(KubeModel):
    """The scheduler's last decision about the workload."""

    reason: Word = Field(default="", description="One CamelCase word.")
    message: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="Explanation for people."
    )
    candidates: Replicas = Field(default=0, description="Nodes that were looked at.")
    scored_by: Word = Field(
        default="",
        description="What chose the last node: Fragmentation (prices of expected work) or BestFit.",
    )
    rejected: Annotated[tuple[RejectedPlace, ...], ListAtomic(), Field(max_length=5)] = Field(
        default=(), description="The five most frequent reasons for which nodes were out."
    )
    reserved_nodes: Annotated[tuple[Word, ...], ListAtomic(), Field(max_length=64)] = Field(
        default=(), description="Nodes on which a place is kept for it; the message says what it waits for."
    )
    expected_start: Time | None = Field(
        default=None, description="By when it is expected to start there; absent where nobody knows."
    )
    time: Time | None = Field(default=None, description="When the decision last changed.")


class PreemptionStatus(KubeModel):
    """The last time devices were taken from the workload."""

    by: Word = Field(
        default="", description="Workload that took them, as namespace/name, where the reader may see it."
    )
    action: Amount = Field(default="", description="Shrink, Sleep, Checkpoint, Move or Evict.")
    time: Time | None = Field(default=None, description="When.")


class UsageStatus(KubeModel):
    """What the workload has used since it was created."""

    gpu_seconds: Count = Field(
        default=0, description="Devices held, times seconds; of a shared device the part that is held."
    )
    energy_joules: Count = Field(default=0, description="Energy of its devices while they were its own.")
    tokens: Count = Field(default=0, description="Tokens read and generated.")
    time: Time | None = Field(default=None, description="Up to when it is counted.")


class ActivityStatus(KubeModel):
    """Whether the workload works, by its requests, what its devices do and the power they draw."""

    state: Amount = Field(
        default="",
        description="Idle once it has been for five minutes, Busy once it works again; absent before it first was idle.",
    )
    since: Time | None = Field(default=None, description="Since when.")
    message: Text = Field(default="", description="What said so then, for people.")


class SizingStatus(KubeModel):
    """What running the workload has taught of its memory; the next start reserves by it. Empty while nothing was off."""

    out_of_memory_bytes: Count = Field(
        default=0,
        description="Largest reservation of each device with which it ran out of memory; the next start reserves more.",
    )
    needed_bytes: Count = Field(
        default=0,
        description="What it was seen to need of each device, where that is far less than resources.memory; the next start reserves "
        "an eighth more than this.",
    )
    message: Text = Field(default="", description="The correction in words.")
    spec_hash: Word = Field(
        default="", description="Of the spec it was learned with; a changed spec is believed anew."
    )


class CeilingStatus(KubeModel):
    """How many replicas an elastic workload (spec.scaling) may have after it gave some up for a workload of higher standing."""

    replicas: Replicas = Field(
        default=0, description="At most so many until there is room again; absent: as many as are wanted."
    )
    by: Word = Field(default="", description="Workload that took the place of one, as namespace/name.")
    time: Time | None = Field(default=None, description="When that was decided; the newest word counts.")


class RunStatus(KubeModel):
    """How work that ends comes along. FineTune and Batch only."""

    start_time: Time | None = Field(default=None, description="When its first pod was given a place.")
    completion_time: Time | None = Field(default=None, description="When it finished, well or badly.")
    unit: Amount = Field(default="", description="What is counted: requests or steps.")
    done: Count = Field(default=0, description="How many of them are done.")
    total: Count = Field(default=0, description="How many there are; 0 until that is known.")
    failed: Count = Field(
        default=0, description="Of those done: requests that got an error instead of an answer."
    )
    saved: Count = Field(default=0, description="Of those done: what a preemption does not lose.")
    last_saved_time: Time | None = Field(
        default=None, description="When the run last saved what it had done: a checkpoint of a FineTune."
    )
    failures: Replicas = Field(
        default=0, description="How often the program has failed; preemptions and lost nodes do not count."
    )
    last_failed_pod: Word = Field(
        default="",
        description="UID of the pod whose failure was counted last, so that none is counted twice.",
    )
    device_seconds: Count = Field(
        default=0,
        description="Seconds times devices its pods have had, counted with and up to the time of usage: its turns in the queue "
        "are made of them.",
    )


class CanaryStatus(KubeModel):
    """How requests are divided while replicas of a changed spec serve beside those of the older one."""

    spec_hash: Word = Field(
        default="", description="The present spec, as the annotation llmos.dev/spec-hash of its pods has it."
    )
    traffic_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0, description="Per cent of the requests that go to its replicas; the others get the rest."
    )


class FailureStatus(KubeModel):
    """The last failure of a replica."""

    reason: Word = Field(default="", description="One CamelCase word.")
    message: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="What happened and what to do."
    )
    exit_code: Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX)] | None = Field(
        default=None, description="Exit code of the container."
    )
    time: Time | None = Field(default=None, description="When.")


class ModelWorkloadStatus(KubeModel):
    """What the operator observed and decided."""

    observed_generation: Count = Field(
        default=0, description="metadata.generation the status was computed from."
    )
    phase: Amount = Field(
        default="",
        description="Summary of the conditions for people: Pending, Loading, Running, Degraded, Asleep, Suspended, Succeeded, Failed.",
    )
    summary: StatusSummary | None = Field(default=None, description="One line for people and for columns.")
    replicas: Replicas = Field(default=0, description="Replicas that exist.")
    ready_replicas: Replicas = Field(default=0, description="Replicas that serve.")
    updated_replicas: Replicas = Field(
        default=0, description="Replicas that were made from the current spec; the others are replaced."
    )
    canary: CanaryStatus | None = Field(
        default=None, description="The canary that is under way; absent when there is none."
    )
    selector: Text = Field(default="", description="Label selector of the replicas, for autoscalers.")
    url: Text = Field(default="", description="Address of the workload inside the cluster.")
    model: ModelStatus | None = Field(default=None, description="The model as it is served.")
    load: LoadStatus | None = Field(
        default=None, description="Progress of a load; absent when nothing is being loaded."
    )
    placements: Annotated[tuple[PlacementStatus, ...], ListAtomic(), Field(max_length=1024)] = Field(
        default=(), description="Where the replicas are."
    )
    decision: DecisionStatus | None = Field(
        default=None, description="The scheduler's last decision about the workload."
    )
    queue_position: Replicas | None = Field(
        default=None,
        description="Place in the queue, from 1; beyond 16 rounded, by a sixteenth at most. Absent when not waiting.",
    )
    last_preemption: PreemptionStatus | None = Field(
        default=None, description="The last time devices were taken from the workload."
    )
    usage: UsageStatus | None = Field(
        default=None, description="What the workload has used since it was created."
    )
    activity: ActivityStatus | None = Field(
        default=None, description="Whether the workload works or is idle, and what says so."
    )
    sizing: SizingStatus | None = Field(
        default=None, description="What running the workload has taught of its memory."
    )
    ceiling: CeilingStatus | None = Field(
        default=None,
        description="What was last decided on its number of replicas for the sake of others; absent before anything was.",
    )
    run: RunStatus | None = Field(
        default=None, description="How work that ends comes along. FineTune and Batch only."
    )
    failure: FailureStatus | None = Field(default=None, description="The last failure of a replica.")
    conditions: Conditions = Field(
        default=(),
        description="Observations by type: Accepted, QuotaReserved, Scheduled, ModelCached, ModelLoaded, Available, Ready (the roll-up), "
        "Progressing, Degraded, Preempted, Suspended, Asleep, ScalingActive, Finished.",
    )

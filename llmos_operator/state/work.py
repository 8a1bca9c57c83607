"""Domain values of the demand side: workloads, queues and what has been learned of models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from llmos_operator.api.runtime.uris import model_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.conditions import Reason
    from llmos_operator.api.mig import MigProfile
    from llmos_operator.api.runtime.memory import ModelShape

WorkloadKey: TypeAlias = str  # "namespace/name"
AUTO = 0  # of maxModelLen: the scheduler chooses


class WorkloadKind(StrEnum):
    """`spec.type`."""

    INFERENCE = "Inference"
    FINE_TUNE = "FineTune"
    BATCH = "Batch"


class Sharing(StrEnum):
    """`spec.resources.sharing`: who else may use the device."""

    EXCLUSIVE = "Exclusive"
    SHARED = "Shared"
    MIG = "MIG"


class QuantizationMode(StrEnum):
    """`spec.quantization.mode`."""

    AUTO = "Auto"  # best allowed format that fits now
    NONE = "None"  # precision of the published weights
    FIXED = "Fixed"  # exactly `format`


class PreemptionPolicy(StrEnum):
    """`spec.scheduling.preemptionPolicy`, words of Kubernetes."""

    LOWER_PRIORITY = "PreemptLowerPriority"
    NEVER = "Never"


class DisruptionStep(StrEnum):
    """Steps of `spec.scheduling.disruption.order`, gentlest first."""

    SHRINK = "Shrink"
    SLEEP = "Sleep"
    CHECKPOINT = "Checkpoint"
    EVICT = "Evict"


class Placement(StrEnum):
    """`spec.scheduling.placement`."""

    BIN_PACK = "BinPack"
    SPREAD = "Spread"


DEFAULT_ORDER = (DisruptionStep.SHRINK, DisruptionStep.SLEEP, DisruptionStep.EVICT)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One label expression. `operator` is In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """Label expressions that must all hold; an empty one selects everything."""

    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimUse:
    """A PersistentVolumeClaim of its namespace that a workload names, and in which field."""

    field: str
    claim: str


@dataclass(frozen=True, slots=True)
class MountLimit:
    """Which nodes can mount a claim now, and why not others."""

    claim: str
    places: tuple[Selector, ...] = ()  # any of them; empty: every node
    why: str = ""
    one_node: bool = (
        False  # all pods that mount it have to be on one node; without places the first pod chooses
    )


@dataclass(frozen=True, slots=True)
class Toleration:
    """A pod's toleration. Empty key with Exists tolerates everything; empty effect matches all effects."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class DeviceSelector:
    """`spec.resources.selector`: which devices are acceptable."""

    products: tuple[str, ...] = ()  # any of them; a word matches a product or a part of it between dashes
    min_memory_bytes: int = 0
    min_compute_capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Quantization:
    """`spec.quantization`."""

    mode: QuantizationMode = QuantizationMode.AUTO
    format: str = ""  # only with FIXED
    allowed: tuple[str, ...] = ("bf16", "int8", "int4")
    min_bits: int = 4
    max_quality_loss_milli: int | None = None  # thousandths of a percent of perplexity; None: no limit
    kv_cache_dtype: str = "auto"
    allow_downgrade: bool = True  # allowDowngradeOnPressure


@dataclass(frozen=True, slots=True)
class Model:
    """`spec.model` without its secrets."""

    uri: str
    revision: str = "main"
    name: str = ""  # served name
    digest: str = ""
    kept: bool = False  # read from a node's copy where there is one (spec.model.cacheRef)

    @property
    def key(self) -> str:
        """Name of its copy on a node."""
        return model_key(self.uri, self.revision)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of `spec.adapters`."""

    name: str
    uri: str


@dataclass(frozen=True, slots=True)
class Topology:
    """`spec.scheduling.topology`: domain names, "" for none."""

    required: str = ""
    preferred: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What decides the memory of a FineTune. Lengths in tokens."""

    method: str  # lora | qlora | full
    rank: int  # of the adapter; 0: all weights learn
    targets: tuple[str, ...]  # layers that have an adapter; (): all linear ones
    batch_size: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What running a workload with this spec has taught of its memory, bytes of each device; 0: nothing."""

    out_of_memory: int = 0  # the largest reservation with which it ran out of memory
    needed: int = 0  # what it was seen to need, where that is far less than resources.memory
    spec_hash: str = ""  # `Workload.template_hash` it was learned with


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The scheduler's last word on how many replicas an elastic workload may have; of two words the newer one counts."""

    replicas: int | None  # None: as many as are wanted, again
    at: float  # epoch seconds, whole ones; later with every word
    beneficiary: WorkloadKey = ""  # for whom a replica was given up last


@dataclass(frozen=True, slots=True)
class Gate:
    """What somebody beside the operator says on whether a workload may run, and where."""

    closed: bool  # no pod of it may be there
    held: bool = False  # not known now: what runs stays, nothing new starts
    message: str = ""  # what is waited for; "" where it is open
    node_selector: tuple[Requirement, ...] = ()
    tolerations: tuple[Toleration, ...] = ()

    @property
    def open(self) -> bool:
        """Whether it may run."""
        return not self.closed and not self.held


@dataclass(frozen=True, slots=True)
class Workload:
    """An accepted ModelWorkload as the scheduler sees it. `replicas` is what is wanted now."""

    key: WorkloadKey
    uid: str
    model: Model
    kind: WorkloadKind = WorkloadKind.INFERENCE
    generation: int = 1
    created_at: float = 0.0  # epoch seconds
    suspended: bool = False
    finished: bool = False  # condition Finished is True
    ttl_after_finished: int | None = None  # seconds after which it is deleted then; None: never
    deleting: bool = False
    queue: str = ""  # "" is the default queue
    engine: str = "builtin"
    apis: tuple[str, ...] = ()  # parts of the serving API; empty: what the model can do
    quantization: Quantization = field(default_factory=Quantization)
    accelerators: int = 1  # of one pod, on one node; 0: CPU only
    stages: int = (
        1  # pods one copy of the model is spread over, by pipeline stages or by what shares each layer
    )
    pipeline: int = 1  # stages of consecutive layers a copy has, over all its pods
    copies: int = 1  # copies that work in step (data parallel)
    memory_bytes: int | None = None  # override of the estimate, per device
    selector: DeviceSelector = field(default_factory=DeviceSelector)
    sharing: Sharing = Sharing.EXCLUSIVE
    mig_profile: MigProfile | None = None  # MIG: the least profile; None: any
    compute_milli: int | None = None  # Shared: compute of each device; None: the policy's default
    max_model_len: int = AUTO
    max_num_seqs: int = 64
    adapters: tuple[Adapter, ...] = ()
    max_adapters: int = 0  # that memory is kept for
    adapter_rank: int = 0
    replicas: int = 1
    min_replicas: int = 1  # replicas above it are elastic: they are given up first
    elastic: bool = False  # it may do with fewer replicas than are wanted, down to `min_replicas`
    kueue_queue: str = ""  # LocalQueue of Kueue that its label names; "": none
    kueue_priority: str = ""  # WorkloadPriorityClass of Kueue that its label names
    gate: Gate | None = None  # with Kueue; None: nobody is asked
    ceiling: Ceiling | None = None  # on its replicas, if there ever was one
    wanted: int | None = None  # replicas that would be wanted without `ceiling`; None: it is not in force
    together: int = 1  # replicas that start in one plan or not at all, and end together when fewer are left
    max_surge: int = 0  # spec.rollout.maxSurge of a rolling update; see `surge`
    canary_percent: int = (
        0  # spec.rollout.canaryTrafficPercent of a rolling update, 0 where that is 100; see `canary`
    )
    priority_class: str = ""
    preemption: PreemptionPolicy = PreemptionPolicy.LOWER_PRIORITY
    disruption_order: tuple[DisruptionStep, ...] = DEFAULT_ORDER
    min_runtime: float | None = None  # seconds; None: the policy's
    max_runtime: float | None = (
        None  # seconds after its first replica was bound at which it is ended; None: never
    )
    placement: Placement = Placement.BIN_PACK
    topology: Topology = field(default_factory=Topology)
    node_selector: Selector = field(default_factory=Selector)
    node_affinity: tuple[Selector, ...] = ()  # required terms, any of them; empty: none
    tolerations: tuple[Toleration, ...] = ()
    claims: tuple[ClaimUse, ...] = ()  # its pods mount
    mounts: tuple[MountLimit, ...] = ()  # of those that cannot be mounted everywhere, as they are now
    cpu_milli: int = 0  # requests of podTemplate's app containers, without the runtime's own
    host_memory_bytes: int = 0  # same
    expected_seconds: float | None = None  # expected service time, where known
    checkpoint_seconds: float | None = None  # FineTune, Batch: what a preemption can lose at most; None: all
    training: TrainingSpec | None = None  # FineTune
    saved_at: float | None = None  # FineTune, Batch: epoch seconds at which it last saved, from status.run
    backoff_limit: int = 3  # FineTune, Batch: failures of the program that are followed by a new try
    completion_window: float | None = None  # Batch: seconds after its creation within which it is to end
    idle_since: float | None = None  # epoch seconds, from status.activity; None: it works, or nobody can tell
    gpu_seconds: int = 0  # status.run: service received so far, seconds times devices; Inference: 0
    template_hash: str = ""  # changes when a pod would have to be rebuilt
    learned: Learned = field(default_factory=Learned)
    spec: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # raw, for manifests

    @property
    def namespace(self) -> str:
        """Namespace part of the key."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """Name part of the key."""
        return self.key.partition("/")[2]

    def gated(self, gate: Gate) -> Workload:
        """Return it as a gate lets it be: suspended, or on fewer nodes."""
        places = Selector((*self.node_selector.requirements, *gate.node_selector))
        return replace(
            self,
            gate=gate,
            suspended=self.suspended or gate.closed,
            node_selector=places,
            tolerations=(*self.tolerations, *gate.tolerations),
        )

    @property
    def surge(self) -> int:
        """Replicas it may have above those wanted while its spec changes; 0 where more would break what it promises.

        Replicas of several pods, or that start together, are replaced in place; what Kueue admitted, and the ceiling of a
        workload that gave up replicas for others, count no more than what is wanted.
        """
        if not self._goes_beside or self.wanted is not None:
            return 0
        return max(self.max_surge, 1) if self.canary_percent else self.max_surge

    @property
    def canary(self) -> int:
        """Per cent of the requests for a changed spec while replicas of the older one are kept; 0: they are replaced."""
        return self.canary_percent if self._goes_beside else 0

    @property
    def _goes_beside(self) -> bool:
        alone = self.members == 1 and self.together <= 1 and not self.kueue_queue
        return alone and self.kind is WorkloadKind.INFERENCE

    @property
    def members(self) -> int:
        """Pods of one replica: they start together, and one of them alone is of no use."""
        return self.stages * self.copies


@dataclass(frozen=True, slots=True)
class Hold:
    """Why the operator does not want new replicas of a workload bound before `until` (inf: until the spec changes)."""

    reason: Reason  # BACK_OFF after a crash, or the permanent failure of a load
    message: str
    until: float  # epoch seconds
    generation: int  # holds only this generation of the spec


@dataclass(frozen=True, slots=True)
class Queue:
    """A WorkloadQueue. None means "not set": without nominal and without parent a queue is unlimited."""

    name: str
    parent: str = ""
    weight: int = 1
    nominal_gpu_milli: int | None = None
    nominal_memory_bytes: int | None = None  # device memory
    borrowing_gpu_milli: int | None = None  # None: as much as the parent can lend
    lending_gpu_milli: int | None = None  # None: all that is unused
    borrowing_memory_bytes: int | None = None
    lending_memory_bytes: int | None = None
    namespaces: Selector = field(default_factory=Selector)
    priority_ceiling: int | None = None
    preempt_within: bool = True  # lower priority in the same queue
    reclaim: str = "Any"  # Never | LowerPriority | Any: what it may take back from borrowers
    half_life: float = 0.0  # seconds of usage decay; 0: no memory of past use


@dataclass(frozen=True, slots=True)
class FormatProfile:
    """What is known of one model at one format. None means not measured."""

    format: str
    estimated_peak_bytes: int | None = None  # what the memory model said for the run that was measured
    measured_peak_bytes: int | None = None  # per device
    oom_floor_bytes: int = 0  # the largest reservation that ran out of memory
    quality_loss_milli: int | None = None  # thousandths of a percent of perplexity
    tokens_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class LoadTime:
    """How long a load takes on a class of nodes, in milliseconds."""

    node_class: str  # product of the devices, or "cpu"
    path: str  # Cold | Warm | Hot
    format: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Draw:
    """What a model at work was measured to draw on a device of its own."""

    product: str
    format: str
    milliwatts: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A ModelProfile: named by `profile_name(uri, revision)`. No shape: not inspected yet."""

    name: str
    uri: str = ""
    revision: str = "main"
    digest: str = ""
    shape: ModelShape | None = None
    base_bytes: int | None = None  # measured R0
    formats: Mapping[str, FormatProfile] = field(default_factory=dict)
    load_times: tuple[LoadTime, ...] = ()
    draws: tuple[Draw, ...] = ()

"""Settings of `llmos operator`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmos_operator import __version__
from llmos_operator.api import names
from llmos_operator.settings.base import Group, Port, ProcessSettings, Seconds, TracingSettings

_IMAGES = "ghcr.io/llmos-dev"


class LeaseSettings(Group):
    """Leader election. A leader stops writing `renewDeadline` after its last confirmed renewal."""

    name: str = names.LEASE_NAME
    """Name of the Lease object."""
    duration: Seconds = 15.0
    """Seconds after which another replica may take a lease that was not renewed."""
    renew_deadline: Seconds = 10.0
    """Seconds without a confirmed renewal after which the leader stops writing; below duration."""
    retry: Seconds = 2.0
    """Seconds between renewals, and between tries of a waiting replica."""


class SourceSettings(Group):
    """Where models may come from."""

    hub_endpoint: str = "https://huggingface.co"
    """Hub for hf:// models; the only address contacted for them."""
    hub_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")
    """Hosts, with their subdomains, the hub may redirect file requests to."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names https:// models may come from; empty allows none."""
    allow_file: bool = False
    """Whether file:// models are accepted: only where every node is trusted with every workload."""
    timeout: Seconds = 10.0
    """Seconds one metadata request may take."""


class RuntimeSettings(Group):
    """How runtime pods are built."""

    image: str = f"{_IMAGES}/llmos-runtime:{__version__}"
    """Image of the built-in engine."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of runtime containers."""
    cache_host_path: str = ""
    """Directory of the node that caches models; empty keeps the cache inside the pod."""
    model_cache_path: str = ""
    """Directory of the node in which agents keep the copies of ModelCaches; empty: pods are given none."""
    base_memory: str = "450Mi"
    """Memory of a runtime without a model (R0 of the memory model), per device."""
    cpu_request: str = "500m"
    """CPU request of a runtime container."""
    memory_request: str = "512Mi"
    """Host memory request of a runtime container whose model is on a GPU; CPU-only ones ask for their estimate."""
    vllm_base_memory: str = "2Gi"
    """Memory of engine vllm without a model, per device: CUDA context, compiled graphs, activations of its batches."""
    vllm_memory_request: str = "4Gi"
    """Host memory request of a replica of engine vllm with devices, its runtime container included."""
    runtime_class_name: str = ""
    """RuntimeClass of pods with devices; empty for the node's default."""
    run_as_user: int = Field(default=65532, ge=1)
    """User id of runtime containers; 0 is refused."""
    service_account: str = "default"
    """ServiceAccount of runtime pods; its token is not mounted."""
    env: dict[str, str] = Field(default={})
    """Further environment of every runtime container."""
    control_secret: str = "llmos-runtime-control"  # noqa: S105 - a Secret's name
    """Name of the Secret in each namespace that holds the runtime's control token."""
    startup_seconds: Seconds = 1800.0
    """Longest time a model may take to load before its container is restarted."""


class PriceSettings(Group):
    """Prices of what is expected to be asked for; placement keeps room for it."""

    enabled: bool = True
    """Whether nodes are chosen by what a placement destroys of the room for expected work; false: best fit always."""
    interval: Seconds = 10.0
    """Seconds between looks at the cluster; prices are made again when it has changed."""
    max_age: Seconds = 300.0
    """Age in seconds beyond which prices are not used and best fit decides."""
    solve_budget: Seconds = 20.0
    """Longest time one solution may take; the former prices stay in use until they are too old."""
    least_requests: int = Field(default=20, ge=1)
    """Replicas that must have been asked for before prices are made; until then best fit decides."""


class ReservationSettings(Group):
    """Places that are kept for work that cannot start yet; smaller work may use them meanwhile."""

    most: int = Field(default=1, ge=0, le=100)
    """Places that are kept at once for each tree of queues and choice of devices, for the first in queue order; 0 keeps none."""
    after: Seconds = 3600.0
    """Seconds since its creation after which devices gather for work though nobody knows when its place will be free, and after which only declared ends (maxRuntime) let others use its place."""


class ScaleUpSettings(Group):
    """Nodes for work the cluster is too small for: pods that show cluster autoscalers what is needed."""

    enabled: bool = False
    """Whether placeholder pods are made. Only with something that adds nodes for pods that are unschedulable: Cluster Autoscaler, Karpenter."""
    after: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """Seconds for which work must have lacked capacity before nodes are asked for."""
    most: int = Field(default=50, ge=1, le=1000)
    """Placeholder pods at once; what is first in its queue comes first."""


class SchedulingSettings(Group):
    """The decision loop."""

    resync: Seconds = 30.0
    """Seconds between full comparisons of the cache with a fresh list."""
    quiet: Seconds = 0.05
    """A cycle starts when no event came for this long."""
    max_batch: Seconds = 1.0
    """A cycle starts at the latest this long after the first event."""
    plan_budget: Seconds = 0.5
    """Longest time one planning pass may take, without its searches for room to make."""
    search_budget: Seconds = 5.0
    """Longest time one planning pass may search whom to displace."""
    writes: int = Field(default=16, ge=1, le=256)
    """API writes in flight at most."""
    telemetry_interval: Seconds = 1.0
    """Expected seconds between telemetry batches of a node; three missed ones make it stale."""
    record_folder: str = ""
    """Folder in which the last cycles are kept as files for `llmos simulate --snapshot`; empty keeps none."""
    recorded_cycles: int = Field(default=20, ge=1, le=10_000)
    """Cycles that are kept in recordFolder."""
    require_telemetry: bool = False
    """Refuse shared placement on devices without fresh telemetry even before a first sample."""
    min_runtime: Seconds = 120.0
    """Seconds a workload is safe from preemption after its start, unless its spec says otherwise."""
    shrink_timeout: Seconds = 20.0
    """Seconds within which a replica that was asked to give up KV cache must be seen to have; else it gets all of it back."""
    requantise_timeout: Seconds = 120.0
    """Seconds within which a replica that was asked to serve at a narrower format must be seen to; else it gets all of its memory back."""
    sleep_timeout: Seconds = 30.0
    """Seconds within which a replica that was asked to sleep must be seen to; else it stays awake."""
    restore_after: Seconds = 60.0
    """Seconds for which a replica that gave up KV cache does with less at least, before it gets back what is free."""
    startup_wait: float = Field(default=300.0, ge=0, le=86_400)
    """Seconds after its bind for which a replica that loads, and whose need of memory is not known, keeps others from starting on its shared device at most; 0: nobody waits for it."""
    gang_start: Seconds = 300.0
    """Seconds within which every container of a replica of several pods must run; else all are given back and tried again."""
    gang_grace: Seconds = 15.0
    """Seconds for which a pod of a replica of several may be missing, or a replica of scheduling.minReplicas, before all are given back."""
    topology_labels: dict[str, str] = Field(
        default={
            "rack": names.LABEL_RACK,
            "block": "topology.llmos.dev/block",
            "zone": "topology.kubernetes.io/zone",
        }
    )
    """Node label that names the domain of each topology level above a node."""
    interference_weight: float = Field(default=1.0, ge=0, le=100)
    """Weight of the speed that is lost on shared devices to neighbours, by what was learned of them, against room for expected work; 0: it does not count."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty serves all."""
    prices: PriceSettings = PriceSettings()
    """Prices for placement."""
    reservation: ReservationSettings = ReservationSettings()
    """Places that are kept for large work."""
    scale_up: ScaleUpSettings = ScaleUpSettings()
    """Asking for nodes."""
    migration_budget: float = Field(default=0.01, ge=0, le=1)
    """Part of all placed pods that may be moved within an hour so that others can start, at least one; 0 moves nobody."""


class KueueSettings(Group):
    """Workloads that wait in queues of Kueue."""

    enabled: bool = False
    """Whether ModelWorkloads with the label kueue.x-k8s.io/queue-name run only while Kueue (0.15 or later) admits them."""


class ResourceClaimSettings(Group):
    """Devices of a DRA driver (ResourceSlices of gpu.nvidia.com): pods that take whole ones get ResourceClaims for them."""

    enabled: bool = False
    """Whether the operator writes ResourceClaims, allocated to the devices it decided, on nodes whose devices a DRA driver publishes and no device plugin offers. Nothing shares devices there. Needs Kubernetes 1.34 or later."""
    device_class: str = Field(default="gpu.nvidia.com", min_length=1)
    """DeviceClass these claims name for whole GPUs."""
    mig_device_class: str = Field(default="mig.nvidia.com", min_length=1)
    """DeviceClass they name for MIG instances."""


class HealthSettings(Group):
    """What is done about sick devices beyond placing nothing new on them."""

    mode: Literal["Off", "DryRun", "Act"] = "DryRun"
    """Off: nothing is said or done to nodes and devices; DryRun: it is said; Act: nodes are cordoned and drained, devices quarantined, the reset Job is run. Replicas leave Unhealthy devices in each, within the circuit breaker."""
    share: float = Field(default=0.10, gt=0, le=1)
    """Circuit breaker: part of the nodes with devices, at least one, that may be acted on within window."""
    window: Seconds = 600.0
    """Circuit breaker: seconds."""
    clean: Seconds = 300.0
    """Seconds a treated device must be healthy without a break before it takes work again; doubled, up to a day, each time it falls ill again within a day of its release."""
    resets: int = Field(default=3, ge=0, le=100)
    """Times within a day the reset Job is run for one device or node; then it waits for a person."""
    reset_job: dict[str, Any] = Field(default={})
    """Spec of a Job (batch/v1) that resets a drained device or reboots a drained node; empty: a person does. It runs in the installation's namespace, on the node, with LLMOS_NODE, LLMOS_DEVICE, LLMOS_ACTION and LLMOS_REASON set."""


class HolderSettings(Group):
    """Holder pods: each takes one device from a node's device plugin for shared work, so that nobody else is given it."""

    image: str = f"{_IMAGES}/llmos-operator:{__version__}"
    """The operator's image; a program of one line in it waits to be ended."""
    pause_image: str = ""
    """Image to use instead, whose entry point waits to be ended, like registry.k8s.io/pause:3.10."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of holder pods."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets with registry credentials, in the installation's namespace."""
    priority_class_name: str = "system-cluster-critical"
    """PriorityClass of holder pods; with a lower one kube-scheduler may take a device from under shared work for a pod of its own. Empty: the cluster's default."""
    rest: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """Seconds after the end of the last shared work on a device until its holder pod goes; at once where work waits for whole devices."""
    owner: str = ""
    """Deployment, in the installation's namespace, that owns holder pods: they go when it is deleted. Empty: nobody owns them."""


class PartitioningSettings(Group):
    """Cutting GPUs into the MIG instances that work waits for, through NVIDIA's mig-manager."""

    enabled: bool = False
    """Whether nodes of which nobody uses any GPU are labelled nvidia.com/mig.config for work that waits; only those on which mig-manager has succeeded before."""
    layouts: dict[str, dict[str, int]] = Field(default={})
    """Further configurations that mig-manager knows, by name, as instances of each GPU by profile, such as {two-sizes: {3g.40gb: 1, 1g.10gb: 4}}. Its own (all-1g.10gb and so on, all-balanced) are known."""
    rest: Seconds = 900.0
    """Seconds after which a node may be cut again."""
    patience: Seconds = 300.0
    """Seconds in which mig-manager must have begun; then the node is labelled failed and used as it is."""


class ConsoleSettings(Group):
    """The read-only page for people. It has no sign-in: it listens on loopback, and kubectl port-forward leads to it."""

    enabled: bool = False
    """Whether the page is served."""
    host: str = ""
    """Loopback address to listen on; empty takes the process's own where that is loopback, else 127.0.0.1. Others are refused."""
    port: Port = names.PORT_CONSOLE
    """Port of the page; 0 picks a free one."""


class OperatorSettings(ProcessSettings):
    """`llmos operator`."""

    ingest_port: Port = names.PORT_INGEST
    """Port for telemetry from agents and demand from gateways; 0 picks a free one."""
    console: ConsoleSettings = ConsoleSettings()
    """Page for people."""
    tracing: TracingSettings = TracingSettings()
    """Spans of placements; runtimes are told the same."""
    lease: LeaseSettings = LeaseSettings()
    """Leader election."""
    sources: SourceSettings = SourceSettings()
    """Model sources."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Runtime pods."""
    scheduling: SchedulingSettings = SchedulingSettings()
    """Decision loop."""
    health: HealthSettings = HealthSettings()
    """Sick devices."""
    holders: HolderSettings = HolderSettings()
    """Holder pods, on nodes whose device plugin offers nvidia.com/gpu and whose agent is told by the kubelet who has which."""
    partitioning: PartitioningSettings = PartitioningSettings()
    """MIG instances."""
    kueue: KueueSettings = KueueSettings()
    """Queues of Kueue."""
    resource_claims: ResourceClaimSettings = ResourceClaimSettings()
    """Devices of a DRA driver."""
    profile_retention: Annotated[float, Field(ge=0, le=315_360_000)] = 604_800.0
    """Seconds for which a ModelProfile is kept that no workload names; 0 for ever, as with scheduling.namespaces set."""
    master_key_file: str = ""
    """File whose content keys the control tokens; empty makes a random key, so runtimes restart control after a restart."""
    agent_account: str = "llmos-agent"
    """ServiceAccount agents authenticate as, in the installation's namespace."""
    gateway_account: str = "llmos-gateway"
    """ServiceAccount gateways authenticate as, in the installation's namespace."""
    url_template: str = "http://{name}.{namespace}.svc"
    """How status.url is written; {name} and {namespace} are replaced."""

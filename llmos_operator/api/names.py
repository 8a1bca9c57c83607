"""Names the API promises: group, labels, annotations, field managers, ports, environment.

One place, so that a label is spelled once. Anything here is an interface: change it only with a CHANGELOG entry.
"""

from __future__ import annotations

import hashlib

GROUP = "llmos.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# -- labels on pods and services of a workload
LABEL_WORKLOAD = "llmos.dev/workload"  # name of the ModelWorkload, cut to 63 characters
LABEL_WORKLOAD_UID = "llmos.dev/workload-uid"
LABEL_ORDINAL = "llmos.dev/ordinal"  # replica ordinal, "0"-based
LABEL_MEMBER = "llmos.dev/member"  # rank of a pod in a replica of several, "0"-based
LABEL_ROLE = "llmos.dev/role"  # "runtime": serves | "worker": member of rank 1 and up | "holder"
ROLE_HOLDER = "holder"  # takes a device from the device plugin for shared work, in the operator's namespace
# On the operator's own pod: "true" while it leads. The chart's Service for telemetry and demand selects it, so that a
# waiting replica can be Ready (a Deployment whose standby never is Ready never finishes its rollout).
LABEL_LEADER = "llmos.dev/leader"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "llmos-operator"

# -- annotations on pods: the ledger lives in API objects and is rebuilt from these after a restart
ANNOTATION_CLAIM = "llmos.dev/claim"  # JSON of the claim, see state.convert
ANNOTATION_SPEC_HASH = "llmos.dev/spec-hash"  # hash of what the pod was built from

# -- annotation on ResourceClaims of the operator: the pod each is for; and what that pod calls the claim
ANNOTATION_CLAIM_POD = "llmos.dev/pod"
POD_CLAIM = "llmos-devices"

# -- annotations on GPUNodes: the agent's memory, and a person's word that a device is repaired (its UUID, or "*")
ANNOTATION_HEALTH_MEMORY = "llmos.dev/health-memory"
ANNOTATION_HEALTH_CLEAR = "llmos.dev/health-clear"

# -- annotations on nodes without GPUs: devices the agent simulates, and faults it shall show
ANNOTATION_SIMULATED_GPUS = "llmos.dev/simulated-gpus"
ANNOTATION_SIMULATED_FAULTS = "llmos.dev/simulated-faults"

# -- annotation on nodes: when the operator asked for what GPUs to be cut into
ANNOTATION_MIG_RECUT = "llmos.dev/mig-recut"

# -- labels on nodes
LABEL_GPU_PRODUCT = "nvidia.com/gpu.product"
LABEL_GPU_MEMORY_MIB = "nvidia.com/gpu.memory"
LABEL_MIG_STRATEGY = "nvidia.com/mig.strategy"  # none, single or mixed; of GPU feature discovery
# What GPUs are cut into and how far that is; of mig-manager.
LABEL_MIG_CONFIG = "nvidia.com/mig.config"
LABEL_MIG_STATE = "nvidia.com/mig.config.state"
LABEL_SIMULATED = "llmos.dev/simulated"  # "true" on nodes of the local cluster
LABEL_RACK = "topology.llmos.dev/rack"
# Whole watts: what the devices of a node may draw together, and those of all nodes of its rack.
LABEL_POWER_BUDGET = "llmos.dev/power-budget"
LABEL_RACK_POWER_BUDGET = "llmos.dev/rack-power-budget"
RESOURCE_GPU = "nvidia.com/gpu"
# Bytes of device memory: what shared work asks of Kueue's quota. No node offers it, no pod asks for it.
RESOURCE_GPU_MEMORY = "llmos.dev/gpu-memory"

# -- labels of Kueue on a ModelWorkload: its LocalQueue, and the WorkloadPriorityClass it waits with
LABEL_KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
ANNOTATION_ASKED = "llmos.dev/asked"  # on a Workload of Kueue: hash of what one pod asks for

# -- field managers, one per writer
MANAGER_OPERATOR = "llmos-operator"
MANAGER_STATUS = "llmos-operator-status"
MANAGER_CARE = "llmos-operator-care"
MANAGER_AGENT = "llmos-agent"

LEASE_NAME = "llmos-operator"
DEFAULT_QUEUE = "default"
SYSTEM_NAMESPACE = "llmos-system"

# -- routes whose bodies hold files of sound
AUDIO_PATHS = "/v1/audio/"

# -- ports
PORT_SERVING = 8000  # runtime: OpenAI-style API (spec.serving.port overrides)
PORT_CONTROL = 8001  # runtime: control API for the operator, bearer token
PORT_ENGINE = (
    8002  # engine vllm on simulated nodes, whose pods share a file system; elsewhere it has a socket instead
)
PORT_HEALTH = 8080  # operator, agent, gateway: /livez /readyz /metrics
PORT_INGEST = 8090  # operator: telemetry and demand from agents and gateways, bearer ServiceAccount token
PORT_CONSOLE = 8086  # operator: the read-only page for people, on loopback only
PORT_GATEWAY = 8000
PORT_RENDEZVOUS = 29500  # where the members of a gang meet: the default of torch.distributed

# -- environment of the runtime container, written by manifests.pod, read by runtime.settings
ENV_MODEL_URI = "LLMOS_MODEL_URI"
ENV_MODEL_NAME = "LLMOS_MODEL_NAME"  # served name
ENV_MODEL_REVISION = "LLMOS_MODEL_REVISION"
ENV_MODEL_DIGEST = "LLMOS_MODEL_DIGEST"  # "" or "sha256:…": refuse anything else
ENV_FORMAT = "LLMOS_FORMAT"  # precision the scheduler chose: bf16 | int8 | int4 | …
ENV_FORMATS = (
    "LLMOS_FORMATS"  # comma separated: what the workload allows a running model to change to; "": any
)
ENV_MAX_QUALITY_LOSS = "LLMOS_MAX_QUALITY_LOSS_MILLI"  # of perplexity, thousandths of a percent
ENV_KV_DTYPE = "LLMOS_KV_CACHE_DTYPE"
ENV_MEMORY_LIMIT = "LLMOS_MEMORY_LIMIT_BYTES"  # reserved per device, in bytes
ENV_MAX_MODEL_LEN = "LLMOS_MAX_MODEL_LEN"  # tokens; "auto" or a number
ENV_MAX_NUM_SEQS = "LLMOS_MAX_NUM_SEQS"
ENV_ADAPTERS = "LLMOS_ADAPTERS"  # JSON: [{"name": …, "uri": …}], LoRA adapters to have from the start
ENV_MAX_ADAPTERS = "LLMOS_MAX_ADAPTERS"  # adapters that memory is kept for
ENV_MAX_ADAPTER_RANK = "LLMOS_MAX_ADAPTER_RANK"
ENV_TENSOR_PARALLEL = "LLMOS_TENSOR_PARALLEL"  # devices of the pod that share each layer of the model
ENV_PIPELINE_PARALLEL = "LLMOS_PIPELINE_PARALLEL"  # stages of consecutive layers, of all pods; each a device
ENV_HOST = "LLMOS_HOST"  # address to bind
ENV_PORT = "LLMOS_PORT"
ENV_CONTROL_PORT = "LLMOS_CONTROL_PORT"
ENV_CONTROL_TOKEN = "LLMOS_CONTROL_TOKEN"  # noqa: S105 - the variable's name, not a secret
ENV_API_KEYS = "LLMOS_API_KEYS"  # comma or newline separated, from serving.apiKeySecretRef key "keys"
ENV_APIS = "LLMOS_APIS"  # comma separated: chat,completions,embeddings,transcriptions,classify,score
ENV_CACHE_DIR = "LLMOS_CACHE_DIR"
ENV_KEPT_DIR = "LLMOS_KEPT_DIR"  # where the copy is mounted that a ModelCache keeps on the node
ENV_REGISTRY_USERNAME = "LLMOS_REGISTRY_USERNAME"
ENV_REGISTRY_PASSWORD = "LLMOS_REGISTRY_PASSWORD"  # noqa: S105 - a variable's name
ENV_GRACE_SECONDS = "LLMOS_GRACE_SECONDS"  # terminationGracePeriodSeconds of the pod
ENV_JOB = "LLMOS_JOB"  # JSON of spec.batch or spec.fineTune, for the programs that run them
ENV_VOLUMES_ROOT = "LLMOS_VOLUMES_ROOT"  # folder the claims of data URIs are mounted in; see api.runtime.data
ENV_TERMINATION_LOG = (
    "LLMOS_TERMINATION_LOG"  # file of the termination message, where it is not the kubelet's default
)
ENV_ENGINE = "LLMOS_ENGINE"  # "": the runtime's own engine | vllm: one in the container beside it
ENV_ENGINE_DIR = "LLMOS_ENGINE_DIR"  # folder shared with that container: its order to start, its socket
ENV_ENGINE_URL = "LLMOS_ENGINE_URL"  # where it listens; "": on the socket in that folder
ENV_ENGINE_SLEEPS = "LLMOS_ENGINE_SLEEPS"  # "true" where it was started so that it can sleep
ENV_DEVICES = "NVIDIA_VISIBLE_DEVICES"  # comma separated device UUIDs; "void" for CPU only
ENV_TRACE_ENDPOINT = "LLMOS_TRACING__ENDPOINT"  # of an OTLP receiver; "": no spans
ENV_TRACE_RATIO = "LLMOS_TRACING__SAMPLE_RATIO"
ENV_TRACEPARENT = "TRACEPARENT"  # the placement's span, as the header traceparent writes one
ENV_POD_UID = "POD_UID"
ENV_POD_NAME = "POD_NAME"
ENV_POD_NAMESPACE = "POD_NAMESPACE"
ENV_POD_IP = "POD_IP"
ENV_NODE_NAME = "NODE_NAME"
ENV_LOCAL_CLUSTER = "LLMOS_LOCAL_CLUSTER"  # state directory of the local cluster that a process belongs to: inherited by all it starts

_NAME_LIMIT = 63


def pod_name(
    workload: str, uid: str, ordinal: int, incarnation: str = "", *, member: int | None = None
) -> str:
    """Return the deterministic pod name of one replica of a workload, or of one member of a replica of several pods.

    The name is derived from UID and ordinal, so a second create of the same replica collides (HTTP 409) instead of
    doubling it. ``incarnation`` distinguishes generations of a template (a spec hash), at most 5 characters.
    """
    digest = hashlib.sha256(f"{uid}/{incarnation}".encode()).hexdigest()[:8]
    suffix = f"-{digest}-{ordinal}" if member is None else f"-{digest}-{ordinal}-{member}"
    return workload[: _NAME_LIMIT - len(suffix)].rstrip("-.") + suffix


def holder_name(node: str, slot: int) -> str:
    """Return the name of one of the holder pods of a node, counted from 0."""
    suffix = f"-{hashlib.sha256(node.encode()).hexdigest()[:8]}-{slot}"
    return f"llmos-holder-{node}"[: _NAME_LIMIT - len(suffix)].rstrip("-.").replace(".", "-") + suffix


def resource_claim_name(pod: str, place: str) -> str:
    """Return the name of the ResourceClaim of a pod; ``place`` tells its binds apart: node, devices and time."""
    suffix = f"-{hashlib.sha256(place.encode()).hexdigest()[:10]}"
    return pod[: _NAME_LIMIT - len(suffix)].rstrip("-.") + suffix


def gang_service(workload: str, uid: str) -> str:
    """Return the name of the headless Service behind the names of a workload's members."""
    suffix = "-" + hashlib.sha256(f"{uid}/".encode()).hexdigest()[:8]
    return workload[: _NAME_LIMIT - len(suffix)].rstrip("-.") + suffix


def label_value(text: str) -> str:
    """Return ``text`` cut to a legal label value (63 characters, alphanumeric at both ends)."""
    return text[:_NAME_LIMIT].strip("-._")

"""What a CRD says of each kind beyond its schema: names, scope, columns of `kubectl get`, subresources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.v1alpha1.gpunode import GPUNode
from llmos_operator.api.v1alpha1.modelcache import ModelCache
from llmos_operator.api.v1alpha1.modelprofile import ModelProfile
from llmos_operator.api.v1alpha1.modelworkload import ModelWorkload
from llmos_operator.api.v1alpha1.workloadqueue import WorkloadQueue

if TYPE_CHECKING:
    from llmos_operator.api.schema import KubeModel


@dataclass(frozen=True, slots=True)
class Column:
    """One column of ``kubectl get``; wide ones show with ``-o wide`` only."""

    name: str
    path: str
    description: str
    type: str = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """What a CRD says of a kind beyond its schema."""

    model: type[KubeModel]
    plural: str
    short: str
    columns: tuple[Column, ...]
    namespaced: bool = False
    scale: bool = False


_AGE = Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date")


def _ready(kind: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{kind}'


KINDS = (
    Kind(
        ModelWorkload,
        "modelworkloads",
        "mw",
        (
            Column("Type", ".spec.type", "Inference, FineTune or Batch."),
            Column("Model", ".spec.model.uri", "Where the model comes from."),
            Column("Quant", ".status.model.quantization", "Precision of the weights."),
            Column("Ready", ".status.summary.ready", "Ready and wanted replicas."),
            Column("Phase", ".status.phase", "Summary of the conditions."),
            Column("Reason", _ready("reason"), "Why it is ready or not."),
            _AGE,
            Column("Priority", ".status.summary.priority", "Priority in the queue.", wide=True),
            Column("Queue", ".status.summary.queue", "WorkloadQueue it is in.", wide=True),
            Column("Node", ".status.summary.nodes", "Nodes of the replicas.", wide=True),
            Column("GPU", ".status.summary.devices", "Devices of the replicas.", wide=True),
            Column("Memory", ".status.summary.memory", "Memory reserved on each device.", wide=True),
            Column("URL", ".status.url", "Address inside the cluster.", wide=True),
        ),
        namespaced=True,
        scale=True,
    ),
    Kind(
        WorkloadQueue,
        "workloadqueues",
        "wq",
        (
            Column("Parent", ".spec.parent", "Queue it is a part of."),
            Column("Weight", ".spec.weight", "Share relative to the queues beside it.", "integer"),
            Column("Nominal", ".spec.nominal.gpus", "Devices it may use at any time.", "integer"),
            Column("Used", ".status.usage.gpus", "Devices in use."),
            Column("Pending", ".status.pending", "Workloads that wait.", "integer"),
            Column("Admitted", ".status.admitted", "Workloads that have quota.", "integer"),
            Column("Ready", _ready("status"), "Whether it can be used."),
            _AGE,
            Column("Memory", ".status.usage.memory", "Device memory in use.", wide=True),
            Column("Borrowed", ".status.borrowed.gpus", "Devices beyond nominal.", wide=True),
            Column("Ceiling", ".spec.priorityCeiling", "Highest priority.", "integer", wide=True),
        ),
    ),
    Kind(
        GPUNode,
        "gpunodes",
        "gn",
        (
            Column("Mode", ".status.mode", "How the agent reads devices."),
            Column("Driver", ".status.driver", "Version of the device driver."),
            Column("Product", ".status.devices[0].product", "Product of the first device."),
            Column("Memory", ".status.devices[0].memory", "Memory of the first device."),
            Column("Health", ".status.devices[0].health.verdict", "Verdict on the first device."),
            _AGE,
        ),
    ),
    Kind(
        ModelCache,
        "modelcaches",
        "mc",
        (
            Column("Model", ".spec.uri", "Model that is kept."),
            Column("Revision", ".spec.revision", "Revision of it."),
            Column("Available", ".status.copies.available", "Nodes with a copy.", "integer"),
            Column("Total", ".status.copies.total", "Nodes that should have one.", "integer"),
            Column("Reason", _ready("reason"), "Why it is ready or not."),
            _AGE,
        ),
    ),
    Kind(
        ModelProfile,
        "modelprofiles",
        "mp",
        (
            Column("Model", ".spec.uri", "Model the profile is about."),
            Column("Revision", ".spec.revision", "Revision of it."),
            Column("Architecture", ".status.shape.architecture", "Architecture of the model."),
            Column("Source", ".status.sourceFormat", "Precision it was published in."),
            Column("Reason", _ready("reason"), "Why it is ready or not."),
            _AGE,
        ),
    ),
)

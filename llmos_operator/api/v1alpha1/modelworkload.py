"""ModelWorkload (`mw`): a model to serve, to train or to run over a file of requests."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.meta import ObjectMeta
from llmos_operator.api.names import API_VERSION
from llmos_operator.api.schema import KubeModel, ListMap, Rule
from llmos_operator.api.v1alpha1.workload_jobs import Batch, FineTune
from llmos_operator.api.v1alpha1.workload_model import (
    Adapter,
    AdapterLimits,
    Context,
    Engine,
    ModelSource,
    Quantization,
)
from llmos_operator.api.v1alpha1.workload_placement import Parallelism, Resources, Scheduling
from llmos_operator.api.v1alpha1.workload_pod import PodTemplate
from llmos_operator.api.v1alpha1.workload_serving import Rollout, Scaling, Serving, Slo
from llmos_operator.api.v1alpha1.workload_status import ModelWorkloadStatus


class WorkloadType(StrEnum):
    """Kinds of work."""

    INFERENCE = "Inference"
    FINE_TUNE = "FineTune"
    BATCH = "Batch"


_SERVING_ONLY = " is for type Inference only: remove it or change the type"


class ModelWorkloadSpec(KubeModel):
    """The desired state."""

    rules = (
        Rule("self.type == oldSelf.type", "type cannot be changed: create a new workload", ".type"),
        Rule(
            "(self.type == 'FineTune') == has(self.fineTune)",
            "type FineTune needs the block fineTune, and no other type may have it",
            ".fineTune",
        ),
        Rule(
            "(self.type == 'Batch') == has(self.batch)",
            "type Batch needs the block batch, and no other type may have it",
            ".batch",
        ),
        Rule("self.type == 'Inference' || !has(self.serving)", "serving" + _SERVING_ONLY, ".serving"),
        Rule("self.type == 'Inference' || !has(self.scaling)", "scaling" + _SERVING_ONLY, ".scaling"),
        Rule("self.type == 'Inference' || !has(self.slo)", "slo" + _SERVING_ONLY, ".slo"),
        Rule("self.type == 'Inference' || !has(self.rollout)", "rollout" + _SERVING_ONLY, ".rollout"),
        Rule(
            "self.type == 'Inference' || self.model.uri == oldSelf.model.uri",
            "model.uri cannot be changed for FineTune and Batch: create a new workload",
            ".model.uri",
        ),
        Rule(
            "!(has(self.replicas) && has(self.scaling))",
            "replicas and scaling exclude each other: remove replicas to let the operator scale, or remove scaling",
            ".replicas",
        ),
        Rule(
            "self.resources.accelerators == 0 ? "
            "(!has(self.parallelism.tensor) || self.parallelism.tensor == 1) && self.parallelism.pipeline == 1 : "
            "has(self.parallelism.tensor) ? self.parallelism.tensor * self.parallelism.pipeline == self.resources.accelerators : "
            "self.resources.accelerators % self.parallelism.pipeline == 0",
            "parallelism.tensor x parallelism.pipeline must equal resources.accelerators (and be 1 without accelerators): "
            "change accelerators, or leave tensor out to have it derived",
            ".parallelism",
        ),
        Rule(
            "self.parallelism.pipeline % self.parallelism.pods == 0 || "
            "(self.parallelism.pipeline == 1 && self.resources.accelerators > 0 && self.resources.accelerators % self.parallelism.pods == 0)",
            "parallelism.pipeline must be a multiple of parallelism.pods, or 1 with resources.accelerators a multiple of it: each pod "
            "holds the same number of stages or devices",
            ".parallelism.pods",
        ),
        Rule(
            "self.type != 'Inference' || !self.scheduling.disruption.order.exists(step, step == 'Checkpoint')",
            "disruption step Checkpoint is for FineTune and Batch: Inference has nothing to save",
            ".scheduling.disruption.order",
        ),
    )
    type: WorkloadType = Field(
        default=WorkloadType.INFERENCE,
        description="Inference: serve until it is deleted. FineTune: train, then finish. Batch: answer a file of requests, then finish.",
    )
    queue_name: Annotated[
        str,
        StringConstraints(max_length=253),
        Rule(
            "self == '' || self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
            "must be the name of a WorkloadQueue, like research",
        ),
    ] = Field(default="", description="WorkloadQueue to wait in. Empty: the queue `default`.")
    suspend: bool = Field(
        default=False,
        description="Whether to give back all devices and not to be scheduled until it is false again.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = Field(
        default=None,
        description="Seconds after it has finished at which the workload is deleted, with its pods and their logs; what it wrote stays. "
        "It has finished when a FineTune or Batch has ended, well or not, or scheduling.maxRuntime is over. Without it: never.",
    )
    model: ModelSource = Field(description="Which weights to load and where they come from.")
    adapters: Annotated[tuple[Adapter, ...], ListMap(("name",)), Field(max_length=64)] = Field(
        default=(),
        description="LoRA adapters (PEFT folders with safetensors) served beside the base model, each under its own name. A "
        "change replaces the replicas one after the other.",
    )
    adapter_limits: AdapterLimits | None = Field(
        default=None,
        description="Memory kept for adapters. Without it: room for those of spec.adapters up to rank 16.",
    )
    engine: Engine = Field(default_factory=Engine, description="Which program runs the model.")
    quantization: Quantization = Field(
        default_factory=Quantization,
        description="At which precision the weights are kept, and who decides it.",
    )
    resources: Resources = Field(default_factory=Resources, description="What one replica needs.")
    parallelism: Parallelism = Field(
        default_factory=Parallelism, description="How one replica is split over its devices."
    )
    context: Context = Field(default_factory=Context, description="How much text one replica holds.")
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="Replicas to run: 1 if neither this nor scaling is given. Excludes scaling. Set it where an autoscaler of the "
        "cluster is to change it through the scale subresource.",
    )
    scaling: Scaling | None = Field(
        default=None, description="How the number of replicas follows demand. Excludes replicas."
    )
    scheduling: Scheduling = Field(
        default_factory=Scheduling, description="Standing in the queue and rules of placement."
    )
    serving: Serving | None = Field(
        default=None, description="How clients reach the model. Inference only; without it: the defaults."
    )
    slo: Slo | None = Field(
        default=None, description="Latency the workload is scaled and placed for. Inference only."
    )
    rollout: Rollout | None = Field(
        default=None,
        description="How a change reaches the replicas. Inference only; without it: the defaults.",
    )
    fine_tune: FineTune | None = Field(
        default=None, description="The training run. Exactly for type FineTune."
    )
    batch: Batch | None = Field(
        default=None, description="The run over a file of requests. Exactly for type Batch."
    )
    pod_template: PodTemplate | None = Field(
        default=None,
        description="What the pods carry beside the runtime: tolerations, volumes, labels, application containers.",
    )


class ModelWorkload(KubeModel):
    """A model to serve, to train or to run over a file of requests, with what it needs and how it may be placed."""

    rules = (
        Rule(
            "size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name becomes the name of a Service: at most 63 lower case letters, digits and '-', beginning with a letter",
        ),
    )
    api_version: str = API_VERSION
    kind: str = "ModelWorkload"
    metadata: ObjectMeta
    spec: ModelWorkloadSpec = Field(description="The desired state.")
    status: ModelWorkloadStatus | None = Field(
        default=None, description="What the operator observed and decided."
    )

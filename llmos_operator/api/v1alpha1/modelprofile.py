"""ModelProfile (`mp`, cluster-scoped): what has been learned of one revision of a model.

Named `mp-` and 16 hex digits of sha256 over `uri@revision` (see :func:`profile_name`). Written by the operator: seeded
from the model's own metadata, corrected by what runtimes measure. The scheduler reads it and never guesses twice.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.meta import Conditions, ObjectMeta
from llmos_operator.api.names import API_VERSION
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.api.runtime.uris import model_key
from llmos_operator.api.schema import INT32_MAX, INT64_MAX, KubeModel, ListAtomic, Rule, Time
from llmos_operator.api.v1alpha1.workload_model import ModelUri, WeightFormat

Count = Annotated[int, Field(ge=0, le=INT64_MAX)]
Small = Annotated[int, Field(ge=0, le=INT32_MAX)]
Word = Annotated[str, StringConstraints(max_length=253)]


def profile_name(uri: str, revision: str) -> str:
    """Return the name of the profile of one revision of a model."""
    return f"mp-{model_key(uri, revision)}"


class ModelProfileSpec(KubeModel):
    """The revision of the model the profile is about."""

    rules = (Rule("self == oldSelf", "a profile stays with its model: create a new one"),)
    uri: ModelUri = Field(description="Where the model comes from.")
    revision: Annotated[str, StringConstraints(max_length=255)] = Field(
        default="main", description="Branch, tag or commit of it."
    )


class ShapeStatus(KubeModel):
    """Sizes of the model, read from its configuration and the headers of its weight files."""

    architecture: Word = Field(description="First entry of `architectures` in the model's config.")
    linear_parameters: Count = Field(description="Weights of linear layers, without embedding and head.")
    embedding_parameters: Count = Field(
        description="Weights of the embedding, and of the head if it has its own."
    )
    other_parameters: Count = Field(description="Norms, biases and convolutions; kept at 16 bits.")
    layers: Small = Field(description="Number of layers.")
    hidden: Small = Field(description="Width of the model.")
    intermediate: Small = Field(description="Width inside the feed-forward part.")
    heads: Small = Field(description="Attention heads.")
    kv_heads: Small = Field(description="Heads whose keys and values are kept.")
    head_dim: Small = Field(description="Width of one head.")
    vocab: Small = Field(description="Entries of the vocabulary.")
    max_positions: Small = Field(description="Longest context the model was made for, in tokens.")
    source_bits: Annotated[int, Field(ge=1, le=64)] = Field(
        default=16, description="Bits of the published weights."
    )
    generative: bool = Field(
        default=True, description="Whether it generates text; encoders keep no KV cache."
    )
    cross_tokens: Small = Field(
        default=0,
        description="Positions of what it has heard that a sequence keeps keys and values of, beside its own tokens; speech models have them.",
    )
    picture_floats: Count = Field(
        default=0,
        description="Activations of one picture where they are widest; image classifiers have them.",
    )
    quantized: Annotated[str, StringConstraints(max_length=8)] = Field(
        default="",
        description="The format its weight files already are (GPTQ, AWQ, compressed-tensors, fp8 blocks), and the only one the "
        "built-in engine serves it at; empty for plain weights.",
    )

    def shape(self) -> ModelShape:
        """Return the sizes as the memory model takes them."""
        return ModelShape(**{name: getattr(self, name) for name in type(self).model_fields})


class FormatProfile(KubeModel):
    """What is known of the model at one precision."""

    format: WeightFormat = Field(description="The precision.")
    weights_bytes: Count = Field(
        default=0, description="Bytes of the weights on one device, from the sizes of the model."
    )
    measured_weights_bytes: Count | None = Field(
        default=None, description="Bytes of the weights as a runtime measured them."
    )
    estimated_peak_bytes: Count | None = Field(
        default=None,
        description="What the memory model predicted for the run that measuredPeakBytes comes from.",
    )
    measured_peak_bytes: Count | None = Field(
        default=None, description="Largest memory of a runtime on one device."
    )
    oom_floor_bytes: Count | None = Field(
        default=None,
        description="Largest reservation with which a runtime ran out of memory: never place with this or less.",
    )
    tokens_per_second: Count | None = Field(
        default=None, description="Generated tokens per second at full batch, best node class."
    )
    quality_loss_milli: Count | None = Field(
        default=None,
        description="Growth of perplexity against the source precision, in thousandths of a percent.",
    )
    kl_micro: Count | None = Field(
        default=None, description="Mean KL divergence from the source precision, in millionths of a nat."
    )
    samples: Small = Field(default=0, description="Runs the measurements come from.")


class LoadPath(StrEnum):
    """Where the weights of a load came from."""

    COLD = "Cold"
    WARM = "Warm"
    HOT = "Hot"


class LoadTime(KubeModel):
    """How long a load takes on one class of nodes."""

    node_class: Word = Field(description="Product of the nodes' devices, or `cpu`.")
    path: LoadPath = Field(description="Cold: downloaded. Warm: from the node's disk. Hot: from host memory.")
    format: WeightFormat = Field(description="Precision that was loaded.")
    milliseconds: Count = Field(description="Smoothed time from the start of the pod to Ready.")
    samples: Small = Field(default=0, description="Loads it comes from.")


class PowerDraw(KubeModel):
    """What the model at work draws on a device of its own."""

    product: Word = Field(description="Product of the device.")
    format: WeightFormat = Field(description="Precision it is served at.")
    milliwatts: Count = Field(
        description="An eighth more than the highest mean of a busy minute; it replaces the power limit in power budgets."
    )


class ModelProfileStatus(KubeModel):
    """What has been learned."""

    resolved_revision: Word = Field(default="", description="Commit the revision stands for.")
    digest: Annotated[str, StringConstraints(max_length=71)] = Field(
        default="", description="sha256 over the weight files."
    )
    source_format: Annotated[str, StringConstraints(max_length=32)] = Field(
        default="", description="Precision the model was published in: the one of quantization mode None."
    )
    source_bytes: Count | None = Field(
        default=None, description="Bytes of the published weight files: what a cold load downloads."
    )
    shape: ShapeStatus | None = Field(default=None, description="Sizes of the model.")
    formats: Annotated[tuple[FormatProfile, ...], ListAtomic(), Field(max_length=16)] = Field(
        default=(), description="What is known at each precision."
    )
    kv_bytes_per_token: Count | None = Field(
        default=None, description="Bytes of KV cache of one token, at 16 bits."
    )
    base_bytes: Count | None = Field(
        default=None, description="Measured memory of a runtime without a model."
    )
    load_times: Annotated[tuple[LoadTime, ...], ListAtomic(), Field(max_length=128)] = Field(
        default=(), description="How long loads take, by class of node, path and precision."
    )
    draws: Annotated[tuple[PowerDraw, ...], ListAtomic(), Field(max_length=128)] = Field(
        default=(), description="What it draws at work, by product and precision."
    )
    updated: Time | None = Field(default=None, description="When something was last learned.")
    unused_since: Time | None = Field(
        default=None,
        description="Since when no workload has named the model; the profile is deleted after the operator's profileRetention.",
    )
    conditions: Conditions = Field(
        default=(), description="Observations by type: Ready (the model could be inspected)."
    )


class ModelProfile(KubeModel):
    """What has been learned of one revision of a model: sizes, memory, load times, quality and speed by precision."""

    api_version: str = API_VERSION
    kind: str = "ModelProfile"
    metadata: ObjectMeta
    spec: ModelProfileSpec = Field(description="The revision of the model the profile is about.")
    status: ModelProfileStatus | None = Field(default=None, description="What has been learned.")

"""ModelCache (`mc`, cluster-scoped): a model kept on the disks of chosen nodes."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.meta import Conditions, ObjectMeta
from llmos_operator.api.names import API_VERSION
from llmos_operator.api.schema import (
    INT32_MAX,
    INT64_MAX,
    KubeModel,
    LabelKey,
    LabelValue,
    ListAtomic,
    MaxProperties,
    ObjectName,
    PositiveQuantity,
    Rule,
)
from llmos_operator.api.v1alpha1.workload_model import ModelUri

Count = Annotated[int, Field(ge=0, le=INT64_MAX)]
Copies = Annotated[int, Field(ge=0, le=INT32_MAX)]


class SystemReference(KubeModel):
    """An object of the operator's namespace, by name."""

    name: ObjectName = Field(description="Name of the object.")


class ModelCacheSpec(KubeModel):
    """Which model to keep, and where."""

    rules = (
        Rule("self.uri == oldSelf.uri", "uri cannot be changed: create a new ModelCache", ".uri"),
        Rule(
            "self.revision == oldSelf.revision",
            "revision cannot be changed: create a new ModelCache",
            ".revision",
        ),
    )
    uri: ModelUri = Field(description="Model to keep; same schemes as spec.model.uri of a ModelWorkload.")
    revision: Annotated[str, StringConstraints(max_length=255)] = Field(
        default="main", description="Branch, tag or commit of it."
    )
    node_selector: Annotated[dict[LabelKey, LabelValue], MaxProperties(32)] = Field(
        default_factory=dict,
        description="Labels of the nodes that keep a copy. Empty: all nodes with devices.",
    )
    secret_ref: SystemReference | None = Field(
        default=None,
        description="Secret with the credentials of the source, in the operator's namespace; the chart's modelCache.secrets "
        "must list it, so that agents may read it. Keys as in spec.model.secretRef of a ModelWorkload.",
    )
    size_limit: PositiveQuantity | None = Field(
        default=None,
        description="Largest size of one copy; a larger model is not downloaded. Empty: no limit.",
    )


class CopyState(StrEnum):
    """State of one node's copy."""

    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    READY = "Ready"
    FAILED = "Failed"


class NodeCopy(KubeModel):
    """One node's copy of the model."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        description="Name of the node."
    )
    state: CopyState = Field(default=CopyState.PENDING, description="Pending, Downloading, Ready or Failed.")
    bytes: Count = Field(default=0, description="Bytes that are on the node's disk.")
    bytes_total: Count = Field(default=0, description="Bytes of the whole model; 0 while it is not known.")
    eta_seconds: Count | None = Field(
        default=None, description="Seconds the download is expected to take from here."
    )
    reason: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", description="Why a copy failed, one CamelCase word."
    )
    message: Annotated[str, StringConstraints(max_length=1024)] = Field(
        default="", description="Why a copy failed."
    )


class CopyCount(KubeModel):
    """How many nodes have a copy."""

    available: Copies = Field(default=0, description="Nodes whose copy is Ready.")
    total: Copies = Field(default=0, description="Nodes that should have one.")


class ModelCacheStatus(KubeModel):
    """Where copies are."""

    observed_generation: Count = Field(
        default=0, description="metadata.generation the status was computed from."
    )
    resolved_revision: Annotated[str, StringConstraints(max_length=253)] = Field(
        default="", description="Commit the revision stands for."
    )
    copies: CopyCount | None = Field(default=None, description="How many nodes have a copy.")
    nodes: Annotated[tuple[NodeCopy, ...], ListAtomic(), Field(max_length=5000)] = Field(
        default=(), description="Copy of each node."
    )
    conditions: Conditions = Field(default=(), description="Observations by type: Ready.")


class ModelCache(KubeModel):
    """A model kept on the disks of chosen nodes, so that replicas there load it without a download."""

    api_version: str = API_VERSION
    kind: str = "ModelCache"
    metadata: ObjectMeta
    spec: ModelCacheSpec = Field(description="Which model to keep, and where.")
    status: ModelCacheStatus | None = Field(default=None, description="Where copies are.")

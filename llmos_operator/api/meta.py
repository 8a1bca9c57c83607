"""Parts every kind shares: object metadata, conditions, references, selectors."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.schema import (
    INT64_MAX,
    KubeModel,
    LabelKey,
    LabelValue,
    ListAtomic,
    MaxProperties,
    ObjectName,
    Rule,
    Time,
)


class ObjectMeta(KubeModel):
    """The part of metadata that the project reads. The API server validates it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class ConditionStatus(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionEntry(KubeModel):
    """One observation of the object's state, as in `metav1.Condition`."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="Type of the condition, in CamelCase."
    )
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Annotated[str, StringConstraints(min_length=1, max_length=128)] = Field(
        description="One CamelCase word for why the condition has this status."
    )
    message: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="Explanation for people: what, why and the next step."
    )
    last_transition_time: Time = Field(description="When the status last changed from one value to another.")
    observed_generation: int = Field(
        default=0, ge=0, le=INT64_MAX, description="metadata.generation the condition was computed from."
    )


# One process writes the conditions of an object, and always all of them: ADR 0031.
Conditions = Annotated[tuple[ConditionEntry, ...], ListAtomic(), Field(max_length=32)]


class LocalReference(KubeModel):
    """An object of the same namespace, by name."""

    name: ObjectName = Field(description="Name of the object; it must be in the workload's own namespace.")


class ClusterReference(KubeModel):
    """A cluster-scoped object, by name."""

    name: ObjectName = Field(description="Name of the cluster-scoped object.")


class SelectorOperator(StrEnum):
    """Relation of a key to a set of values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class SelectorRequirement(KubeModel):
    """One requirement of a label selector."""

    rules = (
        Rule(
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            "operator In and NotIn need at least one value; Exists and DoesNotExist take none",
            ".values",
        ),
    )
    key: LabelKey = Field(description="Label key the requirement applies to.")
    operator: SelectorOperator = Field(description="Relation of the label to the values.")
    values: Annotated[tuple[LabelValue, ...], ListAtomic(), Field(max_length=64)] = Field(
        default=(), description="Values for In and NotIn."
    )


class LabelSelector(KubeModel):
    """A label query: all of its requirements must hold. An empty selector matches everything."""

    match_labels: Annotated[dict[LabelKey, LabelValue], MaxProperties(32)] = Field(
        default_factory=dict, description="Labels that must be present with exactly these values."
    )
    match_expressions: Annotated[tuple[SelectorRequirement, ...], ListAtomic(), Field(max_length=32)] = Field(
        default=(), description="Further requirements on labels."
    )

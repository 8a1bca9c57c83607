"""Label selectors, node affinity and tolerations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.state.convert.fields import invalid, shown
from llmos_operator.state.labels import is_number
from llmos_operator.state.types import Requirement, Selector, Toleration

if TYPE_CHECKING:
    from llmos_operator.state.convert.fields import Fields

_SET_OPERATORS = {"In", "NotIn"}
_NO_VALUE_OPERATORS = {"Exists", "DoesNotExist"}
_NUMBER_OPERATORS = {"Gt", "Lt"}
_EFFECTS = {"", "NoSchedule", "PreferNoSchedule", "NoExecute"}


def label_selector(fields: Fields) -> Selector:
    """Read a LabelSelector (matchLabels and matchExpressions, all of them must hold)."""
    exact = [Requirement(k, "In", (v,)) for k, v in sorted(fields.labels("matchLabels").items())]
    return Selector((*exact, *(requirement(e) for e in fields.objects("matchExpressions"))))


def map_selector(fields: Fields, name: str) -> Selector:
    """Read a plain map of labels (nodeSelector)."""
    return Selector(tuple(Requirement(k, "In", (v,)) for k, v in sorted(fields.labels(name).items())))


def requirement(fields: Fields) -> Requirement:
    """Read one expression of a label selector or of node affinity."""
    operator, values = fields.required("operator"), fields.texts("values")
    if operator in _SET_OPERATORS:
        if not values:
            raise invalid(fields.at("values"), f"operator {operator} needs at least one value")
    elif operator in _NUMBER_OPERATORS:
        if len(values) != 1 or not is_number(values[0]):
            raise invalid(fields.at("values"), f"operator {operator} needs exactly one whole number")
    elif operator not in _NO_VALUE_OPERATORS:
        known = sorted(_SET_OPERATORS | _NO_VALUE_OPERATORS | _NUMBER_OPERATORS)
        raise invalid(fields.at("operator"), f"{shown(operator)} is not one of {', '.join(known)}")
    return Requirement(fields.required("key"), operator, values)


def node_affinity(pod_spec: Fields) -> tuple[Selector, ...]:
    """Read the required node affinity: terms of which one must hold. matchFields on metadata.name count as a label."""
    affinity = pod_spec.child("affinity").child("nodeAffinity")
    return node_terms(affinity.child("requiredDuringSchedulingIgnoredDuringExecution"))


def node_terms(required: Fields) -> tuple[Selector, ...]:
    """Read a NodeSelector: terms of which one must hold."""
    terms = []
    for term in required.objects("nodeSelectorTerms"):
        expressions = [requirement(e) for e in term.objects("matchExpressions")]
        expressions += [requirement(e) for e in term.objects("matchFields")]
        terms.append(Selector(tuple(expressions)))
    return tuple(terms)


def tolerations(pod_spec: Fields) -> tuple[Toleration, ...]:
    """Read a pod's tolerations."""
    found = []
    for one in pod_spec.objects("tolerations"):
        operator, effect = one.text("operator", "Equal"), one.text("effect")
        if operator not in {"Equal", "Exists"}:
            raise invalid(one.at("operator"), f"{shown(operator)} is not Equal or Exists")
        if effect not in _EFFECTS:
            raise invalid(
                one.at("effect"), f"{shown(effect)} is not NoSchedule, PreferNoSchedule or NoExecute"
            )
        found.append(Toleration(one.text("key"), operator, one.text("value"), effect))
    return tuple(found)

"""Matching of labels, taints and tolerations, by the rules of Kubernetes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Requirement, Selector, Taint, Toleration

_HARD_EFFECTS = {"NoSchedule", "NoExecute"}
NODE_NAME_FIELD = "metadata.name"
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)


def labels_of(state: NodeState) -> Mapping[str, str]:
    """Return a node's labels and its name, as node affinity sees them; none of a node that is not registered."""
    node = state.node
    return {NODE_NAME_FIELD: state.name, **node.labels} if node is not None else {}


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Return whether all requirements hold; an empty selector matches everything."""
    return all(_holds(one, labels) for one in selector.requirements)


def _holds(one: Requirement, labels: Mapping[str, str]) -> bool:  # noqa: PLR0911 - one return an operator
    value = labels.get(one.key)
    match one.operator:
        case "In":
            return value is not None and value in one.values
        case "NotIn":
            return value is None or value not in one.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return is_number(value) and int(value or 0) > int(one.values[0])
        case "Lt":
            return is_number(value) and int(value or 0) < int(one.values[0])
    return False


def is_number(value: str | None) -> bool:
    """Return whether Gt and Lt can read the text: a decimal number that an int64 can hold, or nearly."""
    return value is not None and _NUMBER.fullmatch(value) is not None


def untolerated(taints: Iterable[Taint], tolerations: Iterable[Toleration]) -> Taint | None:
    """Return the first taint that keeps a pod off, None if there is none. PreferNoSchedule keeps nobody off."""
    for taint in taints:
        if taint.effect in _HARD_EFFECTS and not any(tolerates(t, taint) for t in tolerations):
            return taint
    return None


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Return whether a toleration covers a taint."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key in {"", taint.key}
    return toleration.key == taint.key and toleration.value == taint.value

"""Equal parts of many objects, kept once.

Ten thousand workloads have specs of a few kinds, and statuses whose conditions say the same at the same second. Parsed from
JSON each has copies of its own, down to the names of fields. What is kept of an object is therefore made of parts that were
seen before, where there are such. Nobody changes what is kept, so nobody can tell.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

    from llmos_operator.state.types import Pod, Workload

_MOST: Final = 8192  # parts remembered, beside those before them that were met again
_DEEPEST: Final = 24  # levels looked into; nothing kept is deeper on purpose
_VALUES: Final = ("model", "quantization", "selector", "topology", "node_selector", "learned")


class Alike:
    """Parts that were seen lately: in this turn and in the one before. What neither has seen is no part of it any more."""

    def __init__(self) -> None:
        self._former: dict[Hashable, Any] = {}
        self._now: dict[Hashable, Any] = {}

    def json(self, value: Any, level: int = 0) -> Any:
        """Return an equal JSON value made of parts seen before."""
        if isinstance(value, str):
            return sys.intern(value)
        if level >= _DEEPEST:
            return value
        if isinstance(value, dict):
            fields = {sys.intern(name): self.json(part, level + 1) for name, part in value.items()}
            return self._one((dict, *fields, *map(_mark, fields.values())), fields)
        if isinstance(value, list):
            parts = [self.json(part, level + 1) for part in value]
            return self._one((list, *map(_mark, parts)), parts)
        return value

    def pod(self, pod: Pod) -> Pod:
        """Return an equal pod whose labels have names and values that others have."""
        if not pod.labels:
            return pod
        labels = {sys.intern(name): sys.intern(value) for name, value in pod.labels.items()}
        return replace(pod, labels=labels)

    def workload(self, workload: Workload) -> Workload:
        """Return an equal workload made of values seen before."""
        values = {name: self._value(getattr(workload, name)) for name in _VALUES}
        return replace(workload, template_hash=sys.intern(workload.template_hash), **values)

    def _value(self, value: Any) -> Any:
        try:
            return self._one((type(value), value), value)
        except TypeError:  # it holds what cannot be hashed
            return value

    def _one(self, key: Hashable, value: Any) -> Any:
        found = self._now.get(key)
        if found is None:
            if len(self._now) >= _MOST:
                self._former, self._now = self._now, {}
            found = self._now[key] = self._former.get(key, value)
        return found


def _mark(part: Any) -> Hashable:
    """Return what tells a part of a value from others: containers and texts are the same object if they are equal."""
    return id(part) if isinstance(part, (str, dict, list)) else (type(part), part)

"""Label and field selectors as the API server reads them, for the in-memory port.

Supported: `a=b`, `a==b`, `a!=b`, `a`, `!a`, `a in (x,y)`, `a notin (x,y)`, joined by commas; for fields only the first
three, on dotted paths.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_SET = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)$")
_COMMA = re.compile(r",(?![^(]*\))")


def matches_labels(labels: Mapping[str, str], selector: str) -> bool:
    """Return whether ``labels`` satisfy every requirement of ``selector``."""
    return all(_label_term(labels, term.strip()) for term in _COMMA.split(selector) if term.strip())


def _label_term(labels: Mapping[str, str], term: str) -> bool:
    found = _SET.match(term)
    if found:
        values = {value.strip() for value in found["values"].split(",")}
        inside = found["key"] in labels and labels[found["key"]] in values
        return inside if found["op"] == "in" else not inside
    if "!=" in term:
        key, _, value = term.partition("!=")
        return labels.get(key.strip()) != value.strip()
    if "=" in term:
        key, _, value = term.partition("=")
        return labels.get(key.strip()) == value.lstrip("=").strip()
    return term[1:] not in labels if term.startswith("!") else term in labels


def matches_fields(body: Mapping[str, Any], selector: str) -> bool:
    """Return whether the fields of ``body`` satisfy every requirement of ``selector``; absent fields are ""."""
    for term in filter(None, selector.split(",")):
        negated = "!=" in term
        path, _, value = term.partition("!=" if negated else "=")
        here: Any = body
        for part in path.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        if (str(here or "") == value.lstrip("=")) is negated:
            return False
    return True

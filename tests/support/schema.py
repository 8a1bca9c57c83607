"""What the API server would drop: fields of an object that its CRD does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import crd

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEMAS = {
    kind.model.__name__: crd.definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for kind in crd.KINDS
}


def unknown_fields(kind: str, obj: dict[str, Any]) -> list[str]:
    """Return the paths in ``obj`` that a ``kind`` does not have; the API server prunes them without a word."""
    return list(_unknown(_SCHEMAS[kind], {k: v for k, v in obj.items() if k != "metadata"}, ""))


def _unknown(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unknown(schema.get("items", {}), item, f"{path}[{i}]")
    if not isinstance(value, dict) or "additionalProperties" in schema:
        return
    for key, inner in value.items():
        below = schema.get("properties", {}).get(key)
        if below is not None:
            yield from _unknown(below, inner, f"{path}.{key}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{key}"

"""CustomResourceDefinitions from the wire types: structural schemas, CEL rules, columns, subresources.

``python -m llmos_operator.api.crd`` writes one YAML file a kind under ``crds/``, the chart's copy of it under
``helm/llmos-operator/templates/crds`` and the reference page ``docs/reference/crds.md``; with ``--check`` it writes nothing
and fails when a file is stale. The schema is built from the pydantic fields directly, not from JSON Schema, because a structural schema knows no ``$ref``, no
``anyOf`` and no ``null``.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import StringConstraints
from pydantic_core import PydanticUndefined

from llmos_operator.api import crd_docs, schema
from llmos_operator.api.crd_kinds import KINDS, Column, Kind
from llmos_operator.api.generated import settle
from llmos_operator.api.names import GROUP, VERSION
from llmos_operator.api.schema import INT32_MAX, KubeModel, OpenModel, Rule

__all__ = ["KINDS", "Column", "Kind", "definition", "main", "render", "render_for_chart"]

Schema = dict[str, Any]
# Bytes of one object as compact JSON. Client-side apply keeps the whole object once more in an annotation, and all annotations together
# may have 256 KiB (https://kubernetes.io/docs/concepts/overview/working-with-objects/annotations/); less than
# half of it leaves room for what a cluster adds.
SIZE_LIMIT = 100_000


def definition(kind: Kind) -> Schema:
    """Return the CustomResourceDefinition of a kind as an object."""
    name = kind.model.__name__
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root(kind.model)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
    }
    if kind.scale:
        version["subresources"]["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
                "shortNames": [kind.short],
                "categories": ["llmos"],
            },
            "versions": [version],
        },
    }


def _column(column: Column) -> Schema:
    entry = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
        "description": column.description,
    }
    return entry | ({"priority": 1} if column.wide else {})


def _root(model: type[KubeModel]) -> Schema:
    """Return the schema of a kind; the API server owns apiVersion, kind and metadata."""
    root = _object(model, defaults=True)
    root["properties"]["apiVersion"] = {
        "type": "string",
        "description": "Version of the API this object is written in.",
    }
    root["properties"]["kind"] = {"type": "string", "description": "Kind of the object."}
    root["properties"]["metadata"] = {"type": "object"}
    root["required"] = [name for name in root.get("required", []) if name != "metadata"]
    if not root["required"]:
        del root["required"]
    return root


def _object(model: type[KubeModel], *, defaults: bool) -> Schema:
    result: Schema = {"description": _paragraph(model.__doc__), "type": "object"}
    properties: Schema = {}
    required = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if name == "metadata" and "api_version" in model.model_fields:
            properties[key] = {}
            continue
        inner = _value(field.annotation, field.metadata, defaults=defaults and name != "status")
        if field.description:
            inner = {"description": field.description} | {
                k: v for k, v in inner.items() if k != "description"
            }
        default = _default(field.default, field.default_factory) if defaults else None
        if default is not None and not field.is_required():
            inner["default"] = default
        if field.is_required():
            required.append(key)
        properties[key] = inner
    if properties:
        result["properties"] = properties
    if required:
        result["required"] = required
    if issubclass(model, OpenModel):
        result["x-kubernetes-preserve-unknown-fields"] = True
    return _with_rules(result, list(model.rules))


def _default(value: Any, factory: Any) -> Any:
    """Return the schema default of a field; None where an absent field says the same."""
    if isinstance(factory, type) and issubclass(factory, KubeModel):
        return _defaults_inside(factory)
    if value is PydanticUndefined or value is None or value in ("", ()):
        return None
    return (
        [str(item) for item in value]
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, StrEnum)
        else value
    )


def _defaults_inside(model: type[KubeModel]) -> Schema:
    """Return the default of a whole block. It is spelled out: the API server checks it against the block's rules as it is."""
    pairs = (
        (field.alias or name, _default(field.default, field.default_factory))
        for name, field in model.model_fields.items()
    )
    return {key: value for key, value in pairs if value is not None}


def _value(annotation: Any, metadata: list[Any], *, defaults: bool) -> Schema:
    """Return the schema of one type with its markers."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _value(inner, _flatten(more) + metadata, defaults=defaults)
    if origin in {Union, types.UnionType}:
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _value(members[0], metadata, defaults=defaults)  # of int | str the marker IntOrString speaks
    result = _bare(annotation, origin, defaults=defaults)
    for mark in metadata:
        _apply(result, mark)
    return _with_rules(result, [mark for mark in metadata if isinstance(mark, Rule)])


def _bare(annotation: Any, origin: Any, *, defaults: bool) -> Schema:
    if origin is tuple:
        return {"type": "array", "items": _value(get_args(annotation)[0], [], defaults=defaults)}
    if origin is dict:
        return {
            "type": "object",
            "additionalProperties": _value(get_args(annotation)[1], [], defaults=defaults),
        }
    if issubclass(annotation, KubeModel):
        return _object(annotation, defaults=defaults)
    if issubclass(annotation, StrEnum):
        return {"type": "string", "enum": [str(member) for member in annotation]}
    names: dict[type, str] = {bool: "boolean", int: "integer", str: "string"}
    return {"type": names[annotation]}


def _apply(result: Schema, mark: Any) -> None:  # noqa: C901, PLR0912 - one line a marker
    """Write what one marker promises into ``result``."""
    match mark:
        case Ge():
            result["minimum"] = mark.ge
        case Le(le=int() as bound):
            result["maximum"] = bound
            result["format"] = "int32" if bound <= INT32_MAX else "int64"
        case MinLen():
            result["minItems"] = mark.min_length
        case MaxLen():
            result["maxItems"] = mark.max_length
        case StringConstraints():
            if mark.min_length:
                result["minLength"] = mark.min_length
            if mark.max_length:
                result["maxLength"] = mark.max_length
        case schema.ListMap():
            result |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(mark.keys)}
        case schema.ListSet():
            result["x-kubernetes-list-type"] = "set"
        case schema.ListAtomic():
            result["x-kubernetes-list-type"] = "atomic"
        case schema.MaxProperties():
            result["maxProperties"] = mark.count
        case schema.Format():
            result["format"] = mark.name
        case schema.OrEmpty():
            result["enum"] = ["", *result["enum"]]
        case schema.IntOrString():
            del result["type"]
            result["x-kubernetes-int-or-string"] = True


def _flatten(metadata: list[Any]) -> list[Any]:
    """Return markers with those inside a pydantic ``Field`` of an ``Annotated`` brought up."""
    return [mark for item in metadata for mark in getattr(item, "metadata", [item])]


def _with_rules(result: Schema, rules: list[Rule]) -> Schema:
    if rules:
        result["x-kubernetes-validations"] = [_rule(rule) for rule in rules] + result.get(
            "x-kubernetes-validations", []
        )
    return result


def _rule(rule: Rule) -> Schema:
    entry = {"rule": rule.rule, "message": rule.message}
    return entry | ({"fieldPath": rule.field_path} if rule.field_path else {})


def _paragraph(text: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


class _Dumper(yaml.SafeDumper):
    """Writes lists of words, rules and schemas without parts on one line: half of the file would be indentation otherwise."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        """Return the node of a list; words go on one line."""
        words = all(isinstance(item, str) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=True if words else flow_style)

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Return the node of a mapping; a rule, and a schema of scalars only, goes on one line."""
        scalars = not any(isinstance(value, dict | list | tuple) for value in mapping.values())
        short = scalars and bool({"type", "rule"} & mapping.keys())
        return super().represent_mapping(tag, mapping, flow_style=True if short else flow_style)


def render(kind: Kind) -> str:
    """Return the YAML of a kind's CRD."""
    header = "# Generated from llmos_operator/api/v1alpha1 by `make generate`. Do not edit.\n"
    made = definition(kind)
    size = len(json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode())
    if size > SIZE_LIMIT:
        raise ValueError(f"{kind.plural}: {size} bytes, more than {SIZE_LIMIT}: shorten descriptions")
    return header + yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=160, allow_unicode=True)


def render_for_chart(kind: Kind) -> str:
    """Return the chart's template of a kind's CRD: the same text inside the chart's switch, with labels and keep policy."""
    text = render(kind)
    if "{{" in text:
        raise ValueError(f"{kind.plural}: a description contains template braces")
    name = f"  name: {kind.plural}.{GROUP}\n"
    return (
        "{{- if .Values.crds.enabled }}\n"
        + text.replace(name, name + '{{- include "llmos.crdMetadata" . | nindent 2 }}\n', 1)
        + "{{- end }}\n"
    )


def outputs(out: Path, chart: Path, docs: Path) -> dict[Path, str]:
    """Return every generated file and its text."""
    files = {docs / "crds.md": crd_docs.page([definition(kind) for kind in KINDS])}
    for kind in KINDS:
        name = f"{GROUP}_{kind.plural}.yaml"
        files[out / name] = render(kind)
        files[chart / name] = render_for_chart(kind)
    return files


def main(argv: list[str] | None = None) -> int:
    """Write or check the generated files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llmos_operator.api.crd", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("crds"))
    parser.add_argument("--chart", type=Path, default=Path("helm/llmos-operator/templates/crds"))
    parser.add_argument("--docs", type=Path, default=Path("docs/reference"))
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is stale")
    args = parser.parse_args(argv)
    return settle(outputs(args.out, args.chart, args.docs), check=args.check)


if __name__ == "__main__":
    sys.exit(main())

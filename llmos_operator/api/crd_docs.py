"""The reference page of the API: every field of every kind as a table, from the same schema the API server gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any]

_HEAD = """# API reference

Group `{group}`, version `{version}`. Generated from `llmos_operator/api/v1alpha1` by `make generate`; the same text is
shown by `kubectl explain`. Quantities are Kubernetes quantities (`10Gi`), durations are whole numbers with units
(`1h30m`, `80ms`). Rules are checked by the API server: an object that breaks one is refused with the rule's message.
"""


def page(definitions: list[Schema]) -> str:
    """Return the Markdown page for CustomResourceDefinitions."""
    spec = definitions[0]["spec"]
    parts = [_HEAD.format(group=spec["group"], version=spec["versions"][0]["name"])]
    parts += [_kind(definition["spec"]) for definition in definitions]
    return "\n".join(parts)


def _kind(spec: Schema) -> str:
    names, version = spec["names"], spec["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    lines = [
        f"## {names['kind']}",
        "",
        f"{root['description']} {spec['scope']}; `kubectl get {names['shortNames'][0]}`.",
        "",
    ]
    for part in ("spec", "status"):
        if part in root["properties"]:
            lines += ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
            lines += [_row(*field) for field in _fields(root["properties"][part], part)]
            lines.append("")
    rules = list(_rules(root, ""))
    if rules:
        lines += ["Rules:", "", *(f"- `{path}`: {message}." for path, message in rules), ""]
    return "\n".join(lines)


def _fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Yield (path, schema, required) of every field below ``schema``, parents first."""
    required = schema.get("required", [])
    for name, inner in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        yield here, inner, name in required
        if inner.get("type") == "array":
            yield from _fields(inner["items"], here + "[]")
        else:
            yield from _fields(inner, here)


def _row(path: str, schema: Schema, required: bool) -> str:
    default = schema.get("default")
    shown = (
        "required"
        if required
        else ""
        if default is None or isinstance(default, dict)
        else f"`{_plain(default)}`"
    )
    return f"| `{path}` | {_type(schema)} | {shown} | {_cell(schema.get('description', ''))} |"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)


def _type(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in schema:
        return " \\| ".join(f"`{word}`" for word in schema["enum"] if word)
    kind = schema["type"]
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object" and "additionalProperties" in schema:
        return "map"
    if (
        kind == "integer"
        and "minimum" in schema
        and "maximum" in schema
        and schema["maximum"] < (1 << 31) - 1
    ):
        return f"integer {schema['minimum']}..{schema['maximum']}"
    return str(kind)


def _rules(schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield (path + rule.get("fieldPath", "")).lstrip("."), rule["message"]
    for name, inner in schema.get("properties", {}).items():
        yield from _rules(inner, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], path + "[]")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

"""The chart's generated files: `README.md` and `values.schema.json`, from `values.yaml` and the settings classes.

In values.yaml a comment block above a key documents it: lines from ``# --`` on are the text, a line ``# @schema {…}``
adds JSON Schema (types follow from the default). The settings of the processes under ``<process>.config`` are described
by `llmos_operator.settings`, so that a setting Helm accepts is one the process accepts.

Run by `make generate`; with ``--check`` nothing is written and a stale file fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmos_operator.api.generated import settle
from llmos_operator.settings import AgentSettings, GatewaySettings, OperatorSettings

CHART = Path(__file__).resolve().parents[1] / "helm" / "llmos-operator"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: |$)")
_DEFAULTS_OF_THE_MACHINE = ("namespace", "identity", "node")  # their defaults come from the environment


@dataclass(frozen=True, slots=True)
class Documented:
    """One key of values.yaml: path, text and extra schema of its comment ("" and {} where there is none)."""

    path: tuple[str, ...]
    text: str
    schema: dict[str, Any]


def documented(source: str) -> list[Documented]:
    """Return the keys of values.yaml in order with their comments. Only block mappings are looked into."""
    found: list[Documented] = []
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in source.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("#").strip())
            continue
        match = _KEY.match(line)
        if match:
            indent = len(match[1])
            parents = [(at, name) for at, name in parents if at < indent]
            path = (*(name for _, name in parents), match[2])
            found.append(Documented(path, *_comment(comment)))
            parents.append((indent, match[2]))
        comment = []
    return found


def _comment(lines: list[str]) -> tuple[str, dict[str, Any]]:
    """Return text and schema of a comment block; a block without ``--`` is for readers of the file only."""
    start = next((i for i, line in enumerate(lines) if line.startswith("-- ")), None)
    if start is None:
        return "", {}
    text = " ".join(line for line in lines[start:] if not line.startswith("@schema"))[3:]
    schema = next((line.removeprefix("@schema ") for line in lines if line.startswith("@schema ")), "{}")
    return text, yaml.safe_load(schema)


def values_schema(source: str) -> dict[str, Any]:
    """Return the JSON Schema of values.yaml."""
    notes = {entry.path: entry for entry in documented(source)}
    root = _schema_of(yaml.safe_load(source), (), notes)
    root["properties"]["global"] = {
        "type": "object",
        "description": "Values shared with a parent chart; not used.",
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of llmos-operator"}
    return head | root | {"$defs": _settings()}


def _schema_of(value: Any, path: tuple[str, ...], notes: dict[tuple[str, ...], Documented]) -> dict[str, Any]:
    note = notes.get(path, Documented(path, "", {}))
    described = {"description": note.text} if note.text else {}
    if "$ref" in note.schema:
        return described | note.schema
    kinds: dict[type, str] = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    schema = described | {"type": kinds[type(value)]} | note.schema
    if isinstance(value, dict) and not note.schema:
        below = {key: _schema_of(inner, (*path, key), notes) for key, inner in value.items()}
        schema |= {"additionalProperties": False, "properties": below}
    return schema


def _settings() -> dict[str, Any]:
    """Return the schemas of the processes' settings, by class name."""
    definitions: dict[str, Any] = {}
    for kind in (OperatorSettings, AgentSettings, GatewaySettings):
        schema = kind.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[kind.__name__] = schema
    for schema in definitions.values():
        schema.pop("title", None)
        for name, field in schema.get("properties", {}).items():
            field.pop("title", None)
            if name in _DEFAULTS_OF_THE_MACHINE:
                field.pop("default", None)
    return definitions


def readme(source: str) -> str:
    """Return README.md: what the chart is and a table of all values."""
    values = yaml.safe_load(source)
    rows = []
    for entry in documented(source):
        if not entry.text:
            continue
        default: Any = values
        for part in entry.path:
            default = default[part]
        shown = json.dumps(default, ensure_ascii=False)
        rows.append(f"| `{'.'.join(entry.path)}` | {_cell(entry.text)} | `{_cell(shown)}` |")
    return _README.replace("{rows}", "\n".join(rows))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_README = """# llmos-operator

The chart of the LLMOS operator: operator, device agents, gateway, the kinds of group `llmos.dev`, roles and monitoring.
Generated from `values.yaml` by `make generate`.

```
helm install llmos-operator helm/llmos-operator --namespace llmos-system --create-namespace
helm test llmos-operator --namespace llmos-system
```

- Needs Kubernetes 1.30 or newer: admission policies in CEL, native sidecars, node names in ServiceAccount tokens.
- The kinds are templates behind `crds.enabled`, so an upgrade of the release upgrades them. With `crds.keep` (the
  default) they and all workloads stay when the release is uninstalled; `kubectl delete crd -l
  app.kubernetes.io/instance=llmos-operator` removes them.
- The Secret that the runtimes' control tokens derive from is made once and kept over upgrades and uninstalls. Tools that
  only render templates cannot look it up and would make a new one each time: give them `operator.controlSecret`.
- The WorkloadQueue `default` is a hook of the installation, made only if it does not exist, and yours from then on.
- No role has a wildcard, and nothing here reads Secrets.

## Values

| Key | Meaning | Default |
|---|---|---|
{rows}
"""


def main() -> int:
    """Write or check the files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is stale")
    check = parser.parse_args().check
    source = (CHART / "values.yaml").read_text(encoding="utf-8")
    files = {
        CHART / "README.md": readme(source),
        CHART / "values.schema.json": json.dumps(values_schema(source), indent=1, ensure_ascii=False) + "\n",
    }
    return settle(files, check=check)


if __name__ == "__main__":
    sys.exit(main())

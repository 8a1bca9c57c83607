"""values.yaml, its schema and the README say the same, and every key is used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llmos_operator import __version__
from llmos_operator.api import crd
from scripts import chart

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCE = (chart.CHART / "values.yaml").read_text()
VALUES = yaml.safe_load(SOURCE)
NOTES = {entry.path: entry for entry in chart.documented(SOURCE)}
TEMPLATES = "\n".join(
    path.read_text()
    for path in sorted((chart.CHART / "templates").rglob("*"))
    if path.is_file() and path.parent.name != "crds"
)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys a user sets: everything with a comment, and what has none above a nested mapping."""
    for key, inner in value.items():
        here = (*path, key)
        if isinstance(inner, dict) and not NOTES[here].text:
            yield from _leaves(inner, here)
        else:
            yield here


LEAVES = list(_leaves(VALUES))


def test_generated_files_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.chart", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_is_documented(path: tuple[str, ...]):
    text = NOTES[path].text
    assert len(text) > 5
    assert text.endswith((".", "`."))
    assert f"| `{'.'.join(path)}` |" in (chart.CHART / "README.md").read_text()


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_is_used_by_a_template(path: tuple[str, ...]):
    component, tail = path[0], ".".join(path[1:])
    ways = [rf"Values\.{re.escape('.'.join(path))}\b"]
    if component in {"operator", "agent", "gateway"}:
        ways.append(rf"\.values\.{re.escape(tail)}\b")  # parts that the three pods share
    if path[1:2] == ("serviceAccount",):
        ways += [rf"\$account\.{path[-1]}\b", rf"\.values\.serviceAccount\.{path[-1]}\b"]
    if component == "networkPolicy":
        ways.append(rf"\$policy\.{path[-1]}\b")
    if path[:2] == ("metrics", "dashboards"):
        ways.append(rf"\$dashboards\.{path[-1]}\b")
    if component == "log":
        ways.append(r"deepCopy \.Values\.log\b")  # handed over as a whole
    assert any(re.search(way, TEMPLATES) for way in ways), ways


def test_every_value_a_template_reads_exists():
    for read in set(re.findall(r"\.Values\.([A-Za-z0-9.]+)", TEMPLATES)):
        value = VALUES
        for part in read.split("."):
            if (
                read.startswith(("operator.config.", "agent.config.", "gateway.config."))
                and part not in value
            ):
                assert part in json.dumps(chart.values_schema(SOURCE)["$defs"]), read  # a setting
                break
            assert part in value, f".Values.{read} is not in values.yaml"
            value = value[part]


def test_every_value_is_exercised_by_the_rendered_matrix():
    files = [yaml.safe_load(path.read_text()) for path in (chart.CHART / "ci").glob("*-values.yaml")]

    def is_set(path: tuple[str, ...]) -> bool:
        for values in files:
            here: Any = values
            for part in path:
                here = here.get(part) if isinstance(here, dict) else None
            if here is not None:
                return True
        return False

    # Plain numbers that are passed on as they are.
    passed_on = {
        "resources",
        "terminationGracePeriodSeconds",
        "maxUnavailable",
        "podSecurityContext",
        "containerSecurityContext",
    }
    assert [".".join(path) for path in LEAVES if not is_set(path) and path[-1] not in passed_on] == []


def test_the_schema_refuses_unknown_keys_everywhere():
    open_maps = []

    def walk(schema: dict[str, Any], path: str) -> None:
        for name, inner in schema.get("properties", {}).items():
            if inner.get("type") == "object" and "properties" in inner:
                assert inner["additionalProperties"] is False, f"{path}.{name}"
            elif inner.get("type") == "object" and inner.get("additionalProperties") in (None, True):
                open_maps.append(f"{path}.{name}".lstrip("."))
            walk(inner, f"{path}.{name}")

    schema = chart.values_schema(SOURCE)
    assert schema["additionalProperties"] is False
    walk(schema, "")
    # Only what Kubernetes itself validates is open.
    tails = {name.rsplit(".", 1)[-1] for name in open_maps}
    assert tails == {
        "podSecurityContext",
        "containerSecurityContext",
        "resources",
        "affinity",
        "spec",
        "global",
    }
    for name, definition in schema["$defs"].items():
        assert definition.get("additionalProperties") is False or "enum" in definition, name


def test_comments_become_documentation():
    source = "# for readers\na:\n  # -- One\n  # two.\n  # @schema {enum: [x, y]}\n  b: x\n  c: 1\n"
    found = {entry.path: entry for entry in chart.documented(source)}
    assert found["a", "b"] == chart.Documented(("a", "b"), "One two.", {"enum": ["x", "y"]})
    assert found["a",].text == ""
    assert found["a", "c"].text == ""
    schema = chart.values_schema(source)
    assert schema["properties"]["a"]["properties"]["b"] == {
        "description": "One two.",
        "type": "string",
        "enum": ["x", "y"],
    }
    assert schema["properties"]["a"]["additionalProperties"] is False


def test_the_charts_crds_are_the_generated_ones():
    for kind in crd.KINDS:
        name = f"llmos.dev_{kind.plural}.yaml"
        text = (chart.CHART / "templates" / "crds" / name).read_text()
        assert text.startswith("{{- if .Values.crds.enabled }}\n")
        own = (REPOSITORY / "crds" / name).read_text()
        assert (
            text.replace('{{- include "llmos.crdMetadata" . | nindent 2 }}\n', "")
            == "{{- if .Values.crds.enabled }}\n" + own + "{{- end }}\n"
        )


def test_chart_and_package_have_one_version():
    meta = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert meta["version"] == meta["appVersion"] == __version__
    assert f"llmos-runtime:{__version__}" in meta["annotations"]["artifacthub.io/images"]
    kinds = {entry["kind"] for entry in yaml.safe_load(meta["annotations"]["artifacthub.io/crds"])}
    assert kinds == {kind.model.__name__ for kind in crd.KINDS}

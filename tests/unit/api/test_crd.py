"""The generated CRDs: every field is bounded and described, every rule speaks, and files are not stale."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llmos_operator.api import crd
from llmos_operator.api.runtime.memory import FORMAT_BITS, ModelShape
from llmos_operator.api.v1alpha1.modelprofile import ShapeStatus
from llmos_operator.api.v1alpha1.modelworkload import ModelWorkload
from llmos_operator.api.v1alpha1.workload_model import Quantization, WeightFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[3]
DEFINITIONS = {kind.plural: crd.definition(kind) for kind in crd.KINDS}
LOWER_CASE_WORDS = {
    "engine.name",
    "format",
    "kvCacheDtype",
    "method",
    "apis[]",
    "required",
    "preferred",
    "allowed[]",
}


def _root(plural: str) -> dict[str, Any]:
    return DEFINITIONS[plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _walk(inner, f"{path}.{name}")
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            yield from _walk(schema[below], path + "[]")


FIELDS = [
    (f"{plural}{path}", schema)
    for plural in DEFINITIONS
    for part in ("spec", "status")
    if part in _root(plural)["properties"]
    for path, schema in _walk(_root(plural)["properties"][part], f".{part}")
]


def _is_bounded(schema: dict[str, Any]) -> bool:
    match schema.get("type"):
        case "string":
            return bool({"maxLength", "enum", "format"} & schema.keys())
        case "integer":
            return {"minimum", "maximum"} <= schema.keys()
        case "array":
            return "maxItems" in schema and schema["x-kubernetes-list-type"] in {"map", "set", "atomic"}
        case "object" if "additionalProperties" in schema:
            return "maxProperties" in schema
        case other:  # floats and unions are not allowed
            return other in {"object", "boolean"} or schema.get("x-kubernetes-int-or-string", False)


def test_every_field_is_bounded():
    assert len(FIELDS) > 300
    assert [path for path, schema in FIELDS if not _is_bounded(schema)] == []


def test_lists_of_a_status_are_written_as_a_whole():
    kinds = {
        path: schema["x-kubernetes-list-type"] for path, schema in FIELDS if schema.get("type") == "array"
    }
    assert [path for path, kind in kinds.items() if ".status" in path and kind == "map"] == []
    assert kinds["modelworkloads.status.conditions"] == "atomic"
    assert kinds["modelworkloads.spec.adapters"] == "map"  # several people may write a spec


def test_every_field_is_described():
    named = [(path, schema.get("description", "")) for path, schema in FIELDS if not path.endswith("[]")]
    assert [(path, text) for path, text in named if len(text) < 5 or not text.endswith(".")] == []


def test_every_rule_speaks():
    rules = [rule for _, schema in FIELDS for rule in schema.get("x-kubernetes-validations", [])]
    assert len(rules) > 60
    for rule in rules:
        assert len(rule["message"]) > 10
        assert not rule["message"].endswith(".")
        assert rule.get("fieldPath", ".x").startswith(".")


@pytest.mark.parametrize(("path", "schema"), [(p, s) for p, s in FIELDS if "enum" in s])
def test_enums_are_camel_case_unless_the_word_belongs_to_the_trade(path: str, schema: dict[str, Any]):
    if not any(path.endswith(word) for word in LOWER_CASE_WORDS):
        assert all(re.fullmatch(r"[A-Z][A-Za-z]*", word) for word in schema["enum"])


def test_the_schema_is_structural_text_without_references():
    text = "".join(crd.render(kind) for kind in crd.KINDS)
    for word in ("$ref", "anyOf", "oneOf", "allOf", "nullable", "number"):
        assert not re.search(rf"^\s*-?\s*(type: )?{re.escape(word)}:?$", text, re.MULTILINE), word


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.plural)
def test_names_columns_and_subresources(kind: crd.Kind):
    spec = DEFINITIONS[kind.plural]["spec"]
    version = spec["versions"][0]
    assert spec["names"]["shortNames"] == [
        {
            "modelworkloads": "mw",
            "workloadqueues": "wq",
            "gpunodes": "gn",
            "modelcaches": "mc",
            "modelprofiles": "mp",
        }[kind.plural]
    ]
    assert spec["names"]["categories"] == ["llmos"]
    assert version["subresources"]["status"] == {}
    assert ("scale" in version["subresources"]) == (kind.plural == "modelworkloads")
    assert len([column for column in version["additionalPrinterColumns"] if "priority" not in column]) <= 8
    for column in version["additionalPrinterColumns"]:
        _assert_path_exists(kind.plural, column["jsonPath"])


def _assert_path_exists(plural: str, path: str) -> None:
    schema = _root(plural)
    if path.startswith(".metadata"):
        return
    for part in re.sub(r"\[.*?\)?\]", ".[]", path).strip(".").split("."):
        schema = schema["items"] if part == "[]" else schema["properties"][part]


def test_files_are_below_the_size_limit_and_up_to_date():
    for kind in crd.KINDS:
        text = json.dumps(yaml.safe_load(crd.render(kind)), separators=(",", ":"), ensure_ascii=False)
        assert len(text.encode()) < crd.SIZE_LIMIT, "as the annotation of kubectl apply has it"
    done = subprocess.run(
        [sys.executable, "-m", "llmos_operator.api.crd", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--out", str(tmp_path / "a"), "--chart", str(tmp_path / "b"), "--docs", str(tmp_path / "c")]
    assert crd.main(arguments) == 0
    assert crd.main([*arguments, "--check"]) == 0
    stale = tmp_path / "a" / "llmos.dev_gpunodes.yaml"
    stale.write_text(stale.read_text() + "#")
    assert crd.main([*arguments, "--check"]) == 1
    assert f"{stale} is stale: run `make generate`" in capsys.readouterr().err


def test_a_kind_that_grows_too_large_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crd, "SIZE_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"modelworkloads: \d+ bytes, more than 1000"):
        crd.render(crd.KINDS[0])


def test_the_profile_keeps_every_size_the_memory_model_needs():
    assert [field.name for field in dataclasses.fields(ModelShape)] == list(ShapeStatus.model_fields)
    values = {field.name: 2 for field in dataclasses.fields(ModelShape)} | {
        "architecture": "LlamaForCausalLM",
        "generative": False,
        "quantized": "int4",
    }
    assert ShapeStatus.model_validate(values).shape() == ModelShape(**values)


def test_formats_and_their_bits_are_those_of_the_memory_model():
    assert {str(one): FORMAT_BITS[one] for one in WeightFormat} == {
        k: v for k, v in FORMAT_BITS.items() if k != "fp32"
    }
    table = next(rule.rule for rule in Quantization.rules if "{'bf16'" in rule.rule)
    written = yaml.safe_load(re.search(r"\{'bf16'.*?\}", table)[0])
    assert written == {k: v for k, v in FORMAT_BITS.items() if k != "fp32"}


def test_an_object_reads_with_the_same_defaults_the_api_server_writes():
    read = ModelWorkload.model_validate(
        {"metadata": {"name": "a"}, "spec": {"model": {"uri": "hf://a/b"}}}
    ).spec
    schema = _root("modelworkloads")["properties"]["spec"]["properties"]
    written = read.model_dump(mode="json")
    for name, field in schema.items():
        if "default" in field:
            default = field["default"]
            seen = written[name]
            assert (
                seen == default
                if not isinstance(default, dict)
                else default.items() <= _without_none(seen).items()
            ), name


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return list(value) if isinstance(value, tuple) else value


def test_a_pod_template_keeps_the_fields_the_schema_does_not_list():
    template = {
        "spec": {
            "tolerations": [{"key": "gpu"}],
            "containers": [{"name": "a", "image": "x", "env": [{"name": "B", "value": "c"}]}],
        }
    }
    read = ModelWorkload.model_validate(
        {"metadata": {"name": "a"}, "spec": {"model": {"uri": "hf://a/b"}, "podTemplate": template}}
    )
    assert read.spec.pod_template.model_dump(exclude_unset=True, mode="json") == template


def test_choices_follow_the_mode():
    assert Quantization().choices() == ("bf16", "int8", "int4")
    assert Quantization(mode="Fixed", format="int8").choices() == ("int8",)
    assert Quantization(mode="None").choices() == ()
    assert Quantization.model_validate({"format": ""}).format is None

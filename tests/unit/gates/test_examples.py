"""Examples: every manifest is valid, explained, and every file a README names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmos_operator.api.v1alpha1.modelcache import ModelCache
from llmos_operator.api.v1alpha1.modelworkload import ModelWorkload
from llmos_operator.state import convert

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())
MANIFESTS = sorted((ROOT / "examples").glob("*/*.yaml"))


def of_kind(path: Path, kind: str) -> list[dict[str, Any]]:
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return [item for item in documents if item["kind"] == kind]


def workloads(path: Path) -> list[dict[str, Any]]:
    return of_kind(path, "ModelWorkload")


def test_the_promised_examples_are_there() -> None:
    names = [path.name for path in EXAMPLES]
    assert [name.partition("-")[2] for name in names] == [
        "chat",
        "embeddings",
        "shared-gpu",
        "priority-preemption",
        "scale-to-zero",
        "suspended",
        "cpu-only",
        "gang",
        "batch",
        "fine-tune",
        "model-cache",
        "vllm",
        "split-model",
        "mig",
        "claim",
        "lending",
    ]
    assert [name.partition("-")[0] for name in names] == [f"{i:02}" for i in range(1, len(names) + 1)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_a_manifest_is_what_the_operator_accepts(path: Path) -> None:
    found, caches = workloads(path), of_kind(path, "ModelCache")
    assert found or caches
    for item in caches:
        ModelCache.model_validate(item)
    for item in found:
        ModelWorkload.model_validate(item)
        stored = {**item, "metadata": {**item["metadata"], "uid": "u", "namespace": "default"}}
        assert convert.workload(stored).name == item["metadata"]["name"]


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_a_readme_names_its_manifests_and_nothing_that_does_not_exist(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"examples/[\w./-]+\.yaml", text))
    assert named == {str(path.relative_to(ROOT)) for path in folder.glob("*.yaml")}


def test_names_do_not_collide_when_all_are_applied() -> None:
    names = [item["metadata"]["name"] for path in MANIFESTS for item in workloads(path)]
    specs = [item["spec"] for path in MANIFESTS for item in workloads(path)]
    served = [spec["model"].get("name") for spec in specs if spec.get("type", "Inference") == "Inference"]
    assert len(set(names)) == len(names)
    assert len(set(served)) == len(served)

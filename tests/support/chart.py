"""The chart, rendered by real Helm."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from llmos_operator.local.binaries import resolve

CHART = Path(__file__).resolve().parents[2] / "helm" / "llmos-operator"
NAMESPACE = "llmos-system"
VALUES_FILES = ("", *sorted(path.name for path in (CHART / "ci").glob("*-values.yaml")))

Manifest = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the message is what it wrote."""


def helm(*arguments: str, kubeconfig: Path | None = None, stdin: str | None = None) -> str:
    """Run Helm and return its output. Raises :class:`HelmError`."""
    options = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    done = subprocess.run(
        [_binary(), *arguments, *options], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def render(
    values_file: str = "", values: dict[str, Any] | None = None, release: str = "llmos"
) -> list[Manifest]:
    """Return the objects of ``helm template`` with a file of ``ci/`` and further values."""
    return copy.deepcopy(_rendered(values_file, json.dumps(values or {}), release))


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """Return one rendered object. KeyError lists what there is."""
    for obj in objects:
        if obj["kind"] == kind and obj["metadata"]["name"] == name:
            return obj
    raise KeyError(f"{kind}/{name} not in {[(obj['kind'], obj['metadata']['name']) for obj in objects]}")


def pod_specs(objects: list[Manifest]) -> list[tuple[str, Manifest]]:
    """Return (kind/name, PodSpec) of everything that makes pods."""
    specs = []
    for obj in objects:
        if obj["kind"] in {"Deployment", "DaemonSet", "Job"}:
            specs.append((f"{obj['kind']}/{obj['metadata']['name']}", obj["spec"]["template"]["spec"]))
        if obj["kind"] == "Pod":
            specs.append((f"Pod/{obj['metadata']['name']}", obj["spec"]))
    return specs


@functools.cache
def _rendered(values_file: str, values: str, release: str) -> list[Manifest]:
    files = ["-f", str(CHART / "ci" / values_file)] if values_file else []
    text = helm("template", release, str(CHART), "-n", NAMESPACE, *files, "-f", "-", stdin=values)
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def _binary() -> str:
    return str(resolve()["helm"])

"""The table of good and bad manifests against a real API server: a bad one is refused with a message that helps."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llmos_operator.api import crd
from llmos_operator.state import convert
from tests.support.crds import install_crds

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane

pytestmark = pytest.mark.component

MANIFESTS = Path(__file__).parent / "manifests"
CLUSTER_SCOPED = {"WorkloadQueue", "ModelCache", "ModelProfile", "GPUNode"}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    table: str
    sentence: str
    manifest: dict[str, Any]
    before: dict[str, Any] | None
    refused: tuple[str, ...]
    stored: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


def _manifest(kind: str, name: str, spec: Any) -> dict[str, Any]:
    body = {"apiVersion": "llmos.dev/v1alpha1", "kind": kind, "metadata": {"name": name}}
    return body if spec is None else body | {"spec": spec}


def _read() -> list[Case]:
    cases = []
    for path in sorted(MANIFESTS.glob("*.yaml")):
        table = yaml.safe_load(path.read_text())
        for row in table["cases"]:
            kind = row.get("kind", table.get("kind"))
            slug = re.sub(r"[^a-z0-9]+", "-", row["case"].lower()).strip("-")
            name = row.get("name", f"{kind.lower()}-{slug}"[:63].strip("-"))
            before = _manifest(kind, name, row["before"]) if "before" in row else None
            manifest = _manifest(kind, name, row.get("spec"))
            cases.append(
                Case(
                    path.stem,
                    row["case"],
                    manifest,
                    before,
                    tuple(row.get("refused", ())),
                    row.get("stored", {}),
                )
            )
    return cases


CASES = _read()
IDS = [f"{case.table}: {case.sentence}" for case in CASES]


@dataclass
class Verdicts:
    """What the API server said to each manifest: the stored object or the error's text, by object name."""

    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, stdout: str, stderr: str, names: set[str]) -> None:
        decoder, at = json.JSONDecoder(), 0
        while (at := len(stdout) - len(stdout[at:].lstrip())) < len(stdout):
            document, at = decoder.raw_decode(stdout, at)
            for item in document.get("items", [document]):
                self.stored[item["metadata"]["name"]] = item
        for block in re.split(r"^(?=The |Error from server|error: )", stderr, flags=re.MULTILINE):
            for name in names:
                if f'"{name}"' in block or f"/{name}.yaml" in block:
                    self.errors[name] = self.errors.get(name, "") + block


def _send(plane: ControlPlane, verdicts: Verdicts, folder: Path, cases: list[Case], *command: str) -> None:
    folder.mkdir()
    for case in cases:
        (folder / f"{case.name}.yaml").write_text(json.dumps(case.manifest))
    try:
        output, errors = plane.kubectl(*command, "--dry-run=server", "-o", "json", "-f", str(folder)), ""
    except subprocess.CalledProcessError as error:
        output, errors = error.stdout, error.stderr
    verdicts.add(output, errors, {case.name for case in cases})


@pytest.fixture(scope="module")
def verdicts(api_server: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Send the whole table with few kubectl calls; ``--dry-run=server`` runs all validation and stores nothing."""
    install_crds(api_server)
    namespace = "manifest-table"
    api_server.kubectl("create", "namespace", namespace)
    folder, result = tmp_path_factory.mktemp("manifests"), Verdicts()
    created = [case for case in CASES if case.before is None]
    changed = [case for case in CASES if case.before is not None]
    api_server.kubectl(
        *("create", "-n", namespace, "-f", "-"),
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [case.before for case in changed]}),
    )
    _send(api_server, result, folder / "create", created, "create", "-n", namespace)
    _send(api_server, result, folder / "replace", changed, "replace", "-n", namespace)
    yield result
    api_server.kubectl("delete", "namespace", namespace, "--wait=false")
    for case in changed:
        if case.manifest["kind"] in CLUSTER_SCOPED:
            api_server.kubectl("delete", case.manifest["kind"], case.name)


def test_the_table_is_large_and_its_names_are_unique():
    assert len(CASES) >= 60
    assert len({(case.manifest["kind"], case.name) for case in CASES}) == len(CASES)
    assert len([case for case in CASES if case.refused]) >= 50


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.refused], ids=lambda case: f"{case.table}: {case.sentence}"
)
def test_a_good_manifest_is_taken_with_its_defaults(verdicts: Verdicts, case: Case):
    assert case.name not in verdicts.errors, verdicts.errors[case.name]
    stored = verdicts.stored[case.name]
    for path, expected in case.stored.items():
        value: Any = stored
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert value == expected, path


def test_what_the_api_server_takes_the_operator_can_read(verdicts: Verdicts):
    read = {
        "ModelWorkload": convert.workload,
        "WorkloadQueue": convert.queue,
        "ModelProfile": convert.profile,
    }
    types = {kind.model.__name__: kind.model for kind in crd.KINDS}
    taken = [case for case in CASES if not case.refused]
    assert len(taken) > 30
    for case in taken:
        stored, kind = verdicts.stored[case.name], case.manifest["kind"]
        types[kind].model_validate(stored)
        if kind in read:
            read[kind](stored)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.refused], ids=lambda case: f"{case.table}: {case.sentence}"
)
def test_a_bad_manifest_is_refused_with_a_message_that_helps(verdicts: Verdicts, case: Case):
    assert case.name not in verdicts.stored, f"taken: {verdicts.stored[case.name]}"
    message = verdicts.errors[case.name]
    for part in case.refused:
        assert part in message
    assert "no such key" not in message  # a rule that broke instead of speaking
    assert "evaluating rule" not in message

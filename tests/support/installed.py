"""LLMOS as a user has it: the chart installed in a local cluster, models served by its hub mirror.

Fixtures: ``installed`` is session-wide (two nodes of two 2 GiB devices, and one of two 16 GiB GPUs that are cut into MIG
instances, which nothing gets that does not ask for MIG); ``workspace`` is the same with everything of the
test's workloads removed afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.lab import Lab
from demo.watching import is_ready
from llmos_operator.local.models import model_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.cli.workloads import WorkloadRow

ROOT = Path(__file__).parents[2]
LOAD_SECONDS = 120.0  # a small model on a busy machine of two cores


class Workspace(Lab):
    """A lab with the verbs tests need."""

    def ready(self, *wanted: str, seconds: float = LOAD_SECONDS) -> dict[str, WorkloadRow]:
        """Wait until all of ``wanted`` are Ready and return their rows; what they said last is in the failure."""
        rows: dict[str, WorkloadRow] = {}

        def check() -> bool:
            rows.update(self.rows())
            return all(name in rows and is_ready(rows[name]) for name in wanted)

        try:
            self.wait(f"{', '.join(wanted)} to be ready", check, seconds)
        except Exception as error:
            for name in wanted:
                error.add_note(f"{name}: {rows.get(name)}")
            raise
        return {name: rows[name] for name in wanted}

    def pods_of(self, workload: str) -> list[dict[str, Any]]:
        """Return the live pods of one workload that are not being deleted."""
        return [
            pod
            for pod in self.pods()
            if pod["metadata"]["labels"].get("llmos.dev/workload") == workload
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def condition(self, workload: str, kind: str) -> str:
        """Return the status of a condition, "" while it is absent."""
        row = self.rows()[workload]
        return next((step.status for step in row.conditions if step.type == kind), "")

    def llmos(self, *arguments: str) -> str:
        """Run the command line; fail the test if it fails."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "llmos_operator",
                *arguments,
                "--kubeconfig",
                str(self.cluster.paths.kubeconfig),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, model: str, question: str) -> dict[str, Any]:
        """Ask a chat model through the gateway by the command line."""
        answer: dict[str, Any] = json.loads(
            self.llmos("chat", "--model", model, "--message", question, "--max-tokens", "24", "--json")
        )
        return answer

    def clear(self) -> None:
        """Delete all workloads and wait until their pods are gone."""
        self.kubectl("delete", "mw", "--all", f"--namespace={self.namespace}", "--wait=false")
        self.wait("pods to go", lambda: not self.pods(), 90)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The installed system; its cluster ends with the session."""
    store = model_store()
    if not (store / ".prepared").is_dir():
        pytest.fail(f"no models in {store}: run `make models`")
    lab = Workspace(tmp_path_factory.mktemp("installed") / "cluster")
    try:
        kinds = ["SIM-A:2Gi", "SIM-A:2Gi", "SIM-M:16Gi:1g.2gb,2g.4gb,3g.8gb"]
        lab.up(nodes=3, gpus=2, gpu=kinds, hub_store=str(store), attached=True)
        lab.install()
        lab.wait("devices", lambda: len(lab.items("gn")) == 3, 30)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def workspace(installed: Workspace) -> Iterator[Workspace]:
    """The installed system, without workloads before and after the test."""
    installed.clear()
    yield installed
    installed.clear()

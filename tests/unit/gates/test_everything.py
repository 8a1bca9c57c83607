"""`make test` runs checks and lanes of tests beside each other, and its last line and status speak for all of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CHECKS = ("lint", "types", "contracts", "spelling", "generated")
PASSES = "def test_it(): pass\n"
CONTRACT = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "node":
            item.add_marker(pytest.mark.node)
"""
FOLDERS = (
    "unit",
    "unit/runtime_engine",
    "unit/tuning",
    "property",
    "scenarios",
    "component/operator",
    "component/gateway",
    "component/runtime_engine",
    "component/runtime_front",
    "node",
    "node/contract",
    "e2e",
)


def project(
    folder: Path, failing_target: str = "", *, real_node: str | None = None, **tests: str
) -> tuple[int, list[str]]:
    """Run the script in a small project with one test in each folder; return status and the lines printed."""
    for name in ("scripts", "tests/support"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/test.sh", folder / "scripts")
    shutil.copy(ROOT / "tests/support/lanes.py", folder / "tests/support")
    recipes = {
        name: "@false" if name == failing_target else "@true"
        for name in (*CHECKS, "artifacts", "node-artifacts")
    }
    (folder / "Makefile").write_text("".join(f"{name}:\n\t{line}\n" for name, line in recipes.items()))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra --import-mode=importlib\nmarkers = node\n")
    (folder / "tests/node").mkdir()
    (folder / "tests/node/conftest.py").write_text(CONTRACT)
    for place in FOLDERS:
        path = folder / "tests" / place / "test_it.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tests.get(place.replace("/", "_"), PASSES))
    environment = {
        **os.environ,
        "VENV": sys.prefix,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    environment.pop("REAL_NODE", None)  # of the run this test is part of
    if real_node is not None:
        environment["REAL_NODE"] = real_node
    done = subprocess.run(
        ["scripts/test.sh"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    return done.returncode, done.stdout.splitlines()


def test_every_folder_is_run_and_counted_in_the_last_line(tmp_path: Path) -> None:
    status, lines = project(tmp_path)
    assert status == 0, lines
    assert f"{len(FOLDERS)} passed" in lines[-1]


def test_a_failure_in_a_lane_is_shown_and_fails_the_whole(tmp_path: Path) -> None:
    wrong = "def test_it(): assert 1 == 2, 'ones are not twos'\n"
    status, lines = project(tmp_path, "types", component_operator=wrong)
    assert status == 1, lines
    assert "-- types: FAILED" in lines
    assert "E AssertionError: ones are not twos" in {re.sub(" +", " ", line) for line in lines}
    assert any(line.startswith("FAILED tests/component/operator/test_it.py::test_it") for line in lines)
    assert f"1 failed, {len(FOLDERS) - 1} passed" in lines[-1]


def test_without_artifacts_what_needs_none_is_run(tmp_path: Path) -> None:
    status, lines = project(tmp_path, "artifacts")
    assert status == 1
    assert "-- artifacts: FAILED; component and end-to-end tests are left out" in lines
    assert "3 passed" in lines[-1]


def test_the_real_nodes_tests_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    status, lines = project(tmp_path, "node-artifacts", real_node="0")
    assert status == 0, lines
    assert f"{len(FOLDERS) - 1} passed" in lines[-1]


def test_another_word_for_leaving_them_out_is_refused(tmp_path: Path) -> None:
    status, lines = project(tmp_path, real_node="no")
    assert status == 2
    assert lines == ['REAL_NODE is "no": set it to 0 to leave the tests on a real node out, or to 1']


def test_a_test_on_the_node_that_passes_when_tried_again_is_unsteady(tmp_path: Path) -> None:
    once = """
from pathlib import Path

def test_it():
    seen = Path("build/seen")
    first = not seen.exists()
    seen.touch()
    assert not first, "the first time"
"""
    status, lines = project(tmp_path, node=once)
    assert status == 0, lines
    assert "-- failed, now again and alone: tests/node/test_it.py::test_it" in lines
    assert "1 unsteady" in lines[-1]


def test_without_what_the_node_is_made_of_all_other_tests_are_run(tmp_path: Path) -> None:
    status, lines = project(tmp_path, "node-artifacts")
    assert status == 1
    assert "-- node-artifacts: FAILED; the real node's tests are left out" in lines
    assert f"{len(FOLDERS) - 1} passed" in lines[-1]

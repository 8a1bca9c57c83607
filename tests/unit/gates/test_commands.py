"""The commands people and CI type: make targets, scripts, the benchmark page."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.bench import report

ROOT = Path(__file__).parents[3]
TARGETS = {
    "help",
    "demo",
    "venv",
    "binaries",
    "models",
    "chromium",
    "prometheus",
    "lock",
    "generate",
    "test",
    "lint",
    "format",
    "types",
    "contracts",
    "spelling",
    "generated",
    "unit",
    "node-up",
    "node-artifacts",
    "node-down",
    "test-node",
    "component",
    "e2e",
    "bench",
    "bench-e2e",
    "bench-runtime",
    "board-pictures",
    "stress",
    "clean",
    "distclean",
}


def test_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  ([a-z0-9-]+) ", done.stdout, re.MULTILINE))
    assert listed == TARGETS


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().endswith("exec make test")


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_executable(path: Path) -> None:
    assert os.access(path, os.X_OK)


def test_an_unusable_interpreter_is_named_with_what_to_install(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.2; exit 0; fi\nexit 1\n')
    old.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "grep", "cut"):
        (tools / name).symlink_to(
            subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        )
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/venv.sh")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{tmp_path}:{tools}", "VENV": str(tmp_path / "venv")},
    )
    assert done.returncode != 0
    assert "needs Python 3.11 to 3.14" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_benchmark_replaces_its_own_section_only() -> None:
    page = report.put("# Page\n", "a", "<!-- bench:a -->\nold\n<!-- /bench:a -->")
    page = report.put(page, "b", "<!-- bench:b -->\nkept\n<!-- /bench:b -->")
    page = report.put(page, "a", "<!-- bench:a -->\nnew \\1\n<!-- /bench:a -->")
    assert page.startswith("# Page")
    assert "old" not in page
    assert page.index("new \\1") < page.index("kept")

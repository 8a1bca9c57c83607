"""Each process loads only what its own extra installs, and stays inside its import budget.

Two looks at the same promise: statically over every import statement reachable from the entry point (function-level
ones too), and in a fresh interpreter where everything outside the process's lock cannot be imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest

from llmos_operator.__main__ import CLI, PROCESSES

ROOT = Path(__file__).parents[3]
ENTRIES = {name: module for name, (module, _) in PROCESSES.items()} | {"cli": CLI[0]}
EXTRAS = {name: extra for name, (_, extra) in PROCESSES.items()} | {"cli": CLI[1]}
MIB = 1 << 20

# Process -> modules that must not be loaded once its entry point is imported.
BANNED = {
    "operator": {"torch", "transformers", "pynvml", "fastapi", "typer", "rich"},
    "agent": {"torch", "transformers", "kopf", "numpy", "highspy", "typer", "rich"},
    # One beside the agent for each download: the standard library is all it needs.
    "fetch": {
        "torch",
        "transformers",
        "kopf",
        "numpy",
        "aiohttp",
        "pydantic",
        "kubernetes",
        "prometheus_client",
    },
    "gateway": {"torch", "transformers", "kopf", "pynvml", "numpy", "highspy", "typer", "rich"},
    "runtime": {"torch", "transformers", "kopf", "kubernetes", "typer", "rich"},
    "batch": {"torch", "transformers", "kopf", "kubernetes", "typer", "rich"},
    "tune": {"torch", "transformers", "kopf", "kubernetes", "typer", "rich"},
    "cli": {"torch", "transformers", "kopf", "pynvml", "fastapi"},
}
# Resident memory right after the import, in MiB: the idle budgets of docs/architecture.md section 1.
BUDGET_MIB = {
    "operator": 120,
    "agent": 60,
    "fetch": 40,
    "gateway": 120,
    "runtime": 120,
    "batch": 120,
    "tune": 120,
    "cli": 120,
}

PROBE = """
import importlib, json, sys, time
entry, missing = sys.argv[1], set(json.loads(sys.argv[2]))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r} (not in this process's lock)", name=name)

sys.meta_path.insert(0, Absent())
started = time.perf_counter()
importlib.import_module(entry)
seconds = time.perf_counter() - started
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "seconds": seconds,
    "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
}))
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def locked(process: str) -> frozenset[str]:
    text = (ROOT / f"requirements/{EXTRAS[process]}.lock").read_text(encoding="utf-8")
    return frozenset(line.partition("==")[0] for line in text.splitlines() if line[:1].isalnum())


@cache
def owners() -> dict[str, frozenset[str]]:
    """Return top-level module -> distributions that install it, for everything in this environment."""
    found = importlib.metadata.packages_distributions()
    return {module: frozenset(map(normal, dists)) for module, dists in found.items()}


def outside(process: str) -> set[str]:
    """Return the installed top-level modules that the process's lock does not bring."""
    own = locked(process) | {"llmos-operator"}
    return {module for module, dists in owners().items() if not dists & own}


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("llmos_operator", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("process", sorted(ENTRIES))
def test_every_import_within_reach_of_a_process_is_in_its_lock(process: str) -> None:
    entry = ENTRIES[process]
    reach = {entry, *graph().find_upstream_modules(entry)}
    strangers = outside(process)
    wrong = sorted(
        f"{importer} imports {module}"
        for module in reach
        if module.partition(".")[0] in strangers
        for importer in graph().find_modules_that_directly_import(module) & reach
    )
    assert not wrong, f"add the package to extra {EXTRAS[process]!r}, or cut the import: {wrong}"


def probe(process: str) -> dict[str, object]:
    command = [sys.executable, "-c", PROBE, ENTRIES[process], json.dumps(sorted(outside(process)))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("process", sorted(ENTRIES))
def test_a_process_starts_with_nothing_but_its_own_extra(
    process: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = probe(process)
    rss, seconds = int(str(seen["rss_bytes"])), float(str(seen["seconds"]))
    with capsys.disabled():
        print(f"\n  import {ENTRIES[process]}: {seconds:.2f} s, {rss / MIB:.0f} MiB ", end="")
    modules = seen["modules"]
    assert isinstance(modules, list)
    assert not BANNED[process] & set(modules)
    assert rss <= BUDGET_MIB[process] * MIB


def test_the_dispatcher_loads_nothing_for_people_before_a_process() -> None:
    code = (
        "import sys, llmos_operator.__main__; "
        "print([m for m in sys.modules if m.split('.')[0] in {'typer','rich','pydantic','aiohttp','yaml'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass A:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            raise ModuleNotFoundError('No module named typer', name='typer')\n"
        "sys.meta_path.insert(0, A())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "llmos_operator", "status"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "pip install 'llmos-operator[cli]'" in done.stderr

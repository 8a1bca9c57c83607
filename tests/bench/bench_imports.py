"""Import time and memory of each process.

Each entry point is imported in a fresh interpreter, interleaved over all processes and repeated; the median counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from llmos_operator.__main__ import CLI, PROCESSES
from tests.bench.report import Table

REPEATS = 7
MIB = 1 << 20
BUDGETS = {
    "operator": 120,
    "agent": 60,
    "gateway": 120,
    "runtime": 120,
    "cli": None,
}  # MiB, docs/architecture.md
PROBE = """
import importlib, json, sys, time
started = time.perf_counter()
if sys.argv[1]:
    importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - started
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps([seconds, int(status["VmRSS"].split()[0]) * 1024, len(sys.modules)]))
"""


def probe(module: str) -> tuple[float, int, int]:
    """Return seconds, resident bytes and loaded modules after importing ``module`` ("" for a bare interpreter)."""
    done = subprocess.run([sys.executable, "-c", PROBE, module], capture_output=True, text=True, check=True)
    seconds, rss, modules = json.loads(done.stdout)
    return seconds, rss, modules


def run() -> list[Table]:
    """Measure all entry points."""
    entries = {"(bare interpreter)": ""} | {extra: module for module, extra in (*PROCESSES.values(), CLI)}
    samples: dict[str, list[tuple[float, int, int]]] = {name: [] for name in entries}
    for _ in range(REPEATS):
        for name, module in entries.items():
            samples[name].append(probe(module))
    rows = []
    for name, measured in samples.items():
        seconds, rss, modules = (statistics.median(column) for column in zip(*measured, strict=True))
        budget = BUDGETS.get(name)
        rows.append(
            [
                name,
                f"{seconds:.2f} s",
                f"{rss / MIB:.0f} MiB",
                f"{budget} MiB" if budget else "",
                f"{modules:.0f}",
            ]
        )
    note = f"Median of {REPEATS} fresh interpreters each, byte code cached."
    return [Table("Import", ["process", "import", "resident", "budget", "modules"], rows, note)]

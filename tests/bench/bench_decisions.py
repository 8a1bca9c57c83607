"""Decision time of the scheduler at 500 and 5,000 nodes of 8 GPUs.

CPU time of `plan()` alone; what is measured is described in `tests.bench.decisions`.
"""

from __future__ import annotations

from tests.bench import decisions
from tests.bench.report import Table

NODES = (500, 5000)
REPEATS = 20


def run() -> list[Table]:
    """Measure all sizes."""
    columns = [
        "nodes x 8",
        "first plan, ms",
        "one bind, ms (median / worst)",
        "1,000 pending, ms",
        "fill, ms",
        "preempt one of all, ms",
        "1,000 that cannot, ms",
    ]
    rows = [decisions.measure(nodes, REPEATS) for nodes in NODES]
    note = f"CPU milliseconds of this process; {REPEATS} repeats for one bind, one run for the rest."
    return [Table("Decisions", columns, rows, note)]

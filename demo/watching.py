"""Waiting for workloads so that the audience sees what they go through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo.screen import DemoFailed

if TYPE_CHECKING:
    from collections.abc import Collection

    from demo.lab import Lab
    from demo.screen import Screen
    from llmos_operator.cli.workloads import WorkloadRow

_QUARTERS = 4


def until_ready(lab: Lab, screen: Screen, wanted: Collection[str], seconds: float) -> dict[str, WorkloadRow]:
    """Tell every change of the workloads until all of ``wanted`` are Ready; return their rows.

    Raises `DemoFailed` at the deadline, or at once for a workload whose model can never load.
    """
    told: dict[str, str] = {}

    def ready() -> dict[str, WorkloadRow] | None:
        rows = {name: row for name, row in lab.rows().items() if name in wanted}
        for name, row in sorted(rows.items()):
            line = describe(row)
            if told.get(name) != line:
                told[name] = line
                screen.say(f"{name:<12} {line}")
            if row.phase == "Failed" and row.reason != "BackOff":
                raise DemoFailed(f"{name} failed: {row.reason}: {row.message}")
        done = len(rows) == len(wanted) and all(is_ready(row) for row in rows.values())
        return rows if done else None

    found: dict[str, WorkloadRow] = lab.wait(f"{', '.join(wanted)} to be ready", ready, seconds)
    return found


def is_ready(row: WorkloadRow) -> bool:
    """Whether condition Ready is True and every wanted replica serves."""
    serving, _, wanted = row.ready.partition("/")
    conditions = {step.type: step.status for step in row.conditions}
    return conditions.get("Ready") == "True" and serving == wanted


def describe(row: WorkloadRow) -> str:
    """Return where a workload stands, coarse enough that a line is printed for what matters only."""
    if is_ready(row):
        return f"Ready {row.ready}, {row.precision} on {', '.join(row.nodes)}"
    parts = [row.phase, row.ready, row.reason]
    if row.load_stage:
        share = row.load_done * _QUARTERS // row.load_total if row.load_total else 0
        parts.append(f"{row.load_stage} {'█' * share}{'░' * (_QUARTERS - share)}")
    return "  ".join(parts)

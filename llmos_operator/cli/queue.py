"""`llmos queue`: the queues, what they use, and who waits in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api import names, places
from llmos_operator.cli import render, session, workloads
from llmos_operator.cli.options import AllNamespaces, AsJson, Context, Kubeconfig, Namespace, Target
from llmos_operator.clock import SystemClock
from llmos_operator.cluster import port

if TYPE_CHECKING:
    from rich.console import Console

    from llmos_operator.cli.session import Session
    from llmos_operator.cli.workloads import WorkloadRow
    from llmos_operator.cluster.port import Json

_LAST = 1 << 31  # behind everything that has a position


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One WorkloadQueue."""

    name: str
    parent: str
    weight: int
    nominal: str
    used: str
    borrowed: str
    pending: int
    admitted: int
    ready: str


@dataclass(frozen=True, slots=True)
class Queues:
    """What `llmos queue --json` prints."""

    queues: tuple[QueueRow, ...]
    waiting: tuple[WorkloadRow, ...]


def command(
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = True,
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show the queues and the workloads that wait in them, next first."""
    target = Target(kubeconfig, context, namespace, all_namespaces and not namespace)
    found = session.run(target, lambda one: collect(one, SystemClock().now()))
    if as_json:
        render.print_json(found)
    else:
        show(render.console(), found)


async def collect(connected: Session, now: float) -> Queues:
    """Read queues and workloads."""
    queues = await connected.every(port.WORKLOAD_QUEUES)
    items = await connected.scoped(port.MODEL_WORKLOADS)
    rows = [workloads.row(item, now) for item in items]
    return Queues(
        tuple(sorted((queue_row(item) for item in queues), key=lambda row: (row.parent, row.name))),
        tuple(sorted((row for row in rows if waits(row)), key=_order)),
    )


def queue_row(item: Json) -> QueueRow:
    """Read one WorkloadQueue."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    conditions: list[Json] = render.dig(status, "conditions", default=[])
    ready = next((str(one.get("status", "")) for one in conditions if one.get("type") == "Ready"), "")
    return QueueRow(
        name=str(render.dig(item, "metadata", "name", default="")),
        parent=str(spec.get("parent") or ""),
        weight=int(spec.get("weight") or 1),
        nominal=_amount(spec.get("nominal")) or "unlimited",
        used=_amount(status.get("usage")),
        borrowed=_amount(status.get("borrowed")),
        pending=int(status.get("pending") or 0),
        admitted=int(status.get("admitted") or 0),
        ready=ready,
    )


def _amount(fields: Json | None) -> str:
    """Return an amount of devices and memory for people: `3500m gpu, 40.0 GiB`."""
    parts = []
    if fields and fields.get("gpus") not in {None, ""}:
        parts.append(f"{fields['gpus']} gpu")
    memory = render.bytes_of(fields.get("memory")) if fields else None
    if memory:
        parts.append(render.size(memory))
    return ", ".join(parts)


def waits(row: WorkloadRow) -> bool:
    """Whether a workload has replicas without a place."""
    if row.queue_position is not None:
        return True
    scheduled = next((step.status for step in row.conditions if step.type == "Scheduled"), "Unknown")
    done = any(step.type in {"Suspended", "Finished"} and step.status == "True" for step in row.conditions)
    return not done and scheduled != "True"


def _order(row: WorkloadRow) -> tuple[str, int, float]:
    position = row.queue_position if row.queue_position is not None else _LAST
    return row.queue or names.DEFAULT_QUEUE, position, -row.age_seconds


def show(console: Console, found: Queues) -> None:
    """Print both tables."""
    columns = ["QUEUE", "PARENT", "WEIGHT", "NOMINAL", "USED", "BORROWED", "ADMITTED", "PENDING", "READY"]
    rows = [
        [
            one.name,
            one.parent,
            str(one.weight),
            one.nominal,
            one.used,
            one.borrowed,
            str(one.admitted),
            str(one.pending),
            one.ready,
        ]
        for one in found.queues
    ]
    console.print(render.table(columns, rows, right=("WEIGHT", "ADMITTED", "PENDING")))
    console.print()
    if not found.waiting:
        console.print("nothing waits")
        return
    columns = ["POSITION", "QUEUE", "WORKLOAD", "PRIORITY", "WAITING", "REASON", "MESSAGE"]
    rows = [
        [
            places.text(one.queue_position) if one.queue_position else "",
            one.queue or names.DEFAULT_QUEUE,
            f"{one.namespace}/{one.name}",
            one.priority,
            workloads.since(one),
            one.reason,
            one.message,
        ]
        for one in found.waiting
    ]
    console.print(render.table(columns, rows, right=("POSITION",)))

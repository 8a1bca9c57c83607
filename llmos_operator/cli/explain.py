"""`llmos explain mw/NAME`: why a workload is where it is, and what would make it start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmos_operator.cli import picture, render, session, workloads
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Namespace, Target, workload_name
from llmos_operator.clock import SystemClock

if TYPE_CHECKING:
    from rich.console import Console

    from llmos_operator.cli.session import Session
    from llmos_operator.cli.workloads import WorkloadRow
    from llmos_operator.scheduler.explain import Explanation


def command(
    workload: Annotated[str, typer.Argument(help="mw/NAME")],
    namespace: Namespace = "",
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Explain one workload: queue, precisions, rejected nodes, and what would help."""
    name = workload_name(workload)
    now = SystemClock().now()
    row, found = session.run(Target(kubeconfig, context, namespace), lambda one: collect(one, name, now))
    if as_json:
        render.print_json(found)
    else:
        show(render.console(), row, found, now)


async def collect(connected: Session, name: str, now: float) -> tuple[WorkloadRow, Explanation]:
    """Ask the scheduler about one workload on the cluster as it is. Raises `CommandFailed` for an unusable one."""
    from llmos_operator.scheduler.explain import explain  # noqa: PLC0415 - numpy: only this command pays for it

    item = await connected.workload(name)
    found = await picture.take(connected, now)
    key = session.key(item)
    unusable = found.left_out.get(f"ModelWorkload {key}")
    if unusable:
        raise CommandFailed(f"{key} is not accepted: {unusable}")
    return workloads.row(item, now), explain(
        found.store.snapshot(), await picture.policy(connected), now, key
    )


def show(console: Console, row: WorkloadRow, found: Explanation, now: float) -> None:
    """Print the explanation: where it stands, then why, then what would help."""
    console.print(f"{found.workload}  {row.phase}, {found.replicas_placed} of {found.replicas_wanted} placed")
    console.print(f"{found.reason}: {found.message}\n" if found.message else f"{found.reason}\n")
    if row.nodes:
        console.print(f"runs on     {', '.join(row.nodes)} at {row.precision or 'its own precision'}")
        if row.scored_by:
            console.print(f"chosen by   {', '.join(row.scored_by)}")
    place = f", position {found.queue_position}" if found.queue_position is not None else ""
    console.print(f"queue       {found.queue}{place}")
    if found.order:
        console.print(f"order       {found.order}")
    console.print(f"priority    {found.priority}")
    if found.expected_start is not None:
        console.print(f"expected    to start in {render.duration(found.expected_start - now)}")
    tables(console, found)
    if found.would_help:
        console.print("\nwhat would help:")
        for change in found.would_help:
            console.print(f"  - {change}")


def tables(console: Console, found: Explanation) -> None:
    """Print what each precision needs, what filters turned away, and who could be displaced."""
    if found.options:
        rows = [
            [
                one.format,
                render.size(one.bytes_per_device),
                str(one.max_model_len or ""),
                str(one.nodes),
                one.note,
            ]
            for one in found.options
        ]
        console.print()
        console.print(
            render.table(["PRECISION", "PER DEVICE", "CONTEXT", "NODES", ""], rows, right=("NODES",))
        )
    if found.rejected:
        rows = [[one.reason, str(one.nodes), one.nearest] for one in found.rejected]
        console.print()
        console.print(render.table(["REJECTED FOR", "NODES", "NEAREST"], rows, right=("NODES",)))
    if found.victims:
        rows = [
            [one.victim, one.pod, one.node, f"{one.cost / 1000:.0f} s", one.explanation]
            for one in found.victims
        ]
        console.print("\nit could start now by displacing:")
        console.print(render.table(["WORKLOAD", "POD", "NODE", "COST", "WHY"], rows))
    if found.moves:
        rows = [
            [one.workload, one.pod, one.node, one.target.node, f"{one.cost / 1000:.0f} s", one.explanation]
            for one in found.moves
        ]
        console.print("\nit could start now by moving:")
        console.print(render.table(["WORKLOAD", "POD", "FROM", "TO", "COST", "WHY"], rows))

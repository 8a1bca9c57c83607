"""`llmos status`: the system, its devices and its workloads on one screen; with a name, everything of one workload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from llmos_operator.api import names, places
from llmos_operator.cli import render, session, workloads
from llmos_operator.cli.options import (
    AllNamespaces,
    AsJson,
    Context,
    Kubeconfig,
    Namespace,
    Target,
    workload_name,
)
from llmos_operator.clock import SystemClock, parse_rfc3339
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import NotFound

if TYPE_CHECKING:
    from rich.console import Console

    from llmos_operator.cli.session import Session
    from llmos_operator.cli.workloads import WorkloadRow
    from llmos_operator.cluster.port import Json

_LEASE_STALE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Overview:
    """State of the system around the workloads."""

    server: str
    leader: str  # identity of the leading operator; "" if nobody leads
    leader_seconds: float | None  # since its last renewal
    nodes: int
    devices: int
    healthy: int
    memory_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """What `llmos status --json` prints."""

    system: Overview
    workloads: tuple[WorkloadRow, ...]


def command(
    workload: Annotated[str, typer.Argument(help="mw/NAME: show everything of one workload.")] = "",
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show the system and its workloads, or one workload in full."""
    target = Target(kubeconfig, context, namespace, all_namespaces)
    now = SystemClock().now()
    if workload:
        item = session.run(target, lambda one: one.workload(workload_name(workload)))
        found = workloads.row(item, now)
        if as_json:
            render.print_json(found)
        else:
            show_one(render.console(), found)
        return
    status = session.run(target, lambda one: collect(one, now))
    if as_json:
        render.print_json(status)
    else:
        show(render.console(), status, with_namespace=all_namespaces)


async def collect(connected: Session, now: float) -> Status:
    """Read workloads of the scope, devices of the cluster and the leader's lease."""
    items = await connected.scoped(port.MODEL_WORKLOADS)
    nodes = await connected.every(port.GPU_NODES)
    try:
        lease = await connected.transport.get(port.LEASES, names.LEASE_NAME, namespace=names.SYSTEM_NAMESPACE)
    except NotFound:
        lease = {}
    rows = sorted((workloads.row(item, now) for item in items), key=workloads.order)
    return Status(overview(connected.transport.credentials.server, nodes, lease, now), tuple(rows))


def overview(server: str, nodes: list[Json], lease: Json, now: float) -> Overview:
    """Sum up devices and leadership."""
    devices = [device for node in nodes for device in render.dig(node, "status", "devices", default=[])]
    ledger = [
        entry for node in nodes for entry in render.dig(node, "status", "ledger", "devices", default=[])
    ]
    renewed = render.dig(lease, "spec", "renewTime")
    return Overview(
        server=server,
        leader=str(render.dig(lease, "spec", "holderIdentity", default="")),
        leader_seconds=max(0.0, now - parse_rfc3339(str(renewed))) if renewed else None,
        nodes=len(nodes),
        devices=len(devices),
        healthy=sum(render.dig(device, "health", "verdict") == "Healthy" for device in devices),
        memory_bytes=sum(render.bytes_of(device.get("memory")) or 0 for device in devices),
        reserved_bytes=sum(render.bytes_of(entry.get("reserved")) or 0 for entry in ledger),
    )


def show(console: Console, status: Status, *, with_namespace: bool) -> None:
    """Print the overview and one line a workload."""
    system = status.system
    console.print(f"cluster    {system.server}")
    console.print(f"operator   {_leader(system)}")
    console.print(
        f"devices    {system.devices} on {system.nodes} nodes, {system.healthy} healthy; "
        f"{render.size(system.reserved_bytes)} of {render.size(system.memory_bytes)} reserved"
    )
    console.print()
    if not status.workloads:
        where = "in any namespace" if with_namespace else "in this namespace (-A shows all)"
        console.print(f"no workloads {where}")
        return
    columns = ["NAME", "MODEL", "PRECISION", "READY", "PHASE", "NODE", "REASON", "AGE"]
    rows = [
        [
            one.name,
            one.model,
            one.precision,
            one.ready,
            one.phase,
            ",".join(one.nodes),
            one.load or one.reason,
            workloads.since(one),
        ]
        for one in status.workloads
    ]
    if with_namespace:
        columns.insert(0, "NAMESPACE")
        rows = [[one.namespace, *cells] for one, cells in zip(status.workloads, rows, strict=True)]
    console.print(render.table(columns, rows))


def _leader(system: Overview) -> str:
    if not system.leader or system.leader_seconds is None:
        return "nobody leads: the operator is not running, nothing will be scheduled"
    seen = f"{system.leader} leads, heard of {render.duration(system.leader_seconds)} ago"
    return f"{seen}: it may be down" if system.leader_seconds > _LEASE_STALE_SECONDS else seen


def show_one(console: Console, one: WorkloadRow) -> None:
    """Print everything of one workload."""
    facts = {
        "workload": f"{one.namespace}/{one.name} ({one.type})",
        "model": f"{one.model} from {one.uri}",
        "precision": one.precision,
        "phase": f"{one.phase}, {one.ready} ready",
        "why": f"{one.reason}: {one.message}" if one.message else one.reason,
        "queue": f"{one.queue}, position {places.text(one.queue_position)}"
        if one.queue_position
        else one.queue,
        "priority": one.priority,
        "nodes": ", ".join(one.nodes),
        "devices": ", ".join(one.devices),
        "memory": f"{one.reserved} reserved, {one.observed or 'nothing yet'} measured"
        if one.reserved
        else "",
        "load": one.load,
        "url": one.url,
        "age": workloads.since(one),
    }
    for name, text in facts.items():
        if text:
            console.print(f"{name:<10} {text}")
    if one.conditions:
        console.print()
        rows = [
            [step.type, step.status, step.reason, render.duration(step.age_seconds), step.message]
            for step in one.conditions
        ]
        console.print(render.table(["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], rows))

"""`llmos top`: every device with what is reserved, what is used, how busy it is, and who is on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.cli import devices, render, session
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Target
from llmos_operator.cluster import port

if TYPE_CHECKING:
    from rich.console import Console

    from llmos_operator.cli.devices import DeviceRow
    from llmos_operator.cli.session import Session


def command(as_json: AsJson = False, kubeconfig: Kubeconfig = "", context: Context = "") -> None:
    """Show the devices: reserved, used, busy, and by whom."""
    found = session.run(Target(kubeconfig, context), collect)
    if as_json:
        render.print_json(found)
    else:
        show(render.console(), found)


async def collect(connected: Session) -> list[DeviceRow]:
    """Read devices, the pods that hold them, and the agents' measurements."""
    nodes = await connected.every(port.GPU_NODES)
    pods = await connected.every(port.PODS, labels="llmos.dev/workload-uid")
    measured = await devices.measure(connected)
    return devices.rows(nodes, devices.tenants(pods), measured)


def show(console: Console, found: list[DeviceRow]) -> None:
    """Print one line a device and a sum."""
    if not found:
        console.print("no devices: no agent has reported a node yet (kubectl -n llmos-system get pods)")
        return
    columns = ["NODE", "GPU", "PRODUCT", "MEMORY", "RESERVED", "USED", "BUSY", "HEALTH", "TENANTS"]
    lines = [
        [
            one.node,
            str(one.index),
            one.product,
            render.size(one.memory_bytes),
            f"{render.size(one.reserved_bytes)} {_share(one.reserved_bytes, one.memory_bytes)}",
            f"{render.size(one.used_bytes)} {_share(one.used_bytes, one.memory_bytes)}".strip(),
            "" if one.utilization is None else f"{one.utilization:.0%}",
            f"{one.health} {one.health_reason}".strip(),
            ", ".join(one.tenants),
        ]
        for one in found
    ]
    console.print(render.table(columns, lines, right=("GPU", "MEMORY", "RESERVED", "USED", "BUSY")))
    total = sum(one.memory_bytes for one in found)
    reserved = sum(one.reserved_bytes for one in found)
    console.print(
        f"\n{len(found)} devices, {render.size(reserved)} of {render.size(total)} reserved {_share(reserved, total)}"
    )


def _share(part: int | None, whole: int) -> str:
    return "" if part is None or whole <= 0 else f"({part / whole:.0%})"

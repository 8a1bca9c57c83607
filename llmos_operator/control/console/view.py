"""What the console shows, as compact JSON: every device and queue, a line a workload; one workload in full. Pure.

A device is a list, not an object, and names are numbers into a table: 1,000 devices are 60 KB, a tenth of that on the wire.
Texts of models and runtimes are masked: they come from whatever tenants run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmos_operator import __version__
from llmos_operator.api.quantity import parse_milli
from llmos_operator.control.budgets import budgets
from llmos_operator.control.remedies import state_of
from llmos_operator.control.summaries import queue_statuses
from llmos_operator.observability.masking import mask
from llmos_operator.scheduler.redaction import without_secrets
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llmos_operator.control.budgets import Budget
    from llmos_operator.control.records import Record
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.telemetry.remediation import Proposal

    Json = dict[str, Any]

SILENT_SECONDS: Final = 10.0  # without telemetry a node is shown as silent
WORKLOADS: Final = 2000  # lines of the list; those that wait or fail come first
REMEDIES: Final = 50
BUDGETS: Final = 200  # lines; racks come first
_MESSAGE: Final = 500
_MIB: Final = 20  # bits
_EXCLUSIVE, _FOREIGN, _SECURED, _HELD_DOWN = 1, 2, 4, 8  # flags of a device
_WATTS: Final = (
    10  # draws are shown in steps of so many: in single watts everything would change every second
)
_MILLIWATTS: Final = _WATTS * 1000
_ORDER: Final = ("Failed", "Degraded", "Pending", "Loading", "Suspended", "Asleep", "Running", "Succeeded")


def overview(
    snapshot: Snapshot,
    records: Iterable[Record],
    busy: Callable[[str], int | None],
    draw: Callable[[str], int | None],
    remedies: Sequence[Proposal],
    rack_label: str,
    now: float,
) -> Json:
    """Return everything the page shows at once. ``now``: epoch seconds.

    ``busy`` and ``draw``: percent and milliwatts of a device by UUID, None if it does not tell.
    """
    found = list(records)
    tenants: dict[str, int] = {}
    products: dict[str, int] = {}
    nodes = [
        _node(state, snapshot.heard.get(name), tenants, products, busy, draw, now)
        for name, state in sorted(snapshot.nodes.items())
        if state.gpu is not None
    ]
    rows = sorted((_row(record) for record in found), key=_order)
    return {
        "version": __version__,
        "synced": snapshot.synced,
        "products": list(products),
        "tenants": list(tenants),
        "nodes": nodes,
        "power": [_power(one) for one in budgets(snapshot, rack_label, draw)[:BUDGETS]],
        "remedies": [_remedy(one) for one in remedies[:REMEDIES]],
        "queues": _queues(snapshot),
        "phases": _phases(found),
        "workloads": rows[:WORKLOADS],
        "left": max(0, len(rows) - WORKLOADS),
    }


def _node(
    state: NodeState,
    heard: float | None,
    tenants: dict[str, int],
    products: dict[str, int],
    busy: Callable[[str], int | None],
    draw: Callable[[str], int | None],
    now: float,
) -> Json:
    held: dict[str, set[int]] = {}
    for pod in state.pods.values():
        if pod.claim is None or pod.phase is PodPhase.FINISHED:
            continue
        number = tenants.setdefault(pod.claim.workload, len(tenants))
        for uuid in pod.claim.devices:
            held.setdefault(uuid, set()).add(number)
    devices = [
        _device(
            one,
            products.setdefault(one.device.product, len(products)),
            busy(one.uuid),
            draw(one.uuid),
            sorted(held.get(one.uuid, ())),
        )
        for one in state.devices
    ]
    return {
        "name": state.name,
        "ready": state.node is not None and state.node.ready,
        "cordoned": state.node is not None and state.node.unschedulable,
        "silent": heard is None or now - heard > SILENT_SECONDS,
        "devices": devices,
    }


def _device(
    one: DeviceState, product: int, busy: int | None, draw: int | None, tenants: list[int]
) -> list[object]:
    """Return a device as the page's COLUMNS: amounts in MiB, percent, watts and thousandths."""
    observed = one.observed_bytes >> _MIB if one.observed_bytes is not None else None
    flags = one.exclusive * _EXCLUSIVE | one.foreign * _FOREIGN
    flags |= one.secured * _SECURED | one.held_down * _HELD_DOWN
    return [
        one.device.index,
        product,
        one.device.memory_bytes >> _MIB,
        one.reserved_bytes >> _MIB,
        observed,
        busy,
        one.verdict.value,
        one.reason,
        flags,
        tenants,
        one.throttled_milli,
        one.risk_milli,
        _watts(draw),
    ]


def _watts(milliwatts: int | None) -> int | None:
    return None if milliwatts is None else milliwatts // _MILLIWATTS * _WATTS


def _power(one: Budget) -> Json:
    """Return a power budget in watts; None where a device does not tell."""
    told = {"budget": one.budget, "expected": one.expected, "drawn": one.drawn}
    return {"level": one.level, "name": one.name, **{name: _watts(milli) for name, milli in told.items()}}


def _remedy(one: Proposal) -> Json:
    return {
        "node": one.node,
        "device": one.device,
        "action": one.action.value,
        "reason": one.reason,
        "state": state_of(one),
    }


def _queues(snapshot: Snapshot) -> list[Json]:
    statuses = queue_statuses(snapshot)
    found = []
    for name, queue in sorted(snapshot.queues.items()):
        status = statuses[name]
        found.append(
            {
                "name": name,
                "parent": queue.parent,
                "weight": queue.weight,
                "nominalMilli": queue.nominal_gpu_milli,
                "usedMilli": parse_milli(status["usage"]["gpus"]),
                "borrowedMilli": parse_milli(status.get("borrowed", {}).get("gpus", "0")),
                "shareMilli": status["shareMilli"],
                "admitted": status["admitted"],
                "pending": status["pending"],
                "ready": status["conditions"][0]["status"] == "True",
            }
        )
    return found


def _phases(records: Iterable[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        phase = _phase(record)
        counts[phase] = counts.get(phase, 0) + 1
    return counts


def _phase(record: Record) -> str:
    return str(record.status.get("phase") or "Pending")


def _order(row: Json) -> tuple[int, str]:
    phase = row["phase"]
    return (_ORDER.index(phase) if phase in _ORDER else -1), row["key"]


def _row(record: Record) -> Json:
    status, workload = record.status, record.stub
    summary, decision = status.get("summary") or {}, _decision(record)
    usage = status.get("usage") or {}
    return {
        "key": record.key,
        "type": workload.kind.value,
        "queue": str(summary.get("queue") or workload.queue),
        "priority": str(summary.get("priority") or ""),
        "phase": _phase(record),
        "ready": str(summary.get("ready") or f"0/{workload.replicas}"),
        "model": without_secrets(workload.model.uri),
        "precision": str((status.get("model") or {}).get("quantization") or ""),
        "nodes": str(summary.get("nodes") or ""),
        "gpuSeconds": usage.get("gpuSeconds", 0),
        "tokens": usage.get("tokens", 0),
        **decision,
    }


def _decision(record: Record) -> Json:
    """Return the newest decision: the scheduler's own word if this process has heard one, else the status's."""
    if record.decision is not None:
        return {"reason": str(record.decision.reason), "message": mask(record.decision.message)[:_MESSAGE]}
    said = record.status.get("decision") or {}
    return {"reason": str(said.get("reason", "")), "message": mask(str(said.get("message", "")))[:_MESSAGE]}


def detail(record: Record) -> Json:
    """Return one workload in full: its newest decision with what was rejected, and its timeline, newest first."""
    status = record.status
    decision = status.get("decision") or {}
    return {
        **_row(record),
        "url": str(status.get("url") or ""),
        "rejected": [
            {
                "reason": str(one.get("reason", "")),
                "count": one.get("count", 0),
                "message": mask(str(one.get("message", ""))),
            }
            for one in decision.get("rejected") or ()
        ],
        "placements": [
            {
                "pod": str(one.get("pod", "")),
                "node": str(one.get("node", "")),
                "devices": list(one.get("deviceUUIDs") or ()),
                "reserved": str(one.get("reservedMemory", "")),
                "scoredBy": str(one.get("scoredBy", "")),
            }
            for one in status.get("placements") or ()
        ],
        "usage": {
            name: (status.get("usage") or {}).get(name, 0)
            for name in ("gpuSeconds", "energyJoules", "tokens")
        },
        "timeline": _timeline(status),
    }


def _timeline(status: Json) -> list[Json]:
    """Return what changed and when, as the status tells it: conditions, the decision, the last failure and preemption."""
    found = [
        {
            "time": str(one.get("lastTransitionTime", "")),
            "what": f"{one.get('type', '')} {one.get('status', '')}",
            "reason": str(one.get("reason", "")),
            "message": mask(str(one.get("message", ""))),
        }
        for one in status.get("conditions") or ()
    ]
    for name, word in (("decision", "Decision"), ("failure", "Failure"), ("lastPreemption", "Preemption")):
        one = status.get(name) or {}
        if one.get("time"):
            told = one.get("message") or (f"by {one['by']}" if one.get("by") else "")
            found.append(
                {
                    "time": str(one["time"]),
                    "what": word,
                    "reason": str(one.get("reason") or one.get("action") or ""),
                    "message": mask(str(told)),
                }
            )
    return sorted(found, key=lambda one: one["time"], reverse=True)

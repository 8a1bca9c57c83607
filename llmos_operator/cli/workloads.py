"""ModelWorkloads as people read them: one row of what a status says, and the line that says why it waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.cli.render import bar, dig, duration, size
from llmos_operator.clock import parse_rfc3339

if TYPE_CHECKING:
    from llmos_operator.cluster.port import Json


@dataclass(frozen=True, slots=True)
class Step:
    """One condition, as `status` shows it."""

    type: str
    status: str
    reason: str
    message: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """What is worth a line about one ModelWorkload. Text fields are "" and numbers None where nothing is known."""

    namespace: str
    name: str
    type: str
    model: str  # the name clients ask for
    uri: str
    phase: str
    ready: str  # "1/2"
    precision: str
    queue: str
    queue_position: int | None
    priority: str
    nodes: tuple[str, ...]
    scored_by: tuple[str, ...]  # what chose the nodes
    devices: tuple[str, ...]
    reserved: str
    observed: str
    url: str
    load_stage: str
    load_done: int
    load_total: int
    load_eta: str
    reason: str
    message: str
    age_seconds: float
    conditions: tuple[Step, ...]

    @property
    def load(self) -> str:
        """Load progress on one line, "" when nothing is being loaded."""
        if not self.load_stage or self.load_stage == "Ready":
            return ""
        parts = [self.load_stage, bar(self.load_done, self.load_total, 10)]
        if self.load_total > 0:
            parts.append(f"of {size(self.load_total)}")
        if self.load_eta:
            parts.append(f"eta {self.load_eta}")
        return " ".join(part for part in parts if part)


def row(item: Json, now: float) -> WorkloadRow:
    """Read one ModelWorkload; ``now`` is epoch seconds."""
    meta, spec, status = item.get("metadata") or {}, item.get("spec") or {}, item.get("status") or {}
    steps = tuple(_step(entry, now) for entry in dig(status, "conditions", default=[]))
    placements = dig(status, "placements", default=[])
    wanted = spec.get("replicas") if spec.get("replicas") is not None else dig(spec, "scaling", "minReplicas")
    ready = f"{status.get('readyReplicas') or 0}/{wanted if wanted is not None else 1}"
    reason, message = _why(status, steps)
    return WorkloadRow(
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        type=str(spec.get("type", "")),
        model=str(dig(spec, "model", "name") or meta.get("name", "")),
        uri=str(dig(spec, "model", "uri", default="")),
        phase=str(status.get("phase") or "Pending"),
        ready=str(dig(status, "summary", "ready") or ready),
        precision=str(dig(status, "model", "quantization", default="")),
        queue=str(dig(status, "summary", "queue") or spec.get("queueName") or ""),
        queue_position=status.get("queuePosition"),
        priority=str(
            dig(status, "summary", "priority") or dig(spec, "scheduling", "priorityClassName") or ""
        ),
        nodes=tuple(dict.fromkeys(str(place.get("node", "")) for place in placements)),
        scored_by=tuple(
            dict.fromkeys(by for place in placements if (by := str(place.get("scoredBy") or "")))
        ),
        devices=tuple(str(uuid) for place in placements for uuid in place.get("deviceUUIDs") or ()),
        reserved=str(placements[0].get("reservedMemory", "")) if placements else "",
        observed=str(dig(status, "model", "observedMemory", default="")),
        url=str(status.get("url") or ""),
        load_stage=str(dig(status, "load", "stage", default="")),
        load_done=int(dig(status, "load", "bytesDone", default=0)),
        load_total=int(dig(status, "load", "bytesTotal", default=0)),
        load_eta=str(dig(status, "load", "eta", default="")),
        reason=reason,
        message=message,
        age_seconds=age(meta.get("creationTimestamp"), now),
        conditions=steps,
    )


def age(timestamp: object, now: float) -> float:
    """Return seconds since an API timestamp; 0 for an absent one."""
    return max(0.0, now - parse_rfc3339(str(timestamp))) if timestamp else 0.0


def _step(entry: Json, now: float) -> Step:
    return Step(
        type=str(entry.get("type", "")),
        status=str(entry.get("status", "")),
        reason=str(entry.get("reason", "")),
        message=str(entry.get("message", "")),
        age_seconds=age(entry.get("lastTransitionTime"), now),
    )


# In the order in which a workload passes them: the first that is not met says why it is not ready.
_PATH = ("Accepted", "QuotaReserved", "Scheduled", "ModelCached", "ModelLoaded", "Available")


def _why(status: Json, steps: tuple[Step, ...]) -> tuple[str, str]:
    """Return the reason and message that answer "why is it as it is"."""
    by_type = {step.type: step for step in steps}
    suspended = by_type.get("Suspended")
    if suspended is not None and suspended.status == "True":
        return suspended.reason, suspended.message
    ready = by_type.get("Ready")
    if ready is not None and ready.status == "True":
        degraded = by_type.get("Degraded")
        worse = degraded if degraded is not None and degraded.status == "True" else ready
        return worse.reason, worse.message
    for name in _PATH:
        step = by_type.get(name)
        if step is not None and step.status != "True":
            decision = dig(status, "decision", "message", default="")
            return step.reason, step.message or decision
    if ready is not None:
        return ready.reason, ready.message
    return dig(status, "decision", "reason", default=""), dig(status, "decision", "message", default="")


def order(one: WorkloadRow) -> tuple[str, str]:
    """Sort key of tables: namespace, then name."""
    return one.namespace, one.name


def since(one: WorkloadRow) -> str:
    """Age as a cell."""
    return duration(one.age_seconds)

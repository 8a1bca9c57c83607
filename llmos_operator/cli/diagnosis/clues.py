"""One fact each: what the API, the kubelet and the logs say of a workload, in one shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from llmos_operator.cli.render import dig
from llmos_operator.clock import parse_rfc3339
from llmos_operator.observability.masking import mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Json = dict[str, Any]

RECENT_SECONDS = 3600.0  # Events older than this are about something else
LEASE_SECONDS = 30.0
_AGENT_SECONDS = 60.0  # a pod younger than this may still be starting
_TRUE = "True"


class Source(StrEnum):
    """Where a clue comes from."""

    SPEC = "spec"
    CONDITION = "condition"
    DECISION = "decision"
    REJECTION = "rejected nodes"
    FAILURE = "last failure"
    ACTIVITY = "activity"
    POD = "pod"
    CONTAINER = "container"
    EVENT = "event"
    LOG = "log"
    NODE = "node"
    DEVICE = "device"
    AGENT = "agent"
    QUEUE = "queue"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Clue:
    """One fact. `reason` is a CamelCase word; `text` is for people and holds no secret."""

    source: Source
    about: str  # the object, or the type of a condition
    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was fetched, as the API serves it. `unseen`: what the reader may not see, in words."""

    workload: Json
    now: float  # epoch seconds
    pods: Sequence[Json] = ()
    events: Sequence[Json] = ()  # events.k8s.io/v1, of the workload and its pods
    logs: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # "pod" or "pod (previous run)" -> last lines
    nodes: Mapping[str, Json | None] = field(default_factory=dict)  # of the pods; None: it does not exist
    gpu_nodes: Mapping[str, Json | None] = field(default_factory=dict)
    agents: Sequence[Json] | None = None  # agent pods; None: unknown
    queue: Json | None = None
    lease: Json | None = None
    unseen: tuple[str, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether the workload is Ready by a status of its present spec."""
        status = self.workload.get("status") or {}
        current = status.get("observedGeneration") == dig(self.workload, "metadata", "generation")
        return current and any(
            one.get("type") == "Ready" and one.get("status") == _TRUE
            for one in status.get("conditions") or ()
        )


def clues(facts: Facts) -> tuple[Clue, ...]:
    """Return every clue. What happened before a workload became Ready is over: then Events and logs say nothing."""
    found = [*_spec(facts), *_status(facts), *_nodes(facts), *_queue(facts), *_operator(facts)]
    if not facts.serves:
        found += [*_pods(facts), *_events(facts), *_logs(facts)]
    return tuple(found)


def _clue(source: Source, about: object, reason: object, text: object = "") -> Clue:
    return Clue(source, str(about), str(reason), mask(str(text or "")))


def _spec(facts: Facts) -> Iterator[Clue]:
    spec, meta = facts.workload.get("spec") or {}, facts.workload.get("metadata") or {}
    if spec.get("suspend"):
        yield _clue(Source.SPEC, "suspend", "Suspended", "spec.suspend is true")
    if meta.get("deletionTimestamp"):
        yield _clue(Source.SPEC, "deletionTimestamp", "Deleting", f"deleted at {meta['deletionTimestamp']}")


# Conditions that tell of trouble by being True; of the others False does.
_BAD_WHEN_TRUE = frozenset({"Degraded", "Preempted", "Suspended", "Asleep", "Finished"})


def _status(facts: Facts) -> Iterator[Clue]:
    status = facts.workload.get("status") or {}
    generation = dig(facts.workload, "metadata", "generation")
    for one in status.get("conditions") or ():
        kind, value = str(one.get("type", "")), str(one.get("status", ""))
        if kind == "ScalingActive" or (kind == "Progressing" and not facts.serves):
            continue
        if kind in {"Ready", "Progressing"} and facts.serves:
            if kind == "Ready":
                yield _clue(Source.CONDITION, kind, "Ready", one.get("message"))
            continue
        if value == ("True" if kind in _BAD_WHEN_TRUE else "False"):
            yield _clue(Source.CONDITION, kind, one.get("reason", ""), one.get("message"))
    yield from _activity(status.get("activity") or {}, facts)
    decision = status.get("decision") or {}
    if decision.get("reason") and not facts.serves:
        yield _clue(Source.DECISION, "decision", decision["reason"], decision.get("message"))
        for one in decision.get("rejected") or ():
            yield _clue(
                Source.REJECTION, f"{one.get('count', 0)} nodes", one.get("reason", ""), one.get("message")
            )
    failure = status.get("failure") or {}
    if failure.get("reason") and not facts.serves:
        code = f" (exit code {failure['exitCode']})" if failure.get("exitCode") is not None else ""
        yield _clue(Source.FAILURE, "failure", failure["reason"], f"{failure.get('message', '')}{code}")
    if not status or (status.get("observedGeneration") or 0) < (generation or 0):
        yield _clue(Source.OPERATOR, "status", "NotObserved", "the operator has not looked at this spec yet")


def _activity(told: Json, facts: Facts) -> Iterator[Clue]:
    if told.get("state") == "Idle" and facts.serves:
        since = f"since {told['since']}: " if told.get("since") else ""
        yield _clue(Source.ACTIVITY, "activity", "Idle", f"{since}{told.get('message', '')}")


def _pods(facts: Facts) -> Iterator[Clue]:
    for pod in facts.pods:
        name, status = dig(pod, "metadata", "name", default=""), pod.get("status") or {}
        if status.get("phase") == "Failed" and status.get("reason"):
            yield _clue(Source.POD, name, status["reason"], status.get("message"))
        for section in ("initContainerStatuses", "containerStatuses"):
            for one in status.get(section) or ():
                yield from _container(f"{name}/{one.get('name', '')}", one)


def _container(about: str, status: Json) -> Iterator[Clue]:
    waiting = dig(status, "state", "waiting", default={})
    if waiting.get("reason") and waiting["reason"] not in {"ContainerCreating", "PodInitializing"}:
        yield _clue(Source.CONTAINER, about, waiting["reason"], waiting.get("message"))
    restarts = status.get("restartCount") or 0
    for part in ("state", "lastState"):
        ended = dig(status, part, "terminated", default={})
        if ended and ended.get("exitCode") != 0:
            text = f"exit code {ended.get('exitCode')}, {restarts} restarts"
            message = f": {ended['message']}" if ended.get("message") else ""
            yield _clue(Source.CONTAINER, about, ended.get("reason") or "Error", text + message)


def _events(facts: Facts) -> Iterator[Clue]:
    for one in sorted(facts.events, key=_event_time, reverse=True):
        if one.get("type") == "Warning" and facts.now - _event_time(one) <= RECENT_SECONDS:
            about = f"{dig(one, 'regarding', 'kind', default='')}/{dig(one, 'regarding', 'name', default='')}"
            yield _clue(Source.EVENT, about, one.get("reason", ""), one.get("note"))


def _event_time(event: Json) -> float:
    """Return when it was seen last, in epoch seconds. The kubelet still fills the deprecated fields only."""
    for text in (
        dig(event, "series", "lastObservedTime"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        dig(event, "metadata", "creationTimestamp"),
    ):
        if text:
            return parse_rfc3339(str(text))
    return 0.0


def _logs(facts: Facts) -> Iterator[Clue]:
    for about, lines in facts.logs.items():
        for line in reversed(lines):
            if line.strip():
                yield _clue(Source.LOG, about, "Line", line.strip()[:500])


def _nodes(facts: Facts) -> Iterator[Clue]:
    for name, node in facts.nodes.items():
        if node is None:
            yield _clue(Source.NODE, name, "NodeGone", f"node {name} does not exist any more")
            continue
        ready = _condition(node, "Ready")
        if ready.get("status") != _TRUE:
            yield _clue(
                Source.NODE, name, "NodeNotReady", ready.get("message") or f"node {name} is not Ready"
            )
        if dig(node, "spec", "unschedulable"):
            yield _clue(Source.NODE, name, "Cordoned", f"node {name} takes no new pods")
    used = {
        uuid
        for place in dig(facts.workload, "status", "placements", default=[])
        for uuid in place.get("deviceUUIDs") or ()
    }
    for name, node in facts.gpu_nodes.items():
        known = {str(one.get("uuid")): one for one in dig(node, "status", "devices", default=[])}
        for uuid in sorted(used & known.keys()):
            health = known[uuid].get("health") or {}
            if health.get("verdict") in {"Unhealthy", "Degraded"}:
                text = f"{known[uuid].get('product', '')} {uuid} of node {name} is {health['verdict']}: {health.get('reason', '')}"
                yield _clue(Source.DEVICE, uuid, f"Device{health['verdict']}", text)
    yield from _agents(facts)


def _agents(facts: Facts) -> Iterator[Clue]:
    if facts.agents is None:
        return
    by_node = {str(dig(pod, "spec", "nodeName", default="")): pod for pod in facts.agents}
    for name, node in facts.gpu_nodes.items():
        if node is None:
            continue
        agent = by_node.get(name)
        if agent is None:
            yield _clue(
                Source.AGENT,
                name,
                "AgentMissing",
                f"no agent runs on node {name}: nobody measures its devices",
            )
        elif not _is_ready(agent) and facts.now - _created(agent) > _AGENT_SECONDS:
            pod = dig(agent, "metadata", "name", default="")
            yield _clue(Source.AGENT, name, "AgentNotReady", f"agent {pod} on node {name} is not Ready")


def _condition(item: Json, kind: str) -> Json:
    conditions: list[Json] = dig(item, "status", "conditions", default=[])
    return next((one for one in conditions if one.get("type") == kind), {})


def _is_ready(pod: Json) -> bool:
    return bool(_condition(pod, "Ready").get("status") == _TRUE)


def _created(item: Json) -> float:
    text = dig(item, "metadata", "creationTimestamp")
    return parse_rfc3339(str(text)) if text else 0.0


def _queue(facts: Facts) -> Iterator[Clue]:
    if facts.queue is None:
        return
    name = dig(facts.queue, "metadata", "name", default="")
    for one in dig(facts.queue, "status", "conditions", default=[]):
        if one.get("type") == "Ready" and one.get("status") == "False":
            yield _clue(Source.QUEUE, name, one.get("reason", ""), one.get("message"))


def _operator(facts: Facts) -> Iterator[Clue]:
    if facts.lease is None:
        return
    holder, renewed = dig(facts.lease, "spec", "holderIdentity"), dig(facts.lease, "spec", "renewTime")
    age = facts.now - parse_rfc3339(str(renewed)) if renewed else None
    if not holder or age is None:
        yield _clue(Source.OPERATOR, "lease", "NoLeader", "no operator holds the lease")
    elif age > LEASE_SECONDS:
        yield _clue(
            Source.OPERATOR,
            "lease",
            "NoLeader",
            f"{holder} renewed the lease {age:.0f} s ago for the last time",
        )

"""`llmos diagnose mw/NAME`: one verdict on what is wrong, what speaks for it, and what to do.

Reads what the caller may read and says what it may not. Nothing is changed and nothing of a Secret is read; what logs and
messages show of credentials is masked (`observability.masking`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from llmos_operator.api import names
from llmos_operator.cli import render, session, workloads
from llmos_operator.cli.devices import AGENT_LABELS
from llmos_operator.cli.diagnosis.clues import Clue, Facts, clues
from llmos_operator.cli.diagnosis.verdict import Finding, judge
from llmos_operator.cli.options import AsJson, Context, Kubeconfig, Namespace, Target, workload_name
from llmos_operator.cli.render import dig
from llmos_operator.clock import SystemClock
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import Forbidden, NotFound
from llmos_operator.errors import LlmosError
from llmos_operator.observability.masking import mask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from rich.console import Console

    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json

T = TypeVar("T")

PODS = 4  # whose logs are read: those that do not serve first
LINES = 40  # read of each log
SHOWN_LINES = 8
_LOG_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause as it is told."""

    cause: str
    verdict: str
    trouble: bool
    evidence: tuple[Clue, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What `llmos diagnose --json` prints."""

    workload: str  # namespace/name
    phase: str
    ready: str
    verdict: Cause
    others: tuple[Cause, ...]
    logs: dict[str, tuple[str, ...]]
    unseen: tuple[str, ...]


def command(
    workload: Annotated[str, typer.Argument(help="mw/NAME")],
    namespace: Namespace = "",
    as_json: AsJson = False,
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Say what is wrong with one workload, what speaks for it, and what to do."""
    name, now = workload_name(workload), SystemClock().now()
    facts = session.run(Target(kubeconfig, context, namespace), lambda one: collect(one, name, now))
    found = report(facts)
    if as_json:
        render.print_json(found)
    else:
        show(render.console(), found)


class _Reader:
    """Reads for one diagnosis; what is forbidden is noted instead of ending it."""

    def __init__(self, connected: Session) -> None:
        self._connected = connected
        self.unseen: list[str] = []

    async def all(self, kind: port.Kind, namespace: str = "", labels: str = "") -> list[Json] | None:
        return await self._allowed(
            f"{kind.plural} of {namespace or 'the cluster'}",
            self._connected.every(kind, namespace=namespace, labels=labels),
        )

    async def one(self, kind: port.Kind, name: str, namespace: str = "") -> tuple[bool, Json | None]:
        """Return whether it could be looked for, and the object, None if it does not exist."""

        async def read() -> tuple[bool, Json | None]:
            try:
                return True, await self._connected.transport.get(kind, name, namespace=namespace)
            except NotFound:
                return True, None

        return await self._allowed(f"{kind.plural}/{name}", read()) or (False, None)

    async def log(self, pod: Json, container: str, *, previous: bool) -> list[str]:
        """Return the last lines of a container, none where there is no log."""
        meta = pod["metadata"]
        path = port.PODS.path(meta["namespace"], meta["name"], "log")
        query = {"container": container, "tailLines": str(LINES), "limitBytes": str(_LOG_BYTES)}
        query |= {"previous": "true"} if previous else {}
        try:
            async with self._connected.transport.open("GET", path, query=query) as response:
                text = await response.read()
                if response.status == HTTPStatus.FORBIDDEN:
                    self.unseen.append(f"logs of {meta['namespace']}")
                # Any other error: not started yet, gone already, or the node does not answer.
                return text.decode(errors="replace").splitlines() if response.status == HTTPStatus.OK else []
        except LlmosError:
            return []

    async def _allowed(self, what: str, reading: Awaitable[T]) -> T | None:
        try:
            return await reading
        except Forbidden:
            self.unseen.append(what)
            return None


async def collect(connected: Session, name: str, now: float) -> Facts:
    """Fetch everything that speaks of one workload. Raises `CommandFailed` if there is no such workload."""
    item = await connected.workload(name)
    namespace, uid = connected.namespace, str(item["metadata"]["uid"])
    reader = _Reader(connected)
    queue = str(
        dig(item, "status", "summary", "queue") or dig(item, "spec", "queueName") or names.DEFAULT_QUEUE
    )
    pods, events, agents, lease, of_queue = await asyncio.gather(
        reader.all(port.PODS, namespace, f"{names.LABEL_WORKLOAD_UID}={uid}"),
        reader.all(port.EVENTS, namespace),
        reader.all(port.PODS, names.SYSTEM_NAMESPACE, AGENT_LABELS),
        reader.one(port.LEASES, names.LEASE_NAME, names.SYSTEM_NAMESPACE),
        reader.one(port.WORKLOAD_QUEUES, queue),
    )
    pods = pods or []
    about = {uid, *(str(pod["metadata"]["uid"]) for pod in pods)}
    hosts = sorted({host for pod in pods if (host := str(dig(pod, "spec", "nodeName", default="")))})
    nodes = dict(
        zip(hosts, await asyncio.gather(*(reader.one(port.NODES, one) for one in hosts)), strict=True)
    )
    devices = dict(
        zip(hosts, await asyncio.gather(*(reader.one(port.GPU_NODES, one) for one in hosts)), strict=True)
    )
    looked, holder = lease
    return Facts(
        workload=item,
        now=now,
        pods=pods,
        events=[one for one in events or () if str(dig(one, "regarding", "uid", default="")) in about],
        logs=await _logs(reader, pods),
        nodes={host: found for host, (seen, found) in nodes.items() if seen},
        gpu_nodes={host: found for host, (seen, found) in devices.items() if seen},
        agents=agents,
        queue=of_queue[1],
        lease=(holder or {}) if looked else None,
        unseen=tuple(dict.fromkeys(reader.unseen)),
    )


async def _logs(reader: _Reader, pods: Iterable[Json]) -> dict[str, list[str]]:
    """Return the last lines of the containers that do not run as they should, and of what they ended with before."""
    wanted: list[tuple[str, Json, str, bool]] = []
    for pod in list(pods)[:PODS]:
        status = pod.get("status") or {}
        for section in ("initContainerStatuses", "containerStatuses"):
            for one in status.get(section) or ():
                about = f"{pod['metadata']['name']}/{one.get('name', '')}"
                ended = dig(one, "state", "terminated", "exitCode", default=0)
                if one.get("ready") or (dig(one, "state", "terminated") is not None and not ended):
                    continue
                wanted.append((about, pod, str(one.get("name", "")), False))
                if one.get("restartCount"):
                    wanted.append((f"{about} (run before)", pod, str(one.get("name", "")), True))
    texts = await asyncio.gather(*(reader.log(pod, name, previous=old) for _, pod, name, old in wanted))
    return {about: lines for (about, *_), lines in zip(wanted, texts, strict=True) if lines}


def report(facts: Facts) -> Report:
    """Judge the facts and put the verdict into words."""
    row = workloads.row(facts.workload, facts.now)
    found = judge(clues(facts))
    words = {"workload": row.name, "namespace": row.namespace}
    first = _told(found.verdict, words)
    logs = {about: tuple(mask(line) for line in lines[-SHOWN_LINES:]) for about, lines in facts.logs.items()}
    return Report(
        workload=f"{row.namespace}/{row.name}",
        phase=row.phase,
        ready=row.ready,
        verdict=first,
        others=tuple(_told(one, words) for one in found.others),
        logs=logs if first.trouble else {},
        unseen=facts.unseen,
    )


def _told(finding: Finding, words: dict[str, str]) -> Cause:
    cause = finding.cause
    steps = tuple(step.format(**words) for step in cause.steps)
    return Cause(cause.name, cause.verdict, cause.trouble, finding.evidence, steps)


def show(console: Console, found: Report) -> None:
    """Print the verdict first, then why, then what to do."""
    console.print(f"{found.workload}  {found.phase}, {found.ready} ready")
    console.print(f"\n{found.verdict.cause}: {found.verdict.verdict}")
    _evidence(console, found.verdict)
    if found.verdict.next_steps:
        console.print("\nwhat to do:")
        for step in found.verdict.next_steps:
            console.print(f"  - {step}")
    for one in found.others:
        console.print(f"\nalso {one.cause}: {one.verdict}")
        _evidence(console, one)
    for about, lines in found.logs.items():
        console.print(f"\nlast lines of {about}:")
        for line in lines:
            console.print(f"  | {line}")
    if found.unseen:
        console.print(f"\nnot allowed to see: {', '.join(found.unseen)}")


def _evidence(console: Console, cause: Cause) -> None:
    for clue in cause.evidence:
        text = f": {clue.text}" if clue.text else ""
        reason = "" if clue.reason == "Line" else f" {clue.reason}"
        console.print(f"  {clue.source.value} {clue.about}{reason}{text}")

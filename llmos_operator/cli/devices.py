"""Devices as people read them: what is reserved (from the API), what is used (from the agents), and by whom.

The API server holds no samples, so use and utilisation are read from each node's agent, from the same metrics that
Prometheus scrapes. An agent that does not answer leaves its devices without measurements; it does not fail a command.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.cli import reach
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.render import bytes_of, dig
from llmos_operator.cluster import port
from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json

AGENT_LABELS = "app.kubernetes.io/component=agent"
METRIC_USED = "llmos_gpu_memory_used_bytes"
METRIC_UTILIZATION = "llmos_gpu_utilization_ratio"
_AGENT_SECONDS = 3.0
_SAMPLE = re.compile(r"^(?P<name>[a-z_:]+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$")
_LABEL = re.compile(r'(?P<name>[a-zA-Z_]+)="(?P<value>[^"]*)"')


@dataclass(frozen=True, slots=True)
class Measured:
    """What an agent measured of one device; None is unknown, never 0."""

    used_bytes: int | None = None
    utilization: float | None = None  # 0..1


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device."""

    node: str
    index: int
    uuid: str
    product: str
    mig_profile: str  # of a MIG instance, "" of a whole device
    memory_bytes: int
    reserved_bytes: int
    used_bytes: int | None
    utilization: float | None
    health: str
    health_reason: str
    tenants: tuple[str, ...]  # "namespace/workload"


def parse_metrics(text: str) -> dict[str, Measured]:
    """Return what a scrape of an agent says, by device UUID."""
    used: dict[str, int] = {}
    busy: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match["name"] not in {METRIC_USED, METRIC_UTILIZATION}:
            continue
        uuid = next(
            (label["value"] for label in _LABEL.finditer(match["labels"]) if label["name"] == "uuid"), ""
        )
        if match["name"] == METRIC_USED:
            used[uuid] = int(float(match["value"]))
        else:
            busy[uuid] = float(match["value"])
    return {uuid: Measured(used.get(uuid), busy.get(uuid)) for uuid in used | busy}


async def measure(connected: Session) -> dict[str, Measured]:
    """Ask every agent; return what they measured, by device UUID."""
    agents = await connected.every(port.PODS, namespace=names.SYSTEM_NAMESPACE, labels=AGENT_LABELS)
    answers = await asyncio.gather(*(_scrape(connected, agent) for agent in agents))
    return {uuid: seen for answer in answers for uuid, seen in answer.items()}


async def _scrape(connected: Session, agent: Json) -> dict[str, Measured]:
    endpoint = reach.pod(connected, agent, names.PORT_HEALTH)
    if endpoint is None:
        return {}
    try:
        async with asyncio.timeout(_AGENT_SECONDS), endpoint.open("GET", "/metrics") as response:
            if response.status != HTTPStatus.OK:
                return {}
            return parse_metrics(await response.text())
    except (LlmosError, CommandFailed, TimeoutError):
        return {}  # shown as unknown


def tenants(pods: Iterable[Json]) -> dict[str, list[str]]:
    """Return the workloads on each device, by UUID, from the claims that live pods carry."""
    found: dict[str, list[str]] = {}
    for pod in pods:
        claim = dig(pod, "metadata", "annotations", names.ANNOTATION_CLAIM)
        if not claim or dig(pod, "status", "phase") in {"Succeeded", "Failed"}:
            continue
        try:
            fields = json.loads(claim)
        except ValueError:
            continue  # a claim somebody edited; the operator reports it, a table is not the place
        for uuid in fields.get("devices") or ():
            found.setdefault(str(uuid), []).append(str(fields.get("workload", "")))
    return found


def rows(
    nodes: Iterable[Json], held: Mapping[str, list[str]], measured: Mapping[str, Measured]
) -> list[DeviceRow]:
    """Return one row a device, by node and index."""
    found = []
    for node in nodes:
        ledger = {
            str(entry.get("uuid")): bytes_of(entry.get("reserved")) or 0
            for entry in dig(node, "status", "ledger", "devices", default=[])
        }
        for device in dig(node, "status", "devices", default=[]):
            uuid = str(device.get("uuid", ""))
            seen = measured.get(uuid, Measured())
            found.append(
                DeviceRow(
                    node=str(dig(node, "metadata", "name", default="")),
                    index=int(device.get("index") or 0),
                    uuid=uuid,
                    product=str(device.get("product", "")),
                    mig_profile=str(device.get("migProfile", "")),
                    memory_bytes=bytes_of(device.get("memory")) or 0,
                    reserved_bytes=ledger.get(uuid, 0),
                    used_bytes=seen.used_bytes,
                    utilization=seen.utilization,
                    health=str(dig(device, "health", "verdict", default="Unknown")),
                    health_reason=str(dig(device, "health", "reason", default="")),
                    tenants=tuple(sorted(held.get(uuid, ()))),
                )
            )
    return sorted(found, key=lambda row: (row.node, row.index))

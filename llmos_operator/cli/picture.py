"""The cluster as the scheduler sees it, read once from the API: what `explain` asks its questions of.

It is the operator's own path (convert, store, snapshot), so the answer is the operator's. What the operator knows
beyond the API (back-offs in progress, moments since a start) is not in it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from llmos_operator.api import names
from llmos_operator.cli import devices
from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.render import dig
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import Forbidden, NotFound
from llmos_operator.control.policies import policy_of
from llmos_operator.errors import LlmosError
from llmos_operator.settings import OperatorSettings
from llmos_operator.state import convert
from llmos_operator.state.store import REQUIRED, Store
from llmos_operator.state.telemetry import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json
    from llmos_operator.scheduler.policy import Policy

_CONFIG_MAPS = port.Kind("", "v1", "configmaps", "ConfigMap")
_CONFIG_NAME = "llmos-operator"  # as the chart names it


@dataclass(frozen=True, slots=True)
class Picture:
    """What was read: a store that is synced, the raw objects by kind, and why some were left out, by kind and key."""

    store: Store
    listed: Mapping[port.Kind, list[Json]]
    left_out: Mapping[str, str]


async def policy(connected: Session) -> Policy:
    """Return the policy the operator decides by."""
    return policy_of(await settings(connected))


async def settings(connected: Session) -> OperatorSettings:
    """Return the operator's settings from its settings file; the defaults where that cannot be read."""
    try:
        found = await connected.transport.get(_CONFIG_MAPS, _CONFIG_NAME, namespace=names.SYSTEM_NAMESPACE)
        text = str(dig(found, "data", "config.yaml", default=""))
        return OperatorSettings.model_validate(yaml.safe_load(text) or {})
    except (NotFound, Forbidden):
        return OperatorSettings()
    except (ValidationError, yaml.YAMLError) as error:
        where = f"ConfigMap {names.SYSTEM_NAMESPACE}/{_CONFIG_NAME}"
        raise CommandFailed(f"{where} holds settings this version cannot read: {error}") from error


async def take(connected: Session, now: float) -> Picture:
    """Read the cluster."""
    readers: dict[port.Kind, Callable[[Store, Json], Any]] = {
        port.NODES: lambda store, item: store.apply_node(convert.node(item)),
        port.GPU_NODES: lambda store, item: store.apply_gpu_node(convert.gpu_node(item)),
        port.WORKLOAD_QUEUES: lambda store, item: store.apply_queue(convert.queue(item)),
        port.MODEL_PROFILES: lambda store, item: store.apply_profile(convert.profile(item)),
        port.PRIORITY_CLASSES: lambda store, item: store.apply_priority_class(convert.priority_class(item)),
        port.POD_DISRUPTION_BUDGETS: lambda store, item: store.apply_budget(convert.disruption_budget(item)),
        port.NAMESPACES: lambda store, item: store.apply_namespace(convert.namespace(item)),
        port.MODEL_WORKLOADS: lambda store, item: store.apply_workload(convert.workload(item)),
        port.PODS: lambda store, item: store.apply_pod(convert.pod(item, holders_in=names.SYSTEM_NAMESPACE)),
    }
    listed, measured = await asyncio.gather(connected.several(*readers), devices.measure(connected))
    store = Store()
    left_out: dict[str, str] = {}
    for kind, read in readers.items():
        for item in listed[kind]:
            try:
                read(store, item)
            except LlmosError as error:
                meta = item.get("metadata") or {}
                left_out[f"{kind.kind} {meta.get('namespace', '')}/{meta.get('name', '')}"] = str(error)
    for required in REQUIRED:
        store.mark_synced(required)
    _observe(store, listed[port.GPU_NODES], measured, now)
    return Picture(store, listed, left_out)


def _observe(store: Store, nodes: Iterable[Json], measured: dict[str, devices.Measured], now: float) -> None:
    for row_node in nodes:
        readings = [
            Reading(row.uuid, row.used_bytes, row.memory_bytes)
            for row in devices.rows([row_node], {}, measured)
            if row.uuid in measured
        ]
        if readings:
            store.observe(str(row_node["metadata"]["name"]), readings, now)

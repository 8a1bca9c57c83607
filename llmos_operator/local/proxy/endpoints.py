"""Which pods answer for a Service's port. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]
Address = tuple[str, int]


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Return whether labels match a Service's selector; an empty selector matches nothing."""
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def is_endpoint(pod: Json, *, unready_too: bool) -> bool:
    """Return whether a pod takes connections: it has an address, is not being deleted, and is Ready."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp") or not status.get("podIP"):
        return False
    if status.get("phase") in {"Succeeded", "Failed"}:
        return False
    ready = any(
        entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions") or []
    )
    return ready or unready_too


def target_port(pod: Json, port: Json) -> int | None:
    """Return the pod's port a Service port leads to; a name is looked up in the pod's containers."""
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for entry in container.get("ports") or []:
            if entry.get("name") == target:
                return int(entry["containerPort"])
    return None


def endpoints_of(service: Json, port: Json, pods: Iterable[Json]) -> tuple[Address, ...]:
    """Return where connections to a Service's port may go, in order of address."""
    spec, namespace = service["spec"], service["metadata"]["namespace"]
    found = []
    for pod in pods:
        meta = pod["metadata"]
        if meta["namespace"] != namespace or not selects(
            spec.get("selector") or {}, meta.get("labels") or {}
        ):
            continue
        if not is_endpoint(pod, unready_too=bool(spec.get("publishNotReadyAddresses"))):
            continue
        number = target_port(pod, port)
        if number is not None:
            found.append((pod["status"]["podIP"], number))
    return tuple(sorted(found))

"""`GET /v1/models`: every workload a client may use, under the shortest name that reaches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.gateway.answers import json_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from llmos_operator.gateway.catalog import Catalog, Route, Workload, WorkloadKey

    Allowed = Callable[[WorkloadKey], bool]


def list_models(catalog: Catalog, allowed: Allowed) -> web.Response:
    """Return all models as OpenAI's list object; `llmos` adds what that shape has no place for."""
    visible = sorted((w for w in catalog.workloads() if allowed(w.key)), key=lambda w: w.key)
    entries = [
        entry for w in visible for entry in (_entry(catalog, w, allowed), *_adapters(catalog, w, allowed))
    ]
    return json_response({"object": "list", "data": entries})


def describe_model(catalog: Catalog, route: Route, allowed: Allowed) -> web.Response:
    """Return one model."""
    entry = _entry(catalog, route.lead, allowed)
    if route.adapter:
        entry |= _adapter(catalog, route.lead, route.adapter, allowed)
    return json_response(entry)


def _entry(catalog: Catalog, workload: Workload, allowed: Allowed) -> dict[str, Any]:
    ready = len(catalog.replicas(workload.uid))
    return {
        "id": catalog.public_name(workload, allowed),
        "object": "model",
        "created": workload.created,
        "owned_by": workload.key.namespace,
        "llmos": {"workload": str(workload.key), "readyReplicas": ready, "state": _state(workload, ready)},
    }


def _adapters(catalog: Catalog, workload: Workload, allowed: Allowed) -> list[dict[str, Any]]:
    entry = _entry(catalog, workload, allowed)
    found = [entry | _adapter(catalog, workload, name, allowed) for name in workload.adapters]
    return [one for one in found if one["id"]]


def _adapter(catalog: Catalog, workload: Workload, name: str, allowed: Allowed) -> dict[str, Any]:
    """Return what differs for an adapter; ``parent`` is its base model, as vLLM lists it."""
    parent = catalog.public_name(workload, allowed)
    return {"id": catalog.adapter_name(workload, name, allowed), "parent": parent}


def _state(workload: Workload, ready: int) -> str:
    if ready:
        return "Ready"
    if workload.suspended:
        return "Suspended"
    return "Failed" if workload.failure else "NotReady"

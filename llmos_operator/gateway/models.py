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
    return json_response({"object": "list", "data": [_entry(catalog, w, allowed) for w in visible]})


def describe_model(catalog: Catalog, route: Route, allowed: Allowed) -> web.Response:
    """Return one model."""
    return json_response(_entry(catalog, route.lead, allowed))


def _entry(catalog: Catalog, workload: Workload, allowed: Allowed) -> dict[str, Any]:
    ready = len(catalog.replicas(workload.uid))
    return {
        "id": catalog.public_name(workload, allowed),
        "object": "model",
        "created": workload.created,
        "owned_by": workload.key.namespace,
        "llmos": {"workload": str(workload.key), "readyReplicas": ready, "state": _state(workload, ready)},
    }


def _state(workload: Workload, ready: int) -> str:
    if ready:
        return "Ready"
    if workload.suspended:
        return "Suspended"
    return "Failed" if workload.failure else "NotReady"

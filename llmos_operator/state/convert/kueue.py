"""Workloads and ResourceFlavors of Kueue.

Source: kubernetes-sigs/kueue v0.17.0, apis/kueue/v1beta2/workload_types.go and resourceflavor_types.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api import names
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.selectors import map_selector, tolerations
from llmos_operator.state.reservation import Reservation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmos_operator.state.types import Requirement, Toleration

_CONDITION_FIELDS: Final = ("type", "status", "reason", "message", "lastTransitionTime")


def reservation(obj: Mapping[str, Any]) -> Reservation:
    """Return what a Workload says. Permanent(InvalidSpec) names the field that cannot be read."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    conditions = {one.required("type"): one for one in status.objects("conditions")}
    evicted = conditions["Evicted"] if _holds(conditions, "Evicted") else None
    reserved = conditions.get("QuotaReserved")
    return Reservation(
        name=meta.required("name"),
        namespace=meta.required("namespace"),
        uid=meta.required("uid"),
        version=meta.text("resourceVersion"),
        owner=next((one.text("uid") for one in meta.objects("ownerReferences") if _is_owner(one)), ""),
        queue=spec.text("queueName"),
        priority=spec.child("priorityClassRef").text("name"),
        asked=meta.labels("annotations").get(names.ANNOTATION_ASKED, ""),
        pods=sum(one.number("count") for one in spec.objects("podSets")),
        active=spec.flag("active", default=True),
        reserved=_holds(conditions, "QuotaReserved"),
        admitted=_holds(conditions, "Admitted"),
        evicted=evicted.text("reason", "Evicted") if evicted is not None else "",
        finished=_holds(conditions, "Finished"),
        ready=_holds(conditions, "PodsReady"),
        message=(evicted or reserved or Fields({})).text("message"),
        flavors=_flavors(status.child("admission")),
        updates=tuple(_updates(status)),
        conditions=tuple(
            tuple((name, one.text(name)) for name in _CONDITION_FIELDS) for one in conditions.values()
        ),
    )


def _is_owner(reference: Fields) -> bool:
    return reference.text("kind") == "ModelWorkload" and reference.text("apiVersion") == names.API_VERSION


def _holds(conditions: Mapping[str, Fields], kind: str) -> bool:
    found = conditions.get(kind)
    return found is not None and found.text("status") == "True"


def _flavors(admission: Fields) -> tuple[str, ...]:
    found = {
        name: None
        for one in admission.objects("podSetAssignments")
        for name in one.labels("flavors").values()
    }
    return tuple(found)


def _updates(status: Fields) -> Iterator[Requirement]:
    for check in status.objects("admissionChecks"):
        for update in check.objects("podSetUpdates"):
            yield from map_selector(update, "nodeSelector").requirements


def flavor(obj: Mapping[str, Any]) -> tuple[tuple[Requirement, ...], tuple[Toleration, ...]]:
    """Return the labels nodes of a ResourceFlavor have, and what it tolerates in the name of what runs there."""
    spec = Fields(obj).child("spec")
    return map_selector(spec, "nodeLabels").requirements, tolerations(spec)

"""ResourceSlice and ResourceClaim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.slices import DRIVER, Allocation, Handle, Slice, SliceDevice

if TYPE_CHECKING:
    from collections.abc import Mapping


def resource_slice(obj: Mapping[str, Any]) -> Slice:
    """Return a Slice from its JSON. One of another driver, or of no single node, has no devices for us."""
    root = Fields(obj)
    spec = root.child("spec")
    pool, driver = spec.child("pool"), spec.text("driver")
    devices = spec.objects("devices") if driver == DRIVER else iter(())
    return Slice(
        name=root.child("metadata").required("name"),
        node=spec.text("nodeName"),
        pool=pool.text("name"),
        driver=driver,
        generation=pool.number("generation"),
        devices=tuple(_device(one) for one in devices),
    )


def _device(fields: Fields) -> SliceDevice:
    attributes = fields.child("attributes")
    uuid = next(
        (
            attributes.child(key).text("string")
            for key in ("uuid", f"{DRIVER}/uuid")  # a name without a domain is of the driver's own
            if attributes.has(key)
        ),
        "",
    )
    return SliceDevice(
        name=fields.required("name"),
        uuid=uuid,
        counter_sets=frozenset(one.required("counterSet") for one in fields.objects("consumesCounters")),
        reserved=any(fields.has(key) for key in ("taints", "bindingConditions", "bindsToNode"))
        or fields.flag("allowMultipleAllocations"),
    )


def resource_claim(obj: Mapping[str, Any]) -> Allocation:
    """Return what a ResourceClaim has. Devices an administrator looks at, beside whoever has them, do not count."""
    root = Fields(obj)
    meta = root.child("metadata")
    status = root.child("status")
    results = status.child("allocation").child("devices").objects("results")
    ours = meta.labels("labels").get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
    pod = meta.child("annotations").text(names.ANNOTATION_CLAIM_POD) if ours else ""
    return Allocation(
        key=f"{meta.text('namespace')}/{meta.required('name')}",
        handles=tuple(
            Handle(one.text("driver"), one.text("pool"), one.text("device"))
            for one in results
            if not one.flag("adminAccess")
        ),
        pod=f"{meta.text('namespace')}/{pod}" if pod else "",
        users=tuple(one.text("uid") for one in status.objects("reservedFor")) if pod else (),
    )

"""Node and GPUNode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.quantity import parse_bytes, parse_compute_capability, parse_count, parse_milli
from llmos_operator.api.telemetry import Verdict
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.types import Device, GpuNode, Link, Node, Taint

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_PODS = 110


def node(obj: Mapping[str, Any]) -> Node:
    """Return a Node from its JSON. Without an allocatable part it can hold nothing."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    allocatable = status.child("allocatable")
    return Node(
        name=meta.required("name"),
        uid=meta.text("uid"),
        ready=condition_true(status, "Ready"),
        unschedulable=spec.flag("unschedulable"),
        labels=meta.labels("labels"),
        taints=tuple(
            Taint(t.text("key"), t.text("value"), t.text("effect", "NoSchedule"))
            for t in spec.objects("taints")
        ),
        cpu_milli=allocatable.parsed("cpu", parse_milli, 0),
        memory_bytes=allocatable.parsed("memory", parse_bytes, 0),
        pods=allocatable.parsed("pods", parse_count, _DEFAULT_PODS),
        gpus=allocatable.parsed(names.RESOURCE_GPU, parse_count, 0),
    )


def condition_true(status: Fields, kind: str) -> bool:
    """Return whether a condition of that type has status True."""
    return any(c.get("type") == kind and c.get("status") == "True" for c in status.items("conditions"))


def gpu_node(obj: Mapping[str, Any]) -> GpuNode:
    """Return a GpuNode from its JSON; devices in index order, then UUID."""
    root = Fields(obj)
    status = root.child("status")
    devices = sorted((_device(d) for d in status.objects("devices")), key=lambda d: (d.index, d.uuid))
    return GpuNode(
        name=root.child("metadata").required("name"),
        devices=tuple(devices),
        driver=status.text("driver"),
        mode=status.text("mode", "nvml"),
    )


def _device(fields: Fields) -> Device:
    health = fields.child("health")
    return Device(
        uuid=fields.required("uuid"),
        index=fields.number("index"),
        product=fields.text("product"),
        memory_bytes=fields.parsed("memory", parse_bytes, 0),
        compute_capability=fields.parsed("computeCapability", _capability, (0, 0)),
        mig=fields.flag("mig"),
        verdict=health.choice("verdict", Verdict, Verdict.UNKNOWN),
        reason=health.text("reason"),
        numa=fields.number("numaNode", least=-1) if fields.has("numaNode") else None,
        links=tuple(Link(one.required("uuid"), one.text("type")) for one in fields.objects("links")),
        holders=tuple(sorted({one.required("pod") for one in fields.objects("holders")})),
    )


def _capability(text: str) -> tuple[int, int]:
    return parse_compute_capability(text) if text else (0, 0)

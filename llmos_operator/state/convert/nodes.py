"""Node and GPUNode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.mig import parse_profile
from llmos_operator.api.quantity import parse_bytes, parse_compute_capability, parse_count, parse_milli
from llmos_operator.api.telemetry import Verdict
from llmos_operator.clock import parse_rfc3339
from llmos_operator.state.care import Care, Phase, Treatment
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.partitions import partitions
from llmos_operator.state.cutting import load
from llmos_operator.state.power import is_watts
from llmos_operator.state.types import FULL_MILLI, Device, GpuNode, Link, Node, Taint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.mig import MigProfile
    from llmos_operator.state.cutting import Recut

_DEFAULT_PODS = 110
_MILLI = 1000
_MOST_MILLIWATTS = 1 << 31  # of a device


def node(obj: Mapping[str, Any]) -> Node:
    """Return a Node from its JSON. Without an allocatable part it can hold nothing."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    allocatable = status.child("allocatable")
    labels = meta.labels("labels")
    return Node(
        name=meta.required("name"),
        uid=meta.text("uid"),
        ready=condition_true(status, "Ready"),
        unschedulable=spec.flag("unschedulable"),
        labels=labels,
        taints=tuple(
            Taint(t.text("key"), t.text("value"), t.text("effect", "NoSchedule"))
            for t in spec.objects("taints")
        ),
        cpu_milli=allocatable.parsed("cpu", parse_milli, 0),
        memory_bytes=allocatable.parsed("memory", parse_bytes, 0),
        pods=allocatable.parsed("pods", parse_count, _DEFAULT_PODS),
        gpus=allocatable.parsed(names.RESOURCE_GPU, parse_count, 0),
        partitions=partitions(allocatable),
        power_milliwatts=_budget(labels.get(names.LABEL_POWER_BUDGET)),
        rack_milliwatts=_budget(labels.get(names.LABEL_RACK_POWER_BUDGET)),
        recut=_recut(meta.child("annotations")),
    )


def _budget(watts: str | None) -> int | None:
    """Return milliwatts. Whoever set a budget wants one: what cannot be read allows nothing new, and the filter says why."""
    if watts is None:
        return None
    return int(watts) * _MILLI if is_watts(watts) else 0


def _recut(annotations: Fields) -> Recut | None:
    """Return what was asked of mig-manager. An annotation somebody changed says nothing: its labels hold the node all the same."""
    try:
        return load(annotations.text(names.ANNOTATION_MIG_RECUT))
    except (ValueError, TypeError, RecursionError):
        return None


def condition_true(status: Fields, kind: str) -> bool:
    """Return whether a condition of that type has status True."""
    return any(c.get("type") == kind and c.get("status") == "True" for c in status.items("conditions"))


def gpu_node(obj: Mapping[str, Any]) -> GpuNode:
    """Return a GpuNode from its JSON; devices in index order, then UUID, each once however often it is told."""
    root = Fields(obj)
    status = root.child("status")
    models = status.objects("models")
    told = {one.uuid: one for one in map(_device, status.objects("devices"))}
    devices = sorted(told.values(), key=lambda d: (d.index, d.uuid))
    return GpuNode(
        name=root.child("metadata").required("name"),
        devices=tuple(devices),
        driver=status.text("driver"),
        mode=status.text("mode", "nvml"),
        care=_care(status.child("care")),
        models=frozenset(one.required("key") for one in models if one.text("state") == "Ready"),
        coming=frozenset(one.required("key") for one in models if one.text("state") == "Downloading"),
        told=condition_true(status, "AllocationsKnown"),
    )


def _care(fields: Fields) -> Care:
    treatments = sorted((_treatment(one) for one in fields.objects("treatments")), key=lambda t: t.target)
    return Care(_moment(fields, "disturbedAt"), fields.flag("cordoned"), tuple(treatments))


def _treatment(fields: Fields) -> Treatment:
    return Treatment(
        target=fields.required("target"),
        action=fields.text("action"),
        reason=fields.text("reason"),
        phase=fields.choice("phase", Phase, Phase.WAITING),
        since=_moment(fields, "since"),
        times=fields.number("times"),
    )


def _moment(fields: Fields, key: str) -> float:
    return fields.parsed(key, parse_rfc3339, 0.0)


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
        offered=fields.text("resource") == names.RESOURCE_GPU,
        limit_milliwatts=_power_limit(fields),
        parent=fields.text("parent"),
        profile=fields.parsed("migProfile", _profile, None),
        part_milli=fields.number("partMilli", FULL_MILLI, least=1, most=FULL_MILLI),
        resource=fields.text("resource"),
    )


def _profile(text: str) -> MigProfile | None:
    """Return the profile of an instance; a name that cannot be read is no reason to do without the node."""
    try:
        return parse_profile(text)
    except ValueError:
        return None


def _power_limit(fields: Fields) -> int | None:
    """Return the power limit; one of 0 is a driver that cannot tell."""
    return fields.number("powerLimitMilliwatts", most=_MOST_MILLIWATTS) or None


def _capability(text: str) -> tuple[int, int]:
    return parse_compute_capability(text) if text else (0, 0)

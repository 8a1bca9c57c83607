"""WorkloadQueue, ModelProfile, PriorityClass, PodDisruptionBudget and Namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api.quantity import parse_bytes, parse_milli, parse_milliseconds
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.state.convert.fields import Fields
from llmos_operator.state.convert.selectors import label_selector
from llmos_operator.state.types import (
    DisruptionBudget,
    Draw,
    FormatProfile,
    LoadTime,
    Namespace,
    PreemptionPolicy,
    PriorityClass,
    Profile,
    Queue,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEAST_PRIORITY = -(1 << 31)


def queue(obj: Mapping[str, Any]) -> Queue:
    """Return a Queue from its JSON. GPUs are counted in thousandths of a device."""
    root = Fields(obj)
    spec = root.child("spec")
    nominal, borrowing, lending = (spec.child(n) for n in ("nominal", "borrowingLimit", "lendingLimit"))
    preemption = spec.child("preemption")
    return Queue(
        name=root.child("metadata").required("name"),
        parent=spec.text("parent"),
        weight=spec.number("weight", 1, least=1),
        nominal_gpu_milli=nominal.parsed("gpus", parse_milli, None),
        nominal_memory_bytes=nominal.parsed("memory", parse_bytes, None),
        borrowing_gpu_milli=borrowing.parsed("gpus", parse_milli, None),
        lending_gpu_milli=lending.parsed("gpus", parse_milli, None),
        borrowing_memory_bytes=borrowing.parsed("memory", parse_bytes, None),
        lending_memory_bytes=lending.parsed("memory", parse_bytes, None),
        namespaces=label_selector(spec.child("namespaceSelector")),
        priority_ceiling=spec.number("priorityCeiling", least=_LEAST_PRIORITY)
        if spec.has("priorityCeiling")
        else None,
        preempt_within=preemption.text("withinQueue", "LowerPriority") != "Never",
        reclaim=preemption.text("reclaim", "Any"),
        half_life=spec.child("fairness").parsed("halfLife", parse_milliseconds, 0) / 1000,
    )


def profile(obj: Mapping[str, Any]) -> Profile:
    """Return a Profile from its JSON; without status.shape the model has not been inspected yet."""
    root = Fields(obj)
    spec, status = root.child("spec"), root.child("status")
    return Profile(
        name=root.child("metadata").required("name"),
        uri=spec.text("uri"),
        revision=spec.text("revision") or "main",
        digest=status.text("digest"),
        shape=_shape(status.child("shape")),
        base_bytes=_known(status, "baseBytes"),
        formats={f.format: f for f in (_format(e) for e in status.objects("formats"))},
        load_times=tuple(_load_time(e) for e in status.objects("loadTimes")),
        draws=tuple(_draw(e) for e in status.objects("draws")),
    )


def _shape(fields: Fields) -> ModelShape | None:
    if not fields:
        return None
    return ModelShape(
        architecture=fields.text("architecture"),
        linear_parameters=fields.number("linearParameters"),
        embedding_parameters=fields.number("embeddingParameters"),
        other_parameters=fields.number("otherParameters"),
        layers=fields.number("layers"),
        hidden=fields.number("hidden"),
        intermediate=fields.number("intermediate"),
        heads=fields.number("heads"),
        kv_heads=fields.number("kvHeads"),
        head_dim=fields.number("headDim"),
        vocab=fields.number("vocab"),
        max_positions=fields.number("maxPositions"),
        source_bits=fields.number("sourceBits", 16),
        generative=fields.flag("generative", default=True),
        cross_tokens=fields.number("crossTokens"),
        picture_floats=fields.number("pictureFloats"),
        quantized=fields.text("quantized"),
    )


def _format(fields: Fields) -> FormatProfile:
    return FormatProfile(
        format=fields.required("format"),
        estimated_peak_bytes=_known(fields, "estimatedPeakBytes"),
        measured_peak_bytes=_known(fields, "measuredPeakBytes"),
        oom_floor_bytes=fields.number("oomFloorBytes"),
        quality_loss_milli=_known(fields, "qualityLossMilli"),
        tokens_per_second=_known(fields, "tokensPerSecond"),
    )


def _draw(fields: Fields) -> Draw:
    return Draw(fields.text("product"), fields.text("format"), fields.number("milliwatts"))


def _known(fields: Fields, name: str) -> int | None:
    return fields.number(name) if fields.has(name) else None


def _load_time(fields: Fields) -> LoadTime:
    return LoadTime(
        node_class=fields.text("nodeClass"),
        path=fields.text("path"),
        format=fields.text("format"),
        milliseconds=fields.number("milliseconds"),
    )


def priority_class(obj: Mapping[str, Any]) -> PriorityClass:
    """Return a PriorityClass from its JSON."""
    root = Fields(obj)
    return PriorityClass(
        name=root.child("metadata").required("name"),
        value=root.number("value", least=_LEAST_PRIORITY),
        is_default=root.flag("globalDefault"),
        preemption_policy=root.choice("preemptionPolicy", PreemptionPolicy, PreemptionPolicy.LOWER_PRIORITY),
    )


def disruption_budget(obj: Mapping[str, Any]) -> DisruptionBudget:
    """Return a DisruptionBudget from its JSON. A stale or missing status allows nothing."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    current = status.number("observedGeneration") >= meta.number("generation")
    return DisruptionBudget(
        key=f"{meta.text('namespace')}/{meta.required('name')}",
        selector=label_selector(spec.child("selector")) if spec.has("selector") else None,
        allowed=status.number("disruptionsAllowed") if current else 0,
    )


def namespace(obj: Mapping[str, Any]) -> Namespace:
    """Return a Namespace from its JSON."""
    meta = Fields(obj).child("metadata")
    name = meta.required("name")
    return Namespace(name, {"kubernetes.io/metadata.name": name, **meta.labels("labels")})

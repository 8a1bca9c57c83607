"""ModelWorkload. The API server has checked schema and CEL rules; what reaches here from elsewhere is checked again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from llmos_operator.api import names
from llmos_operator.api.mig import parse_profile
from llmos_operator.api.quantity import (
    parse_bytes,
    parse_compute_capability,
    parse_milliseconds,
    parse_percent_milli,
)
from llmos_operator.api.runtime.memory import FORMAT_BITS
from llmos_operator.clock import parse_rfc3339
from llmos_operator.state.convert.fields import Fields, invalid, shown
from llmos_operator.state.convert.nodes import condition_true
from llmos_operator.state.convert.pods import requests
from llmos_operator.state.convert.selectors import map_selector, node_affinity, tolerations
from llmos_operator.state.convert.volumes import claims
from llmos_operator.state.types import (
    AUTO,
    DEFAULT_ORDER,
    Adapter,
    Ceiling,
    DeviceSelector,
    DisruptionStep,
    Learned,
    Model,
    Placement,
    PreemptionPolicy,
    Quantization,
    QuantizationMode,
    Sharing,
    Topology,
    TrainingSpec,
    Workload,
    WorkloadKind,
)

_DEFAULT_FORMATS = ("bf16", "int8", "int4")
_REBUILDING = (
    "model",
    "adapters",
    "adapterLimits",
    "engine",
    "quantization",
    "resources",
    "parallelism",
    "context",
    "serving",
    "fineTune",
    "batch",
    "podTemplate",
)
_HASH_LENGTH = 10
_WHOLE = 100  # per cent
_ADAPTER_RANK = 16
_MOST_DIGITS = 18
_MOST_COPIES = 256
_METHODS = ("lora", "qlora", "full")
_MOST_TRIES = 100
_IDLE = "Idle"  # as `control.activity` says it
_BATCH_LOSES = 30.0  # seconds: answers are saved as they come, what is under way is asked again
# Fields of batch and fineTune that the operator acts on: a change of them must not replace a pod that works.
OPERATORS_OWN = frozenset({"backoffLimit", "completionWindow"})


def workload(obj: Mapping[str, Any]) -> Workload:
    """Return a Workload from its JSON. Permanent(InvalidSpec) names the field that cannot be read."""
    root = Fields(obj)
    meta, spec, status = root.child("metadata"), root.child("spec"), root.child("status")
    pod_spec = spec.child("podTemplate").child("spec")
    cpu, memory, _ = requests(pod_spec)
    kind = spec.choice("type", WorkloadKind, WorkloadKind.INFERENCE)
    used = status.child("run").number("deviceSeconds") if kind is not WorkloadKind.INFERENCE else 0
    return Workload(
        key=f"{meta.required('namespace')}/{meta.required('name')}",
        uid=meta.required("uid"),
        model=_model(spec.child("model"), meta),
        kind=kind,
        generation=meta.number("generation", 1),
        created_at=meta.parsed("creationTimestamp", parse_rfc3339, 0.0),
        suspended=spec.flag("suspend"),
        finished=condition_true(status, "Finished"),
        ttl_after_finished=spec.number("ttlSecondsAfterFinished")
        if spec.has("ttlSecondsAfterFinished")
        else None,
        deleting=meta.has("deletionTimestamp"),
        queue=spec.text("queueName"),
        kueue_queue=meta.labels("labels").get(names.LABEL_KUEUE_QUEUE, ""),
        kueue_priority=meta.labels("labels").get(names.LABEL_KUEUE_PRIORITY, ""),
        engine=spec.child("engine").text("name", "builtin"),
        apis=spec.child("serving").texts("apis"),
        quantization=_quantization(spec.child("quantization")),
        max_model_len=_max_model_len(spec.child("context")),
        max_num_seqs=spec.child("context").number("maxNumSeqs", 64, least=1),
        **_adapters(spec),
        node_selector=map_selector(pod_spec, "nodeSelector"),
        node_affinity=node_affinity(pod_spec),
        tolerations=tolerations(pod_spec),
        claims=claims(spec),
        training=_training(spec.child("fineTune")) if kind is WorkloadKind.FINE_TUNE else None,
        saved_at=status.child("run").parsed("lastSavedTime", parse_rfc3339, None),
        idle_since=_idle_since(status.child("activity")),
        gpu_seconds=used,
        **_run(spec, kind),
        cpu_milli=cpu,
        host_memory_bytes=memory,
        template_hash=template_hash(spec.data),
        ceiling=_ceiling(status.child("ceiling")),
        learned=_learned(status.child("sizing"), template_hash(spec.data)),
        spec=spec.data,
        **_resources(spec),
        **_scheduling(spec.child("scheduling")),
        **_rollout(spec.child("rollout")),
        **_replicas(spec, spec.child("scheduling").number("minReplicas", 1, least=1)),
    )


def _idle_since(fields: Fields) -> float | None:
    """Return since when the status says that a workload idles; a state that is not known is none."""
    return fields.parsed("since", parse_rfc3339, None) if fields.text("state") == _IDLE else None


def _learned(fields: Fields, spec_hash: str) -> Learned:
    """Return what was learned with this spec; a changed one is believed anew."""
    if fields.text("specHash") != spec_hash:
        return Learned()
    return Learned(fields.number("outOfMemoryBytes", 0), fields.number("neededBytes", 0), spec_hash)


def _training(fields: Fields) -> TrainingSpec:
    method = fields.text("method", "lora")
    if method not in _METHODS:
        raise invalid(fields.at("method"), f"{shown(method)} is not one of {', '.join(_METHODS)}")
    lora, training = fields.child("lora"), fields.child("training")
    return TrainingSpec(
        method=method,
        rank=0 if method == "full" else lora.number("rank", 16, least=1, most=256),
        targets=lora.texts("targets"),
        batch_size=training.number("batchSize", 8, least=1, most=4096),
        max_length=training.number("maxLength", 1024, least=16, most=1 << 20),
    )


def _run(spec: Fields, kind: WorkloadKind) -> dict[str, Any]:
    """Return what the operator itself heeds of work that ends."""
    if kind is WorkloadKind.INFERENCE:
        return {}
    block = spec.child("batch" if kind is WorkloadKind.BATCH else "fineTune")
    return {
        "backoff_limit": block.number("backoffLimit", 3, most=_MOST_TRIES),
        "completion_window": block.parsed("completionWindow", _seconds, None),
        "checkpoint_seconds": _BATCH_LOSES
        if kind is WorkloadKind.BATCH
        else block.child("checkpoint").parsed("every", _seconds, None),
    }


def _resources(spec: Fields) -> dict[str, Any]:
    resources = spec.child("resources")
    accelerators, parallelism = resources.number("accelerators", 1), spec.child("parallelism")
    stages = _stages(parallelism, accelerators)
    return {
        "accelerators": accelerators // stages,
        "stages": stages,
        "pipeline": parallelism.number("pipeline", 1, least=1),
        "copies": parallelism.number("data", 1, least=1, most=_MOST_COPIES),
        "memory_bytes": resources.parsed("memory", parse_bytes, None),
        "selector": _selector(resources.child("selector")),
        "sharing": resources.choice("sharing", Sharing, Sharing.EXCLUSIVE),
        "mig_profile": resources.parsed("migProfile", parse_profile, None),
    }


def _scheduling(fields: Fields) -> dict[str, Any]:
    disruption, topology = fields.child("disruption"), fields.child("topology")
    return {
        "priority_class": fields.text("priorityClassName"),
        "preemption": fields.choice("preemptionPolicy", PreemptionPolicy, PreemptionPolicy.LOWER_PRIORITY),
        "disruption_order": _order(disruption),
        "min_runtime": disruption.parsed("minRuntime", _seconds, None),
        "max_runtime": fields.parsed("maxRuntime", _seconds, None),
        "placement": fields.choice("placement", Placement, Placement.BIN_PACK),
        "topology": Topology(topology.text("required"), topology.text("preferred")),
    }


def _adapters(spec: Fields) -> dict[str, Any]:
    found = tuple(Adapter(one.required("name"), one.required("uri")) for one in spec.objects("adapters"))
    limits = spec.child("adapterLimits")
    most = max(len(found), limits.number("maxAdapters", 0))
    rank = limits.number("maxRank", _ADAPTER_RANK, least=1)
    return {"adapters": found, "max_adapters": most, "adapter_rank": rank if most else 0}


def template_hash(spec: Mapping[str, Any]) -> str:
    """Return a short hash of the fields whose change means that pods must be rebuilt."""
    kept = {name: spec[name] for name in _REBUILDING if name in spec}
    split = kept.get("parallelism")
    if isinstance(split, Mapping) and split.get("pods") == 1:
        # Younger than the hash: its default must not replace the pods of everybody who never set it.
        kept["parallelism"] = {name: value for name, value in split.items() if name != "pods"}
    for name in ("batch", "fineTune"):
        if isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key not in OPERATORS_OWN}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _model(fields: Fields, meta: Fields) -> Model:
    uri = fields.required("uri")
    claim = uri.startswith("pvc://")
    # A claim has no revisions, and its URI means another model in every namespace: what is learned of one must not be
    # taken for the other's, so the namespace stands in the place of a revision.
    revision = meta.required("namespace") if claim else fields.text("revision") or "main"
    return Model(
        uri=uri,
        revision=revision,
        name=fields.text("name") or meta.text("name"),
        digest=fields.text("digest"),
        kept=fields.has("cacheRef") and not claim,
    )


def _quantization(fields: Fields) -> Quantization:
    mode = fields.choice("mode", QuantizationMode, QuantizationMode.AUTO)
    chosen, allowed = fields.text("format"), fields.texts("allowed") or _DEFAULT_FORMATS
    for i, one in enumerate(allowed):
        if one not in FORMAT_BITS:
            raise invalid(
                f"{fields.at('allowed')}[{i}]", f"{shown(one)} is not one of {', '.join(FORMAT_BITS)}"
            )
    if mode is QuantizationMode.FIXED and chosen not in FORMAT_BITS:
        known = ", ".join(FORMAT_BITS)
        raise invalid(fields.at("format"), f"{shown(chosen)}: mode Fixed needs one of {known}")
    return Quantization(
        mode=mode,
        format=chosen,
        allowed=allowed,
        min_bits=fields.number("minBits", 4),
        max_quality_loss_milli=fields.parsed("maxQualityLoss", parse_percent_milli, None),
        kv_cache_dtype=fields.text("kvCacheDtype", "auto"),
        allow_downgrade=fields.flag("allowDowngradeOnPressure", default=True),
    )


def _selector(fields: Fields) -> DeviceSelector:
    return DeviceSelector(
        products=fields.texts("product"),
        min_memory_bytes=fields.parsed("minMemory", parse_bytes, 0),
        min_compute_capability=fields.parsed("minComputeCapability", parse_compute_capability, (0, 0)),
    )


def _max_model_len(context: Fields) -> int:
    value = context.data.get("maxModelLen")
    if value is None or value == "auto":
        return AUTO
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(context.at("maxModelLen"), f"{shown(value)} is not auto or a number of tokens")
    return value


def _replicas(spec: Fields, together: int) -> dict[str, Any]:
    """Return the replicas wanted until scaling says otherwise, and how many of them are not elastic."""
    scaling = spec.child("scaling")
    if not scaling:
        return {"replicas": spec.number("replicas", 1), "min_replicas": together, "together": together}
    most = scaling.number("maxReplicas", 1)
    least = scaling.number("minReplicas", 1)
    return {
        "replicas": least,
        "min_replicas": max(together, least),
        "together": together,
        "elastic": most > max(1, least),
    }


def _rollout(rollout: Fields) -> dict[str, Any]:
    if rollout.text("strategy") == "Recreate":
        return {}
    share = rollout.number("canaryTrafficPercent", 0)
    return {
        "max_surge": rollout.number("maxSurge", 0),
        "canary_percent": share if share < _WHOLE else 0,
    }


def _ceiling(fields: Fields) -> Ceiling | None:
    """Return the scheduler's word on the number of replicas, as its status has it."""
    at = fields.parsed("time", parse_rfc3339, None)
    if at is None:
        return None
    replicas = fields.number("replicas", 0)
    return Ceiling(replicas or None, at, fields.text("by"))


def _stages(fields: Fields, accelerators: int) -> int:
    """Return over how many pods a copy is spread; refuse splits that do not come out even."""
    pipeline = fields.number("pipeline", 1, least=1)
    tensor = fields.number("tensor", max(1, accelerators // pipeline), least=1)
    if accelerators and tensor * pipeline != accelerators:
        raise invalid(
            fields.path,
            f"tensor {tensor} x pipeline {pipeline} is not resources.accelerators ({accelerators})",
        )
    pods = fields.number("pods", 1, least=1)
    even = pipeline % pods == 0 or (pipeline == 1 and accelerators % pods == 0)
    if not even or (pods > 1 and not accelerators):
        what = f"accelerators {accelerators}" if pipeline == 1 else f"pipeline {pipeline}"
        raise invalid(fields.at("pods"), f"{what} is not a multiple of pods {pods}")
    return pods


def _order(disruption: Fields) -> tuple[DisruptionStep, ...]:
    try:
        return tuple(DisruptionStep(step) for step in disruption.texts("order")) or DEFAULT_ORDER
    except ValueError as error:
        known = ", ".join(DisruptionStep)
        raise invalid(disruption.at("order"), f"{error}; known are {known}") from error


def _seconds(text: str) -> float:
    return parse_milliseconds(text) / 1000

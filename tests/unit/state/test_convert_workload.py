"""ModelWorkload JSON to domain values, and errors that name the field."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.state import convert
from llmos_operator.state.types import (
    AUTO,
    DisruptionStep,
    Model,
    PreemptionPolicy,
    QuantizationMode,
    Requirement,
    Sharing,
    TrainingSpec,
    WorkloadKind,
)

FULL: dict[str, Any] = {
    "metadata": {
        "name": "chat",
        "namespace": "team",
        "uid": "u1",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    },
    "spec": {
        "type": "Inference",
        "queueName": "research",
        "model": {"uri": "hf://org/m", "revision": "v1", "name": "served"},
        "quantization": {"mode": "Auto", "allowed": ["bf16", "int8"], "minBits": 8, "maxQualityLoss": "1.5%"},
        "resources": {
            "accelerators": 2,
            "memory": "10Gi",
            "selector": {"product": ["A100"], "minMemory": "16Gi", "minComputeCapability": "8.0"},
            "sharing": "Exclusive",
        },
        "parallelism": {"tensor": 2},
        "context": {"maxModelLen": 4096, "maxNumSeqs": 8},
        "scaling": {"minReplicas": 2, "maxReplicas": 4},
        "scheduling": {
            "priorityClassName": "prod",
            "preemptionPolicy": "Never",
            "disruption": {"order": ["Sleep", "Evict"], "minRuntime": "2m"},
            "topology": {"preferred": "nvlink"},
        },
        "podTemplate": {
            "spec": {
                "nodeSelector": {"zone": "a"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "containers": [{"name": "app", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}],
            }
        },
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    obj = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    at = obj
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = value
    return obj


def test_every_field_arrives() -> None:
    got = convert.workload(FULL)
    assert (got.key, got.uid, got.generation, got.created_at) == ("team/chat", "u1", 3, 1767225600.0)
    assert (got.queue, got.kind, got.model.revision, got.model.name) == (
        "research",
        WorkloadKind.INFERENCE,
        "v1",
        "served",
    )
    assert got.quantization.mode is QuantizationMode.AUTO
    assert got.quantization.allowed == ("bf16", "int8")
    assert (got.quantization.min_bits, got.quantization.max_quality_loss_milli) == (8, 1500)
    assert (got.accelerators, got.memory_bytes, got.sharing) == (2, 10 << 30, Sharing.EXCLUSIVE)
    assert got.selector.products == ("A100",)
    assert (got.selector.min_memory_bytes, got.selector.min_compute_capability) == (16 << 30, (8, 0))
    assert (got.max_model_len, got.max_num_seqs, got.replicas, got.min_replicas) == (4096, 8, 2, 2)
    assert (got.priority_class, got.preemption) == ("prod", PreemptionPolicy.NEVER)
    assert got.disruption_order == (DisruptionStep.SLEEP, DisruptionStep.EVICT)
    assert (got.min_runtime, got.topology.preferred) == (120.0, "nvlink")
    assert got.node_selector.requirements == (Requirement("zone", "In", ("a",)),)
    assert (got.tolerations[0].key, got.tolerations[0].operator) == ("gpu", "Exists")
    assert (got.cpu_milli, got.host_memory_bytes) == (500, 1 << 30)


def test_defaults_are_those_of_the_api() -> None:
    got = convert.workload(
        {"metadata": {"name": "w", "namespace": "n", "uid": "u"}, "spec": {"model": {"uri": "hf://o/m"}}}
    )
    assert (got.accelerators, got.sharing, got.max_model_len, got.max_num_seqs) == (
        1,
        Sharing.EXCLUSIVE,
        AUTO,
        64,
    )
    assert (got.replicas, got.min_replicas, got.memory_bytes, got.min_runtime) == (1, 1, None, None)
    assert (got.model.revision, got.model.name) == ("main", "w")
    assert got.quantization.allowed == ("bf16", "int8", "int4")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.resources.memory", "10Gb", "spec.resources.memory: '10Gb' is not bytes"),
        ("spec.resources.accelerators", "two", "spec.resources.accelerators: 'two' is not a whole number"),
        ("spec.resources.accelerators", True, "spec.resources.accelerators: True is not a whole number"),
        ("spec.resources.accelerators", -1, "spec.resources.accelerators: -1 is below 0"),
        ("spec.resources.sharing", "Some", "spec.resources.sharing: 'Some' is not one of Exclusive, Shared, MIG"),
        ("spec.resources.migProfile", "10gb", "spec.resources.migProfile: '10gb' is not a MIG profile: write one like 1g.10gb"),
        ("spec.quantization.allowed", ["bf16", "int3"], "spec.quantization.allowed[1]: 'int3' is not one of"),
        ("spec.quantization.maxQualityLoss", "much", "spec.quantization.maxQualityLoss: 'much' is not a percentage"),
        ("spec.context.maxModelLen", "long", "spec.context.maxModelLen: 'long' is not auto or a number of tokens"),
        ("spec.context.maxNumSeqs", 0, "spec.context.maxNumSeqs: 0 is below 1"),
        ("spec.parallelism.pipeline", 3, "spec.parallelism: tensor 2 x pipeline 3 is not resources.accelerators (2)"),
        ("spec.scheduling.disruption.order", ["Nap"], "spec.scheduling.disruption.order: 'Nap' is not a valid"),
        ("spec.scheduling.disruption.minRuntime", "soon", "spec.scheduling.disruption.minRuntime: 'soon' is not a duration"),
        ("spec.model.uri", "", "spec.model.uri: is required"),
        ("spec.model", "hf://o/m", "spec.model: 'hf://o/m' is not an object"),
        ("spec.type", "Dream", "spec.type: 'Dream' is not one of Inference, FineTune, Batch"),
        ("spec.podTemplate.spec.tolerations", [{"operator": "Is"}], "tolerations[0].operator: 'Is' is not Equal or Exists"),
    ],
)  # fmt: skip
def test_an_error_names_field_and_value(path: str, value: object, message: str) -> None:
    with pytest.raises(Permanent) as caught:
        convert.workload(changed(path, value))
    assert caught.value.reason == Reason.INVALID_SPEC
    assert message in str(caught.value)


def test_fixed_needs_a_known_format() -> None:
    with pytest.raises(Permanent, match=r"spec.quantization.format: '': mode Fixed needs one of"):
        convert.workload(changed("spec.quantization", {"mode": "Fixed"}))


def test_hostile_values_are_cut_in_messages() -> None:
    with pytest.raises(Permanent) as caught:
        convert.workload(changed("spec.queueName", ["x" * 10_000]))
    assert len(str(caught.value)) < 200


def test_a_field_that_came_later_does_not_replace_the_pods_of_who_never_set_it() -> None:
    before = convert.workload(changed("spec.parallelism", {"pipeline": 2, "data": 1})).template_hash
    defaulted = changed("spec.parallelism", {"pipeline": 2, "data": 1, "pods": 1})
    assert convert.workload(defaulted).template_hash == before
    split = changed("spec.parallelism", {"pipeline": 2, "data": 1, "pods": 2})
    assert convert.workload(split).template_hash != before


def test_only_what_a_pod_is_built_from_changes_the_template_hash() -> None:
    before = convert.workload(FULL).template_hash
    assert convert.workload(changed("spec.scaling.maxReplicas", 9)).template_hash == before
    assert convert.workload(changed("spec.scheduling.priorityClassName", "other")).template_hash == before
    assert convert.workload(changed("spec.model.revision", "v2")).template_hash != before


def test_a_finished_workload_is_seen_by_its_condition() -> None:
    finished = changed("status.conditions", [{"type": "Finished", "status": "True"}])
    assert convert.workload(finished).finished
    assert not convert.workload(
        changed("status.conditions", [{"type": "Finished", "status": "False"}])
    ).finished


def test_scaled_to_zero_stays_at_zero_until_scaling_says_otherwise() -> None:
    got = convert.workload(changed("spec.scaling", {"minReplicas": 0, "maxReplicas": 2}))
    assert (got.replicas, got.min_replicas) == (0, 1)


def test_a_fine_tune_knows_its_checkpoints() -> None:
    obj = changed("spec.type", "FineTune")
    obj["spec"]["fineTune"] = {"checkpoint": {"every": "5m"}}
    assert convert.workload(obj).checkpoint_seconds == 300.0


@pytest.mark.parametrize("value", ["--5", "-", "\u00b2", "9" * 5000, "1e3", ""])
def test_what_is_no_number_cannot_be_compared_with_labels(value: str) -> None:
    expression = {"key": "k", "operator": "Gt", "values": [value]}
    term = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}
    body = copy.deepcopy(FULL)
    body["spec"]["podTemplate"] = {"spec": {"affinity": affinity}}
    with pytest.raises(Permanent, match="needs exactly one whole number"):
        convert.workload(body)


def test_a_context_length_of_unicode_digits_is_refused() -> None:
    body = copy.deepcopy(FULL)
    body["spec"]["context"] = {"maxModelLen": "\u00b2"}
    with pytest.raises(Permanent, match="maxModelLen"):
        convert.workload(body)


def a_split(accelerators: int = 4, **parallelism: int) -> Any:
    body = copy.deepcopy(FULL)
    body["spec"]["resources"]["accelerators"] = accelerators
    body["spec"]["parallelism"] = parallelism
    return convert.workload(body)


def test_devices_of_a_copy_are_shared_out_among_its_pods() -> None:
    work = a_split(8, tensor=2, pipeline=4, pods=2, data=3)
    assert (work.accelerators, work.stages, work.copies, work.members) == (4, 2, 3, 6)


@pytest.mark.parametrize(("accelerators", "pods"), [(4, 3), (0, 2)])
def test_a_split_over_pods_that_does_not_come_out_even_is_refused(accelerators: int, pods: int) -> None:
    with pytest.raises(Permanent, match=r"spec\.parallelism\.pods"):
        a_split(accelerators, pipeline=4 if accelerators else 1, pods=pods)


def test_replicas_that_start_together_are_not_elastic() -> None:
    body = copy.deepcopy(FULL)
    body["spec"]["scheduling"]["minReplicas"] = 3
    work = convert.workload(body)
    assert (work.replicas, work.together, work.min_replicas) == (2, 3, 3)


@pytest.mark.parametrize(
    ("activity", "idle_for"),
    [
        ({"state": "Idle", "since": "2026-01-01T00:05:00Z"}, 300),
        ({"state": "Busy", "since": "2026-01-01T00:05:00Z"}, None),
        ({"state": "Unknown", "since": "2026-01-01T00:05:00Z"}, None),
        ({"state": "Idle"}, None),  # since when is what counts
        ({}, None),
    ],
)
def test_only_a_status_that_says_idle_makes_work_idle(activity: dict[str, str], idle_for: int | None) -> None:
    obj = copy.deepcopy(FULL)
    obj["status"] = {"activity": activity}
    found = convert.workload(obj)
    assert found.idle_since == (None if idle_for is None else found.created_at + idle_for)


def test_a_training_run_tells_what_decides_its_memory_and_when_it_was_saved() -> None:
    obj = copy.deepcopy(FULL)
    obj["spec"] |= {
        "type": "FineTune",
        "fineTune": {
            "method": "qlora",
            "lora": {"rank": 8, "targets": ["q_proj"]},
            "training": {"batchSize": 4, "maxLength": 256},
        },
    }
    obj["status"] = {"run": {"lastSavedTime": "2026-01-01T00:01:00Z"}}
    found = convert.workload(obj)
    assert found.training == TrainingSpec("qlora", 8, ("q_proj",), batch_size=4, max_length=256)
    assert found.saved_at == found.created_at + 60
    obj["spec"]["fineTune"] = {"method": "full"}
    assert convert.workload(obj).training == TrainingSpec("full", 0, (), batch_size=8, max_length=1024)
    obj["spec"]["fineTune"] = {"method": "magic"}
    with pytest.raises(Permanent, match=r"spec\.fineTune\.method"):
        convert.workload(obj)
    assert convert.workload(FULL).training is None


def test_a_claim_is_another_model_in_every_namespace() -> None:
    def model(namespace: str) -> Model:
        given = copy.deepcopy(FULL)
        given["metadata"]["namespace"] = namespace
        given["spec"]["model"] = {"uri": "pvc://models/m", "revision": "v1", "cacheRef": {"name": "kept"}}
        return convert.workload(given).model

    assert model("a").key != model("b").key
    assert (model("a").uri, model("a").revision) == ("pvc://models/m", "a")
    assert not model("a").kept, "a ModelCache has no namespace, so it cannot mean a claim"

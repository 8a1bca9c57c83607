"""Nodes, devices, queues, profiles, priority classes, disruption budgets and namespaces."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.errors import Permanent
from llmos_operator.state import convert
from llmos_operator.state.labels import matches, tolerates, untolerated
from llmos_operator.state.types import Draw, PreemptionPolicy, Requirement, Selector, Taint, Toleration


def test_a_node_by_its_allocatable() -> None:
    got = convert.node(
        {
            "metadata": {"name": "n1", "uid": "u", "labels": {"zone": "a"}},
            "spec": {"unschedulable": True, "taints": [{"key": "gpu", "effect": "NoExecute"}]},
            "status": {
                "allocatable": {"cpu": "7500m", "memory": "30Gi", "pods": "50", "nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    )
    assert (got.name, got.ready, got.unschedulable, got.gpus, got.pods) == ("n1", True, True, 8, 50)
    assert (got.cpu_milli, got.memory_bytes) == (7500, 30 << 30)
    assert got.taints == (Taint("gpu", "", "NoExecute"),)


def test_a_node_without_status_is_not_ready_and_holds_nothing() -> None:
    got = convert.node({"metadata": {"name": "n1"}})
    assert (got.ready, got.cpu_milli, got.gpus) == (False, 0, 0)


@pytest.mark.parametrize(
    ("watts", "expected"),
    [("5600", 5_600_000), ("0", 0), ("5.6kW", 0), ("", 0), ("9" * 40, 0), ("٣", 0)],
)
def test_a_power_budget_in_whole_watts_and_one_that_cannot_be_read_allows_nothing(
    watts: str, expected: int
) -> None:
    labels = {"llmos.dev/power-budget": watts, "llmos.dev/rack-power-budget": watts}
    node = convert.node({"metadata": {"name": "n1", "labels": labels}})
    assert (node.power_milliwatts, node.rack_milliwatts) == (expected, expected)
    without = convert.node({"metadata": {"name": "n1"}})
    assert (without.power_milliwatts, without.rack_milliwatts) == (None, None)


def test_a_power_limit_of_zero_is_one_nobody_knows() -> None:
    told = [
        {"uuid": "a", "powerLimitMilliwatts": 400_000},
        {"uuid": "b", "powerLimitMilliwatts": 0},
        {"uuid": "c"},
    ]
    gpu = convert.gpu_node({"metadata": {"name": "n1"}, "status": {"devices": told}})
    assert [one.limit_milliwatts for one in gpu.devices] == [400_000, None, None]


def test_devices_in_index_order_and_without_health_unknown() -> None:
    devices = [
        {"uuid": "b", "index": 1, "product": "A100", "memory": "80Gi", "computeCapability": "8.0"},
        {"uuid": "a", "index": 0, "memory": "1Gi", "health": {"verdict": "Healthy"}},
    ]
    got = convert.gpu_node({"metadata": {"name": "n1"}, "status": {"mode": "simulated", "devices": devices}})
    assert [d.uuid for d in got.devices] == ["a", "b"]
    assert (got.devices[0].verdict, got.devices[1].verdict) == (Verdict.HEALTHY, Verdict.UNKNOWN)
    assert (got.devices[1].memory_bytes, got.devices[1].compute_capability) == (80 << 30, (8, 0))


def test_a_device_that_is_told_twice_counts_once() -> None:
    devices = [
        {"uuid": "a", "index": 0, "memory": "1Gi"},
        {"uuid": "b", "index": 1},
        {"uuid": "a", "index": 2},
    ]
    got = convert.gpu_node({"metadata": {"name": "n1"}, "status": {"devices": devices}})
    assert [d.uuid for d in got.devices] == ["b", "a"]


def test_a_queue_with_and_without_limits() -> None:
    spec = {
        "parent": "org",
        "weight": 3,
        "nominal": {"gpus": 4, "memory": "10Gi"},
        "borrowingLimit": {"gpus": 2},
        "namespaceSelector": {"matchLabels": {"team": "a"}},
        "priorityCeiling": -5,
        "preemption": {"withinQueue": "Never", "reclaim": "LowerPriority"},
        "fairness": {"halfLife": "1h"},
    }
    got = convert.queue({"metadata": {"name": "q"}, "spec": spec})
    assert (got.parent, got.weight, got.nominal_gpu_milli, got.borrowing_gpu_milli) == ("org", 3, 4000, 2000)
    assert (got.nominal_memory_bytes, got.lending_gpu_milli) == (10 << 30, None)
    assert (got.priority_ceiling, got.preempt_within, got.reclaim, got.half_life) == (
        -5,
        False,
        "LowerPriority",
        3600,
    )
    assert got.namespaces == Selector((Requirement("team", "In", ("a",)),))
    bare = convert.queue({"metadata": {"name": "q"}})
    assert (bare.nominal_gpu_milli, bare.priority_ceiling, bare.preempt_within, bare.reclaim) == (
        None,
        None,
        True,
        "Any",
    )


def test_a_profile_with_measurements() -> None:
    status: dict[str, Any] = {
        "shape": {
            "architecture": "A",
            "linearParameters": 7,
            "kvHeads": 2,
            "headDim": 64,
            "maxPositions": 2048,
        },
        "baseBytes": 100,
        "formats": [{"format": "int8", "measuredPeakBytes": 5, "oomFloorBytes": 3, "qualityLossMilli": 12}],
        "loadTimes": [{"nodeClass": "cpu", "path": "Warm", "format": "int8", "milliseconds": 1500}],
        "draws": [{"product": "A100", "format": "int8", "milliwatts": 250_000}],
    }
    got = convert.profile({"metadata": {"name": "mp-1"}, "spec": {"uri": "hf://o/m"}, "status": status})
    assert got.shape is not None
    assert (got.shape.linear_parameters, got.shape.kv_heads, got.shape.max_positions) == (7, 2, 2048)
    assert (got.base_bytes, got.formats["int8"].measured_peak_bytes) == (100, 5)
    assert (got.formats["int8"].oom_floor_bytes, got.formats["int8"].quality_loss_milli) == (3, 12)
    assert got.load_times[0].milliseconds == 1500
    assert got.draws == (Draw("A100", "int8", 250_000),)
    assert convert.profile({"metadata": {"name": "mp-1"}}).shape is None


def test_a_budget_allows_nothing_until_its_status_is_current() -> None:
    obj = {
        "metadata": {"name": "b", "namespace": "n", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "x"}}},
        "status": {"disruptionsAllowed": 3, "observedGeneration": 1},
    }
    assert convert.disruption_budget(obj).allowed == 0
    obj["status"]["observedGeneration"] = 2  # type: ignore[index]
    assert convert.disruption_budget(obj).allowed == 3


def test_a_priority_class_and_a_namespace() -> None:
    got = convert.priority_class({"metadata": {"name": "p"}, "value": -7, "preemptionPolicy": "Never"})
    assert (got.value, got.preemption_policy) == (-7, PreemptionPolicy.NEVER)
    assert convert.namespace({"metadata": {"name": "n"}}).labels == {"kubernetes.io/metadata.name": "n"}


@pytest.mark.parametrize(
    ("operator", "values", "labels", "expected"),
    [
        ("In", ("a", "b"), {"k": "b"}, True),
        ("In", ("a",), {}, False),
        ("NotIn", ("a",), {}, True),
        ("NotIn", ("a",), {"k": "a"}, False),
        ("Exists", (), {"k": ""}, True),
        ("DoesNotExist", (), {"k": ""}, False),
        ("Gt", ("5",), {"k": "6"}, True),
        ("Gt", ("5",), {"k": "five"}, False),
        ("Lt", ("5",), {"k": "-1"}, True),
        ("Lt", ("5",), {}, False),
    ],
)
def test_label_expressions(
    operator: str, values: tuple[str, ...], labels: dict[str, str], expected: bool
) -> None:
    assert matches(Selector((Requirement("k", operator, values),)), labels) is expected


def test_an_expression_without_values_is_refused() -> None:
    selector = {"matchExpressions": [{"key": "k", "operator": "In"}]}
    with pytest.raises(
        Permanent, match=r"matchExpressions\[0\].values: operator In needs at least one value"
    ):
        convert.queue({"metadata": {"name": "q"}, "spec": {"namespaceSelector": selector}})


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        (Toleration("gpu", "Equal", "a", "NoSchedule"), True),
        (Toleration("gpu", "Equal", "b"), False),
        (Toleration("gpu", "Exists"), True),
        (Toleration("", "Exists"), True),
        (Toleration("gpu", "Exists", "", "NoExecute"), False),
    ],
)
def test_tolerations(toleration: Toleration, expected: bool) -> None:
    assert tolerates(toleration, Taint("gpu", "a", "NoSchedule")) is expected


def test_a_preference_keeps_nobody_off() -> None:
    assert untolerated((Taint("x", "", "PreferNoSchedule"),), ()) is None

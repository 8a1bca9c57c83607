"""What Prometheus is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.collector import Figures
from llmos_operator.telemetry.figures import DCGM, FIGURES
from llmos_operator.telemetry.health import DeviceHealth
from llmos_operator.telemetry.metrics import AgentMetrics, CollectorMetrics, DeviceMetrics, DeviceView
from llmos_operator.telemetry.policy import Reason
from llmos_operator.telemetry.sample import ClockReason, Counters, DeviceEvent, EventKind, ProcessUse, Sample
from tests.support.devices import GIB, a_device, a_sample, an_xid

if TYPE_CHECKING:
    from collections.abc import Mapping

HEALTHY = DeviceHealth(Verdict.HEALTHY, Reason.AS_EXPECTED)
SICK = DeviceHealth(
    Verdict.UNHEALTHY, Reason.FALLEN_OFF_BUS, strength=((Reason.FALLEN_OFF_BUS, Verdict.UNHEALTHY),)
)


def series(registry: CollectorRegistry) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def tell(*views: DeviceView, dcgm: bool = False) -> dict[str, list[tuple[dict[str, str], float]]]:
    registry = CollectorRegistry()
    metrics = DeviceMetrics("n1", dcgm=dcgm)
    registry.register(metrics)
    metrics.show(views)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for (name, labels), value in series(registry).items():
        found.setdefault(name, []).append((dict(labels), value))
    return found


def full_sample() -> Sample:
    numbers = {name: 7 for name in Counters.__dataclass_fields__ if name not in {"at", "recovery_action"}}
    return a_sample(
        **numbers,
        memory_reserved_bytes=3,
        memory_utilization_percent=20,
        energy_millijoules=9000,
        clock_reasons=frozenset({ClockReason.POWER_CAP}),
    )


def test_values_come_in_base_units_with_the_devices_labels() -> None:
    found = tell(DeviceView(a_device(), HEALTHY, full_sample()))
    labels = {"gpu": "0", "uuid": "GPU-a", "product": "NVIDIA H100"}
    assert found["llmos_gpu_memory_used_bytes"] == [(labels, 5 * GIB)]
    assert found["llmos_gpu_utilization_ratio"] == [(labels, 0.5)]
    assert found["llmos_gpu_power_watts"] == [(labels, 300.0)]
    assert found["llmos_gpu_energy_joules_total"] == [(labels, 9.0)]
    assert ({**labels, "clock": "sm"}, 7e6) in found["llmos_gpu_clock_hertz"]
    assert ({**labels, "type": "uncorrected"}, 7) in found["llmos_gpu_ecc_errors_total"]


def test_a_full_sample_fills_every_series_of_the_table() -> None:
    found = tell(DeviceView(a_device(), HEALTHY, full_sample()), dcgm=True)
    missing = {figure.name for figure in (*FIGURES, *DCGM)} - found.keys()
    assert missing == set()
    for figure in FIGURES:
        assert any(figure.labels.items() <= labels.items() for labels, _ in found[figure.name]), figure


def test_an_absent_value_has_no_series() -> None:
    found = tell(DeviceView(a_device(), HEALTHY, Sample("GPU-a", 0.0, memory_used_bytes=1)))
    told = {name for name in found if name in {figure.name for figure in FIGURES}}
    assert told == {"llmos_gpu_memory_used_bytes"}
    assert "llmos_gpu_clock_limited" not in found
    assert "llmos_gpu_processes" not in found


def test_a_device_that_is_not_measured_tells_only_its_verdict() -> None:
    found = tell(DeviceView(a_device(), SICK))
    assert not {name for name in found if name in {figure.name for figure in FIGURES}}
    verdicts = {labels["verdict"]: value for labels, value in found["llmos_gpu_verdict"]}
    assert verdicts == {"Healthy": 0, "Degraded": 0, "Unhealthy": 1, "Unknown": 0}
    assert [labels["reason"] for labels, _ in found["llmos_gpu_health_cause"]] == ["FallenOffBus"]


def test_a_device_that_is_gone_leaves_nothing_behind() -> None:
    registry = CollectorRegistry()
    metrics = DeviceMetrics("n1")
    registry.register(metrics)
    metrics.show([DeviceView(a_device(), HEALTHY, full_sample())])
    assert series(registry)
    metrics.show([])
    assert series(registry) == {}


def test_the_names_of_dcgm_exporter_are_an_option_with_its_labels_and_units() -> None:
    assert not any(name.startswith("DCGM") for name in tell(DeviceView(a_device(), HEALTHY, full_sample())))
    instance = a_device("MIG-a", 2, parent="GPU-a", gpu_instance=5)
    found = tell(DeviceView(instance, HEALTHY, full_sample()), dcgm=True)
    labels = {
        "gpu": "2",
        "UUID": "MIG-a",
        "device": "nvidia2",
        "modelName": "NVIDIA H100",
        "Hostname": "n1",
        "GPU_I_ID": "5",
    }
    assert found["DCGM_FI_DEV_FB_USED"] == [(labels, 5 * 1024)]
    assert found["DCGM_FI_DEV_GPU_UTIL"] == [(labels, 50)]
    assert found["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == [(labels, 9000)]


def test_processes_are_counted_by_whether_their_pod_is_known() -> None:
    uses = (ProcessUse(1, 5, "pod"), ProcessUse(2, 5), ProcessUse(3, 5))
    found = tell(DeviceView(a_device(), HEALTHY, a_sample(), uses))
    assert {labels["pod"]: value for labels, value in found["llmos_gpu_processes"]} == {
        "known": 1,
        "unknown": 2,
    }


def test_xids_are_counted_by_code() -> None:
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry)
    for code in (13, 13, 79):
        metrics.note(an_xid(code), a_device())
    metrics.note(an_xid(31, "GPU-?"), None)
    metrics.note(DeviceEvent("GPU-a", EventKind.DOUBLE_BIT_ECC), a_device())
    found = series(registry)
    gpu = {("gpu", "0"), ("uuid", "GPU-a"), ("product", "NVIDIA H100")}
    assert found["llmos_gpu_xid_errors_total", frozenset(gpu | {("xid", "13")})] == 2
    assert found["llmos_gpu_xid_errors_total", frozenset(gpu | {("xid", "79")})] == 1
    assert found["llmos_gpu_events_total", frozenset(gpu | {("kind", "DoubleBitEcc")})] == 1


def test_reports_are_counted_from_zero() -> None:
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry)
    key = ("llmos_agent_publish_total", frozenset({("receiver", "operator"), ("result", "error")}))
    assert series(registry)[key] == 0
    metrics.reported("operator", ok=False)
    assert series(registry)[key] == 1


def test_the_agents_own_figures_are_read_at_the_scrape() -> None:
    registry = CollectorRegistry()
    figures = Figures()
    registry.register(CollectorMetrics(figures, lambda: 3))
    figures.rounds = 12
    found = series(registry)
    assert found["llmos_agent_rounds_total", frozenset()] == 12
    assert found["llmos_agent_hung_calls", frozenset()] == 3


def test_names_follow_prometheus_rules() -> None:
    for figure in FIGURES:
        assert re.fullmatch(r"llmos_gpu_[a-z0-9_]+", figure.name)
        assert (figure.kind == "counter") == figure.name.endswith("_total")
        assert figure.help.endswith(".")
        assert not re.search(r"_(percent|milliwatts|mib|mhz|kib)(_|$)", figure.name), "base units"

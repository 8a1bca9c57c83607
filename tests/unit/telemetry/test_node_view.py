"""Rounds folded into what each reader is told."""

from __future__ import annotations

from typing import Any

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.collector import Round
from llmos_operator.telemetry.kubelet.pod_resources import Allocations
from llmos_operator.telemetry.node_view import NodeView
from llmos_operator.telemetry.sample import (
    Capability,
    DeviceEvent,
    DeviceInfo,
    DriverInfo,
    Hang,
    ProcessUse,
    Sample,
)
from tests.support.devices import a_device, a_sample, an_xid

NOW = 1_700_000_000.0
A, B = a_device("GPU-a", 0), a_device("GPU-b", 1)


def a_view() -> NodeView:
    return NodeView("n1", interval=1.0, mode="nvml", driver=DriverInfo("570"), epoch=1000)


def a_round(
    *events: DeviceEvent,
    devices: tuple[DeviceInfo, ...] = (A, B),
    samples: tuple[Sample, ...] | None = None,
    processes: dict[str, tuple[ProcessUse, ...]] | None = None,
    hangs: tuple[Hang, ...] = (),
) -> Round:
    found = samples if samples is not None else tuple(a_sample(device.uuid) for device in devices)
    return Round(devices, {s.uuid: s for s in found}, processes or {}, events, hangs)


def test_a_sample_is_told_for_three_intervals_and_no_longer() -> None:
    view = a_view()
    view.fold(a_round(), NOW)
    for second in (1, 2, 3):
        view.fold(a_round(samples=(a_sample("GPU-a"),)), NOW + second)
    assert view.devices[1].sample is not None
    view.fold(a_round(samples=(a_sample("GPU-a"),)), NOW + 4)
    assert view.devices[1].sample is None
    assert view.devices[1].health.verdict is Verdict.UNKNOWN
    assert "memoryUsedBytes" not in view.batch()["devices"][1]


def test_process_lists_go_with_the_first_batch_after_them() -> None:
    view = a_view()
    uses = {"GPU-a": (ProcessUse(1, 5, "pod"),)}
    view.fold(a_round(processes=uses), NOW)
    assert "processes" in view.batch()["devices"][0]
    view.fold(a_round(processes=uses), NOW + 1)
    assert "processes" not in view.batch()["devices"][0]
    view.fold(a_round(processes={"GPU-a": (ProcessUse(1, 5, "pod"),)}), NOW + 2)
    assert "processes" in view.batch()["devices"][0], (
        "a new list, even an equal one, is news: it says still there"
    )


def test_a_list_without_processes_is_told_as_such() -> None:
    view = a_view()
    view.fold(a_round(processes={"GPU-a": ()}), NOW)
    first, second = view.batch()["devices"]
    assert first["processes"] == []
    assert "processes" not in second


def test_batches_are_numbered_within_the_agents_epoch() -> None:
    view = a_view()
    view.fold(a_round(), NOW)
    assert [(batch["epoch"], batch["sequence"]) for batch in (view.batch(), view.batch())] == [
        (1000, 1),
        (1000, 2),
    ]


def test_events_are_noted_with_their_device() -> None:
    noted: list[tuple[int, DeviceInfo | None]] = []
    view = a_view()
    view.fold(a_round(an_xid(13, "GPU-b"), an_xid(31, "GPU-z")), NOW, lambda e, d: noted.append((e.code, d)))
    assert noted == [(13, B), (31, None)]


def test_the_status_does_not_change_while_nothing_does() -> None:
    view = a_view()
    view.fold(a_round(), NOW)
    first = view.status(NOW)
    for second in range(1, 100):
        used = a_sample(
            "GPU-a", memory_used_bytes=second, utilization_percent=second % 100, power_milliwatts=second
        )
        view.fold(a_round(samples=(used, a_sample("GPU-b"))), NOW + second)
        assert view.status(NOW + second) == first, "samples must never reach etcd"
        assert view.status(NOW + second) is first, "what did not change is not worded again"


def test_the_status_is_worded_anew_for_all_it_tells() -> None:
    """Each round differs from the one before in one thing the GPUNode tells."""
    view = a_view()
    limited = a_sample("GPU-a", power_limit_milliwatts=300_000)
    telling = a_sample("GPU-a", power_limit_milliwatts=300_000, capabilities=frozenset({Capability.POWER}))
    rounds = (
        a_round(),
        a_round(samples=(limited, a_sample("GPU-b"))),
        a_round(samples=(telling, a_sample("GPU-b"))),
        a_round(an_xid(79, "GPU-b"), samples=(telling, a_sample("GPU-b"))),
        a_round(devices=(a_device("GPU-a", 0, product="renamed"), B), samples=(telling, a_sample("GPU-b"))),
        a_round(devices=(A,), samples=(telling,)),
    )
    seen: list[dict[str, Any]] = []
    for second, found in enumerate(rounds):
        view.fold(found, NOW + second)
        seen.append(view.status(NOW + second))
    assert [one["devices"][0].get("powerLimitMilliwatts") for one in seen] == [None, *[300_000] * 5]
    assert [one["devices"][0]["capabilities"] for one in seen[:3]] == [[], [], ["power"]]
    assert [one["devices"][1]["health"]["verdict"] for one in seen[2:4]] == ["Healthy", "Unhealthy"]
    assert seen[4]["devices"][0]["product"] == "renamed"
    assert len(seen[5]["devices"]) == 1
    view.allocated(Allocations(offered={"GPU-a": "nvidia.com/gpu"}), "")
    assert view.status(NOW + 6)["devices"][0]["resource"] == "nvidia.com/gpu"


def test_a_hang_is_the_nodes_problem() -> None:
    view = a_view()
    view.fold(
        a_round(hangs=(Hang("nvmlDeviceGetPowerUsage", "GPU-a", 0.0),), samples=(a_sample("GPU-b"),)), NOW
    )
    assert "nvmlDeviceGetPowerUsage does not return: device GPU-a hangs" in view.problem()
    ready = {c["type"]: c["status"] for c in view.status(NOW)["conditions"]}
    assert ready == {"Ready": "False", "DevicesHealthy": "False"}


def test_three_workloads_are_told_apart_by_name_and_not_by_pod() -> None:
    view = a_view()
    for turn in range(6):
        # The same workload's pod made anew each time: another UID, the same name.
        uses = {"GPU-a": (ProcessUse(turn, 5, f"uid-{turn}", "ns/crashing-7f-0"),)}
        view.fold(a_round(an_xid(31, "GPU-a"), processes=uses), NOW + turn)
    assert view.devices[0].health.verdict is Verdict.HEALTHY

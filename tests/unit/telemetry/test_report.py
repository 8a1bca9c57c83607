"""What the agent writes is what the wire types and the GPUNode's schema take."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from llmos_operator.api.telemetry import MAX_DEVICES, MAX_HOLDERS, TelemetryBatch, Verdict
from llmos_operator.api.v1alpha1.gpunode import GPUNodeStatus
from llmos_operator.state.convert.nodes import gpu_node
from llmos_operator.telemetry import report
from llmos_operator.telemetry.health import DeviceHealth
from llmos_operator.telemetry.kubelet.pod_resources import Allocations, Holder
from llmos_operator.telemetry.metrics import DeviceView
from llmos_operator.telemetry.policy import Reason
from llmos_operator.telemetry.sample import Capability, Counters, DriverInfo, Link, ProcessUse
from tests.support.devices import GIB, a_device, a_sample

NOW = 1_700_000_000.0
HEALTHY = DeviceHealth(Verdict.HEALTHY, Reason.AS_EXPECTED, "", NOW)
SICK = DeviceHealth(Verdict.UNHEALTHY, Reason.FALLEN_OFF_BUS, "XID 79: GPU has fallen off the bus", NOW - 60)


def views(count: int = 2) -> list[DeviceView]:
    return [
        DeviceView(
            a_device(
                f"GPU-{index}", index % 256, links=(Link("GPU-x", 4, "single"), Link("GPU-y", 0, "node"))
            ),
            HEALTHY if index else SICK,
            a_sample(f"GPU-{index}", energy_millijoules=7, capabilities=frozenset(Capability)),
            (ProcessUse(11, 5, "pod-1", "ns/p"), ProcessUse(12, None)),
        )
        for index in range(count)
    ]


def parsed(batch: dict[str, Any]) -> TelemetryBatch:
    return TelemetryBatch.model_validate_json(json.dumps(batch))


def test_a_batch_is_what_the_wire_takes() -> None:
    batch = parsed(report.batch("n1", 1000, 5, views(), frozenset({"GPU-1"})))
    assert (batch.node, batch.epoch, batch.sequence) == ("n1", 1000, 5)
    first, second = batch.devices
    assert (first.verdict, first.reason) == (Verdict.UNHEALTHY, "FallenOffBus")
    assert (first.memory_used_bytes, first.memory_total_bytes) == (5 * GIB, 80 * GIB)
    assert (first.utilization_percent, first.temperature_celsius) == (50, 60)
    assert (first.power_milliwatts, first.energy_millijoules) == (300_000, 7)
    assert first.processes is None
    assert [(p.pid, p.memory_bytes, p.pod_uid) for p in second.processes or ()] == [
        (11, 5, "pod-1"),
        (12, None, ""),
    ]


def test_every_name_of_a_batch_is_one_the_wire_knows() -> None:
    raw = report.batch("n1", 1000, 5, views(), frozenset({"GPU-1"}))
    known = parsed(raw).model_dump(by_alias=True)
    assert raw.keys() <= known.keys()
    assert raw["devices"][1].keys() <= known["devices"][1].keys()
    assert raw["devices"][1]["processes"][0].keys() <= known["devices"][1]["processes"][0].keys()


def test_what_is_absent_is_left_out_and_not_zero() -> None:
    view = DeviceView(a_device(), HEALTHY, a_sample(memory_used_bytes=None, power_milliwatts=None))
    (entry,) = report.batch("n1", 1, 1, [view, *[]])["devices"]
    assert "memoryUsedBytes" not in entry
    assert "powerMilliwatts" not in entry
    (stale,) = report.batch("n1", 1, 1, [DeviceView(a_device(), HEALTHY)])["devices"]
    assert stale.keys() == {"uuid", "index", "verdict", "reason"}


def test_activity_is_told_in_thousandths_where_the_device_samples_it() -> None:
    told = Counters(0.0, sm_active_ratio=0.3756, dram_active_ratio=1.004)
    (device,) = parsed(
        report.batch("n1", 1, 1, [DeviceView(a_device(), HEALTHY, a_sample(counters=told))])
    ).devices
    assert (device.sm_active_milli, device.dram_active_milli) == (376, 1000)
    silent = DeviceView(a_device(), HEALTHY, a_sample(counters=Counters(0.0)))
    (entry,) = report.batch("n1", 1, 1, [silent])["devices"]
    assert not {"smActiveMilli", "dramActiveMilli"} & entry.keys()


def test_a_device_has_the_holders_the_kubelet_tells_and_none_where_it_does_not() -> None:
    both = [DeviceView(a_device(f"GPU-{index}"), HEALTHY, a_sample(f"GPU-{index}")) for index in range(2)]
    holders = tuple(Holder(f"ns/pod-{number}", "main", "nvidia.com/gpu") for number in range(MAX_HOLDERS + 1))
    told = Allocations({"GPU-1": holders}, {"GPU-1": "nvidia.com/gpu"})
    status = report.status("nvml", DriverInfo("570"), report.facts(both), [], told)
    first, second = GPUNodeStatus.model_validate(status).devices
    assert (first.resource, first.holders) == ("", ())
    assert (second.resource, len(second.holders)) == ("nvidia.com/gpu", MAX_HOLDERS)
    domain = gpu_node({"metadata": {"name": "n"}, "status": status}).devices
    assert (domain[0].holders, domain[1].holders[0]) == ((), "ns/pod-0")
    silent = report.status("nvml", DriverInfo("570"), report.facts(both), [])["devices"]
    assert [{"resource", "holders"} & one.keys() for one in silent] == [set(), set()]


def test_whether_the_kubelet_tells_is_a_condition_only_where_it_is_asked() -> None:
    assert report.allocation_condition(None, "") == []
    (silent,) = report.allocation_condition(None, "no socket /x")
    assert (silent["status"], silent["message"]) == ("False", "no socket /x")
    (known,) = report.allocation_condition(Allocations(), "")
    assert known["status"] == "True"


def test_a_gpu_cut_into_instances_is_not_offered_and_its_instances_are() -> None:
    gpu = DeviceView(a_device("GPU-0", mig_enabled=True), HEALTHY, a_sample("GPU-0"))
    instance = DeviceView(a_device("MIG-0", parent="GPU-0"), HEALTHY, a_sample("MIG-0"))
    assert [d["uuid"] for d in report.batch("n", 1, 1, [gpu, instance])["devices"]] == ["MIG-0"]
    (device,) = report.status("nvml", DriverInfo("570"), report.facts([gpu, instance]), [])["devices"]
    assert (device["uuid"], device["mig"]) == ("MIG-0", True)


def test_an_instance_tells_its_profile_its_gpu_and_how_much_of_it_it_is() -> None:
    gpu = DeviceView(a_device("GPU-0", mig_enabled=True, memory_bytes=80 * GIB), HEALTHY, a_sample("GPU-0"))

    def told(profile: str, gib: int, **changes: object) -> dict[str, object]:
        info = a_device(
            "MIG-0",
            **{
                "parent": "GPU-0",
                "product": f"H100 MIG {profile}",
                "memory_bytes": gib * GIB,
                "gpu_slices": 7,
                **changes,
            },
        )
        (device,) = report.status(
            "nvml", DriverInfo("570"), report.facts([gpu, DeviceView(info, HEALTHY)]), []
        )["devices"]
        return {key: device.get(key) for key in ("parent", "migProfile", "partMilli")}

    assert told("1g.10gb", 10) == {"parent": "GPU-0", "migProfile": "1g.10gb", "partMilli": 142}
    assert told("1g.20gb", 20)["partMilli"] == 250, "the larger part is that of the memory"
    assert told("3g.40gb", 40)["partMilli"] == 500
    assert told("7g.80gb", 81)["partMilli"] == 1000
    assert told("1g.20gb", 20, gpu_slices=None)["partMilli"] == 250
    assert told("1g.10gb", 10, parent="GPU-9") == {
        "parent": "GPU-9",
        "migProfile": "1g.10gb",
        "partMilli": 142,
    }
    unnamed = told("1g.10gb", 10, product="H100 of a new kind")
    assert unnamed == {"parent": "GPU-0", "migProfile": None, "partMilli": 125}


def limited(milliwatts: int | None) -> DeviceHealth:
    return replace(HEALTHY, counters=Counters(at=1.0, power_limit_milliwatts=milliwatts))


def test_the_power_limit_is_told_in_whole_watts_and_left_out_where_nobody_knows_it() -> None:
    told = DeviceView(a_device("GPU-0"), limited(399_999), a_sample("GPU-0"))
    silent = DeviceView(a_device("GPU-1"), limited(None), a_sample("GPU-1"))
    first, second = report.status("nvml", DriverInfo("570"), report.facts([told, silent]), [])["devices"]
    assert first["powerLimitMilliwatts"] == 400_000
    assert "powerLimitMilliwatts" not in second


def test_an_instance_has_the_part_of_the_power_limit_that_it_has_of_the_memory() -> None:
    gpu = DeviceView(
        a_device("GPU-0", mig_enabled=True, memory_bytes=80 * GIB), limited(400_000), a_sample("GPU-0")
    )
    instance = DeviceView(
        a_device("MIG-0", parent="GPU-0", memory_bytes=20 * GIB), HEALTHY, a_sample("MIG-0")
    )
    (device,) = report.status("nvml", DriverInfo("570"), report.facts([gpu, instance]), [])["devices"]
    assert device["powerLimitMilliwatts"] == 100_000
    (orphan,) = report.status("nvml", DriverInfo("570"), report.facts([instance]), [])["devices"]
    assert "powerLimitMilliwatts" not in orphan


def test_more_devices_than_the_wire_takes_are_cut() -> None:
    assert len(parsed(report.batch("n", 1, 1, views(80))).devices) == MAX_DEVICES
    assert len(report.status("nvml", DriverInfo(), report.facts(views(80)), [])["devices"]) == MAX_DEVICES


def test_a_node_full_of_processes_stays_small() -> None:
    many = tuple(
        ProcessUse(4_000_000 + n, 1 << 40, "3f0a9c1e-5b7d-4e2a-9c11-0d6f2b8a7e55") for n in range(2000)
    )
    crowded = [DeviceView(a_device(f"GPU-{n}"), HEALTHY, a_sample(f"GPU-{n}"), many) for n in range(64)]
    batch = report.batch("n", 1, 1, crowded, frozenset(f"GPU-{n}" for n in range(64)))
    assert len(json.dumps(batch)) < 1 << 18
    assert sum(len(d.processes or ()) for d in parsed(batch).devices) == report.PROCESS_LIMIT


def test_the_status_is_what_the_schema_takes_and_the_operator_reads() -> None:
    conditions = [{**report.health_condition(views()), "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    status = report.status("nvml", DriverInfo("570.86.15"), report.facts(views()), conditions)
    GPUNodeStatus.model_validate_json(json.dumps(status))
    node = gpu_node({"metadata": {"name": "n1"}, "status": status})
    assert (node.mode, node.driver) == ("nvml", "570.86.15")
    first, second = node.devices
    assert (first.uuid, first.memory_bytes, first.compute_capability) == ("GPU-0", 80 * GIB, (9, 0))
    assert (first.verdict, first.reason) == (Verdict.UNHEALTHY, "FallenOffBus")
    assert second.verdict is Verdict.HEALTHY
    assert status["devices"][0]["links"] == [
        {"uuid": "GPU-x", "type": "NVLink", "lanes": 4},
        {"uuid": "GPU-y", "type": "NUMA", "lanes": 0},
    ]


def test_the_condition_names_the_sick_and_what_to_do() -> None:
    condition = report.health_condition(views())
    assert (condition["status"], condition["reason"]) == ("False", "FallenOffBus")
    assert "GPU 0 (GPU-0) Unhealthy: XID 79" in condition["message"]
    assert "GPU-1" not in condition["message"]
    assert report.health_condition(views()[1:])["status"] == "True"
    assert report.health_condition([])["reason"] == "NoDevices"
    unknown = DeviceView(a_device(), DeviceHealth())
    assert report.health_condition([unknown])["status"] == "Unknown"


def test_a_condition_of_a_node_full_of_trouble_fits() -> None:
    sick = [DeviceView(a_device(f"GPU-{n:0120d}", n), SICK) for n in range(64)]
    assert len(report.health_condition(sick)["message"]) <= 4096
    assert "and 56 more" in report.health_condition(sick)["message"]


def test_transition_times_move_only_with_the_status() -> None:
    transitions = report.Transitions()
    first = transitions.stamp(report.ready_condition(""), NOW)
    same = transitions.stamp(report.ready_condition(""), NOW + 60)
    other = transitions.stamp(report.ready_condition("a hang"), NOW + 120)
    assert first["lastTransitionTime"] == same["lastTransitionTime"] == "2023-11-14T22:13:20Z"
    assert other["lastTransitionTime"] == "2023-11-14T22:15:20Z"
    restarted = report.Transitions()
    restarted.restore([other])
    assert restarted.stamp(report.ready_condition("another hang"), NOW + 999) == {
        **other,
        "message": "another hang",
    }


def test_last_words_keep_the_devices_and_take_their_health() -> None:
    status = report.status("nvml", DriverInfo("570"), report.facts(views()), [])
    lost = report.lost({"status": status}, "no session", NOW + 5)
    GPUNodeStatus.model_validate_json(json.dumps(lost))
    assert [d["uuid"] for d in lost["devices"]] == ["GPU-0", "GPU-1"]
    assert {(d["health"]["verdict"], d["health"]["reason"]) for d in lost["devices"]} == {
        ("Unhealthy", "DriverLost")
    }
    again = report.lost({"status": lost}, "no session", NOW + 500)
    assert again["devices"] == lost["devices"], "a crash loop does not move the times"

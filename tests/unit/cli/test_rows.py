"""What commands read out of API objects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmos_operator.cli import devices, failures, queue, status, workloads
from llmos_operator.cli.options import workload_name

NOW = 1_700_000_000.0
CREATED = "2023-11-14T22:10:20Z"  # three minutes before NOW


def condition(kind: str, value: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "lastTransitionTime": CREATED,
    }


def a_workload(name: str = "chat", **status_fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}", "creationTimestamp": CREATED},
        "spec": {"type": "Inference", "model": {"uri": "hf://a/b"}, "queueName": "research"},
        "status": status_fields,
    }


def test_a_fresh_workload_is_pending_and_three_minutes_old() -> None:
    item = a_workload()
    del item["status"]
    row = workloads.row(item, NOW)
    assert (row.phase, row.ready, row.model, workloads.since(row)) == ("Pending", "0/1", "chat", "3m")


def test_the_first_unmet_condition_says_why_a_workload_is_not_ready() -> None:
    row = workloads.row(
        a_workload(
            conditions=[
                condition("Ready", "False", "NotReady", "one of several"),
                condition("ModelLoaded", "Unknown", "Pending"),
                condition("Scheduled", "False", "NoCapacity", "3 nodes short by 1.2 GiB"),
                condition("Accepted", "True", "Accepted"),
            ]
        ),
        NOW,
    )
    assert (row.reason, row.message) == ("NoCapacity", "3 nodes short by 1.2 GiB")


def test_a_ready_but_degraded_workload_shows_the_degradation() -> None:
    conditions = [
        condition("Ready", "True", "Ready"),
        condition("Degraded", "True", "GPUUnhealthy", "XID 79"),
    ]
    assert workloads.row(a_workload(conditions=conditions), NOW).reason == "GPUUnhealthy"


def test_a_suspended_workload_says_so_first() -> None:
    conditions = [condition("Scheduled", "False", "Pending"), condition("Suspended", "True", "Suspended")]
    assert workloads.row(a_workload(conditions=conditions), NOW).reason == "Suspended"


def test_placements_and_load_are_read() -> None:
    row = workloads.row(
        a_workload(
            readyReplicas=1,
            model={"quantization": "int8", "observedMemory": "700Mi"},
            load={"stage": "Loading", "bytesDone": 50, "bytesTotal": 100, "eta": "4s"},
            placements=[
                {"pod": "chat-0", "node": "n1", "deviceUUIDs": ["GPU-1"], "reservedMemory": "800Mi"},
                {"pod": "chat-1", "node": "n1", "deviceUUIDs": ["GPU-2"], "reservedMemory": "800Mi"},
            ],
        ),
        NOW,
    )
    assert row.nodes == ("n1",)
    assert row.devices == ("GPU-1", "GPU-2")
    assert row.load == "Loading █████░░░░░  50% of 100 B eta 4s"


def test_waiting_workloads_are_told_from_running_suspended_and_finished_ones() -> None:
    def waits(**fields: Any) -> bool:
        return queue.waits(workloads.row(a_workload(**fields), NOW))

    assert waits(queuePosition=2)
    assert waits(conditions=[condition("Scheduled", "False", "NoCapacity")])
    assert not waits(conditions=[condition("Scheduled", "True", "Bound")])
    assert not waits(conditions=[condition("Suspended", "True", "Suspended")])
    assert not waits(conditions=[condition("Finished", "True", "Succeeded")])


def test_a_queue_without_nominal_is_unlimited() -> None:
    row = queue.queue_row(
        {
            "metadata": {"name": "default"},
            "spec": {},
            "status": {"usage": {"gpus": "1500m", "memory": "3221225472"}},
        }
    )
    assert (row.nominal, row.used, row.weight, row.pending) == ("unlimited", "1500m gpu, 3.0 GiB", 1, 0)


def a_node(name: str, *uuids: str, reserved: str = "0") -> dict[str, Any]:
    health = {"verdict": "Healthy"}
    return {
        "metadata": {"name": name},
        "status": {
            "devices": [
                {"uuid": uuid, "index": i, "product": "SIM-A", "memory": "1Gi", "health": health}
                for i, uuid in enumerate(uuids)
            ],
            "ledger": {"devices": [{"uuid": uuid, "reserved": reserved, "claims": 1} for uuid in uuids]},
        },
    }


def test_an_agents_metrics_are_read_by_device_and_absent_is_not_zero() -> None:
    text = """# HELP llmos_gpu_memory_used_bytes Memory in use.
llmos_gpu_memory_used_bytes{index="0",uuid="GPU-1"} 1.048576e+06
llmos_gpu_utilization_ratio{uuid="GPU-1",index="0"} 0.25
llmos_gpu_memory_used_bytes{uuid="GPU-2"} 5
other_metric{uuid="GPU-3"} 1
"""
    assert devices.parse_metrics(text) == {
        "GPU-1": devices.Measured(1 << 20, 0.25),
        "GPU-2": devices.Measured(5, None),
    }


def test_devices_show_reservation_measurement_and_tenants() -> None:
    claim = json.dumps({"workload": "team/chat", "devices": ["GPU-2"]})
    pods = [
        {"metadata": {"annotations": {"llmos.dev/claim": claim}}, "status": {"phase": "Running"}},
        {"metadata": {"annotations": {"llmos.dev/claim": claim}}, "status": {"phase": "Failed"}},
        {"metadata": {"annotations": {"llmos.dev/claim": "{broken"}}, "status": {"phase": "Running"}},
        {"metadata": {}, "status": {}},
    ]
    rows = devices.rows(
        [a_node("n1", "GPU-1", "GPU-2", reserved="512Mi")],
        devices.tenants(pods),
        {"GPU-2": devices.Measured(7)},
    )
    assert [(row.uuid, row.reserved_bytes, row.used_bytes, row.tenants) for row in rows] == [
        ("GPU-1", 512 << 20, None, ()),
        ("GPU-2", 512 << 20, 7, ("team/chat",)),
    ]


def test_the_overview_adds_up_devices_and_finds_the_leader() -> None:
    lease = {"spec": {"holderIdentity": "op-1", "renewTime": "2023-11-14T22:13:15.000000Z"}}
    seen = status.overview(
        "https://x", [a_node("n1", "a", "b", reserved="256Mi"), a_node("n2", "c")], lease, NOW
    )
    assert (seen.nodes, seen.devices, seen.healthy) == (2, 3, 3)
    assert (seen.memory_bytes, seen.reserved_bytes) == (3 << 30, 512 << 20)
    assert (seen.leader, seen.leader_seconds) == ("op-1", 5.0)


@pytest.mark.parametrize("text", ["chat", "mw/chat", "modelworkload/chat", "modelworkloads.llmos.dev/chat"])
def test_a_workload_may_be_written_as_kubectl_writes_it(text: str) -> None:
    assert workload_name(text) == "chat"


def test_another_kind_is_refused() -> None:
    with pytest.raises(Exception, match="write mw/NAME"):
        workload_name("pod/chat")


def test_an_unknown_name_suggests_near_ones() -> None:
    error = failures.unknown("workload", "team/caht", ["team/chat", "team/embeddings"])
    assert error.status == failures.NOT_FOUND
    assert "did you mean team/chat?" in str(error)
    assert "there are: team/chat, team/embeddings" in str(
        failures.unknown("workload", "team/zzz", ["team/chat", "team/embeddings"])
    )
    assert "no workload at all" in str(failures.unknown("workload", "team/zzz", []))


def test_of_equal_names_the_one_of_the_same_namespace_is_suggested_first() -> None:
    known = ["a/chat", "b/chat", "z/chat"]
    assert "did you mean b/chat or z/chat or a/chat?" in str(failures.unknown("workload", "b/caht", known))

"""Workloads and pods from their JSON."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.gateway import objects
from llmos_operator.gateway.catalog import ColdStart, Rate
from tests.support.gateway import condition, pod_json, workload_json


def test_a_plain_workload_gets_the_defaults() -> None:
    found = objects.workload(workload_json("chat", uid="u"))
    assert found is not None
    assert (str(found.key), found.served_name, found.port) == ("team/chat", "chat", 8000)
    assert (found.cold_start, found.can_start, found.max_in_flight) == (ColdStart.HOLD, True, 64)
    assert found.rate == Rate(0, 0)


def test_all_that_routing_needs_is_read() -> None:
    spec = {
        "scaling": {"coldStart": "Reject", "maxReplicas": 2},
        "serving": {"port": 9000, "rateLimit": {"requestsPerMinute": 6, "tokensPerMinute": 60}},
        "context": {"maxNumSeqs": 8},
    }
    found = objects.workload(workload_json("chat", uid="u", served="org/chat", spec=spec, eta="1m30s"))
    assert found is not None
    assert (found.served_name, found.port, found.cold_start) == ("org/chat", 9000, ColdStart.REJECT)
    assert (found.rate, found.max_in_flight, found.eta_seconds) == (Rate(6, 60), 8, 90)


def test_a_canary_is_read_from_the_status_and_its_side_from_the_annotation_of_pods() -> None:
    body, pod = workload_json("chat", uid="u"), pod_json("r1", "u", "127.0.0.1", 1, uid="p", spec_hash="abc")
    body["status"]["canary"] = {"specHash": "abc", "trafficPercent": 10}
    workload, replica = objects.workload(body), objects.replica(pod, {})
    assert workload is not None
    assert replica is not None
    assert (workload.canary_hash, workload.canary_percent, replica.spec_hash) == ("abc", 10, "abc")


@pytest.mark.parametrize("kind", ["FineTune", "Batch"])
def test_work_that_serves_nothing_is_left_out(kind: str) -> None:
    assert objects.workload(workload_json("job", uid="u", spec={"type": kind})) is None


def test_a_workload_that_is_being_deleted_is_left_out() -> None:
    body = workload_json("chat", uid="u")
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert objects.workload(body) is None


@pytest.mark.parametrize(
    ("conditions", "failure", "waiting_for"),
    [
        ([], "", ""),
        ([condition("Accepted", "Unknown", "Pending")], "", ""),
        ([condition("Accepted", "True", "Accepted"), condition("Ready", "False", "NotReady")], "", ""),
        ([condition("Accepted", "False", "InvalidSpec", "spec.x: bad")], "InvalidSpec: spec.x: bad", ""),
        (
            [condition("QuotaReserved", "False", "NoCapacity", "needs 3Gi more")],
            "",
            "NoCapacity: needs 3Gi more",
        ),
        ([condition("QuotaReserved", "False", "LargerThanAnyDevice")], "LargerThanAnyDevice", ""),
        ([condition("ModelLoaded", "False", "Downloading", "3 of 9 GB")], "", "Downloading: 3 of 9 GB"),
        ([condition("ModelLoaded", "False", "UnsafeFormat", "pickle")], "UnsafeFormat: pickle", ""),
        ([condition("ModelLoaded", "False", "OutOfMemory", "retrying")], "", "OutOfMemory: retrying"),
        (
            [
                condition("ModelLoaded", "False", "Loading", "x"),
                condition("Scheduled", "False", "NoCapacity", "y"),
            ],
            "",
            "NoCapacity: y",
        ),
        ([condition("Finished", "True", "Failed", "gave up")], "Failed: gave up", ""),
        (
            [condition("Asleep", "True", "Asleep", "x"), condition("ModelLoaded", "False", "Loading")],
            "",
            "Asleep: x",
        ),
        (
            [condition("Asleep", "True", "Asleep", "x"), condition("Accepted", "False", "InvalidSpec")],
            "InvalidSpec",
            "",
        ),
        ([condition("Asleep", "False", "Awake")], "", ""),
    ],
)
def test_conditions_say_what_it_waits_for_and_whether_waiting_is_hopeless(
    conditions: list[dict[str, str]], failure: str, waiting_for: str
) -> None:
    found = objects.workload(workload_json("chat", uid="u", conditions=conditions))
    assert found is not None
    assert (found.failure, found.waiting_for) == (failure, waiting_for)
    assert found.can_start is not bool(failure)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"serving": {"port": "http"}}},
        {"spec": {"scaling": {"coldStart": "Maybe"}}},
        {"spec": {"model": {"name": 7}}},
        {"spec": []},
        {"status": {"conditions": "none"}},
    ],
)
def test_what_cannot_be_read_raises_with_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(Permanent, match=r"spec|status"):
        objects.workload({**workload_json("chat", uid="u"), **change})


def test_a_ready_pod_is_a_replica_at_the_port_it_says() -> None:
    found = objects.replica(pod_json("p", "w", "127.8.0.9", 9000, uid="pu"), {"w": 1})
    assert found is not None
    assert (found.uid, found.workload_uid, found.name) == ("pu", "w", "team/p")
    assert (found.host, found.port) == ("127.8.0.9", 9000)


def test_a_pod_that_does_not_say_its_port_has_the_workloads() -> None:
    body = pod_json("p", "w", "127.8.0.9", 9000, uid="pu")
    body["spec"]["containers"][0]["env"] = []
    at = [found.port for ports in ({"w": 7000}, {}) if (found := objects.replica(body, ports)) is not None]
    assert at == [7000, 8000]


def test_the_port_of_a_native_sidecar_counts() -> None:
    body = pod_json("p", "w", "127.8.0.9", 9000, uid="pu")
    body["spec"] = {"initContainers": body["spec"]["containers"], "containers": [{"name": "app"}]}
    found = objects.replica(body, {})
    assert found is not None
    assert found.port == 9000


def _pod(**changes: Any) -> dict[str, Any]:
    body = pod_json("p", "w", "127.8.0.9", 9000, uid="pu")
    for section, values in changes.items():
        body[section].update(values)
    return body


@pytest.mark.parametrize(
    "body",
    [
        _pod(status={"conditions": [{"type": "Ready", "status": "False"}]}),
        _pod(status={"conditions": []}),
        _pod(status={"podIP": ""}),
        _pod(metadata={"labels": {"llmos.dev/role": "runtime"}}),
        _pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    ],
)
def test_a_pod_that_must_not_get_requests_is_no_replica(body: dict[str, Any]) -> None:
    assert objects.replica(body, {}) is None

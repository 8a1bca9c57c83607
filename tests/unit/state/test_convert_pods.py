"""Pods and the claims written on them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api import names
from llmos_operator.state import convert
from llmos_operator.state.types import Claim, PodPhase, Sharing, Sleeping, Target

CLAIM = Claim(
    workload="team/chat",
    workload_uid="u1",
    ordinal=2,
    pod="team/chat-2",
    node="n1",
    devices=("GPU-a", "GPU-b"),
    bytes_per_device=123,
    format="int8",
    queue="research",
    cpu_milli=500,
    memory_bytes=1 << 30,
)


def a_pod(claim: str | None = None, **spec: Any) -> dict[str, Any]:
    owner = {"kind": "ModelWorkload", "uid": "u1", "controller": True}
    annotations = {} if claim is None else {names.ANNOTATION_CLAIM: claim}
    requests = {"cpu": "500m", "memory": "1Gi"}
    return {
        "metadata": {
            "name": "chat-2",
            "namespace": "team",
            "uid": "p1",
            "labels": {"app": "x"},
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "resources": {"requests": requests}}],
            **spec,
        },
        "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"},
    }


@given(
    st.builds(
        Claim,
        workload=st.just("team/chat"),
        workload_uid=st.just("u1"),
        ordinal=st.integers(0, 999),
        pod=st.just("team/chat-2"),
        node=st.just("n1"),
        devices=st.lists(st.text(min_size=1, max_size=20), max_size=8).map(tuple),
        bytes_per_device=st.integers(0, 1 << 50),
        compute_milli=st.integers(0, 1000),
        sharing=st.sampled_from(Sharing),
        domain=st.text(max_size=10),
        format=st.sampled_from(["bf16", "int8", ""]),
        max_model_len=st.integers(0, 1 << 24),
        kv_tokens=st.integers(0, 1 << 30),
        cpu_milli=st.just(500),
        memory_bytes=st.just(1 << 30),
        priority=st.integers(-(1 << 31), (1 << 31) - 1),
        queue=st.text(max_size=10),
        gpu_milli=st.integers(0, 64_000),
        charged_bytes=st.integers(0, 1 << 50),
        bound_at=st.integers(0, 1 << 42).map(lambda ms: ms / 1000),
        min_runtime=st.integers(0, 1 << 30).map(lambda ms: ms / 1000),
    )
)
def test_a_claim_survives_the_annotation_exactly(claim: Claim) -> None:
    assert convert.pod(a_pod(convert.claim_json(claim))).claim == claim


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        (json.dumps({"workload": "team/chat"}), "uid: is required"),
        (json.dumps({"workload": "other/chat", "uid": "u1"}), "not in the pod's namespace"),
        (json.dumps({"workload": "team/chat", "uid": "u2"}), "does not own the pod"),
        (json.dumps({"workload": "team/chat", "uid": "u1", "bytesPerDevice": -5}), "-5 is below 0"),
    ],
)
def test_a_claim_that_cannot_be_believed_leaves_the_pod_counted_by_its_requests(
    annotation: str, problem: str
) -> None:
    got = convert.pod(a_pod(annotation))
    assert got.claim is None
    assert problem in got.problem
    assert (got.cpu_milli, got.memory_bytes) == (500, 1 << 30)


def container(cpu: str, memory: str = "0", **more: Any) -> dict[str, Any]:
    return {"name": "x", "resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        ({"containers": [container("1"), container("500m")]}, 1500),
        ({"containers": [container("1")], "initContainers": [container("3")]}, 3000),
        ({"containers": [container("1")], "initContainers": [container("2", restartPolicy="Always")]}, 3000),
        ({"containers": [container("1")], "initContainers": [container("2", restartPolicy="Always"), container("4")]}, 6000),
        ({"containers": [container("1")], "initContainers": [container("4"), container("2", restartPolicy="Always")]}, 4000),
        ({"containers": [container("1")], "overhead": {"cpu": "250m"}}, 1250),
        ({"containers": [container("1")], "resources": {"requests": {"cpu": "7"}}}, 7000),
    ],
)  # fmt: skip
def test_requests_follow_the_rules_of_kubernetes(spec: dict[str, Any], cpu: int) -> None:
    assert convert.pod(a_pod(**spec)).cpu_milli == cpu


def test_gpu_limits_count_as_requests() -> None:
    spec = {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}
    assert convert.pod(a_pod(**spec)).gpus == 2


def test_units_of_instances_are_counted_by_resource() -> None:
    def asking(**counts: str) -> dict[str, Any]:
        return {
            "name": "c",
            "resources": {"limits": {f"nvidia.com/mig-{key}": n for key, n in counts.items()}},
        }

    small, large = "nvidia.com/mig-1g", "nvidia.com/mig-3g"
    found = convert.pod(
        a_pod(
            containers=[asking(**{"1g": "1"}), asking(**{"1g": "1", "3g": "1"})],
            initContainers=[asking(**{"1g": "1"}) | {"restartPolicy": "Always"}, asking(**{"3g": "4"})],
        )
    )
    assert (found.partitions, found.gpus) == ({small: 3, large: 4}, 0)
    assert convert.pod(a_pod()).partitions == {}


def test_the_resource_of_a_claim_on_an_instance_is_what_its_pod_asks_for() -> None:
    claim = replace(CLAIM, sharing=Sharing.MIG, devices=("MIG-a",))

    def read(resource: str) -> str:
        limits = {resource: "1"} if resource else {}
        pod = a_pod(
            convert.claim_json(claim), containers=[{"name": "runtime", "resources": {"limits": limits}}]
        )
        found = convert.pod(pod)
        assert found.partitions == {}
        assert found.claim is not None
        return found.claim.resource

    for resource in ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu", ""):
        assert read(resource) == resource


def test_phases() -> None:
    running, ended, leaving = a_pod(), a_pod(), a_pod()
    ended["status"]["phase"] = "Failed"
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    assert convert.pod(running).phase is PodPhase.BOUND
    assert (convert.pod(ended).phase, convert.pod(ended).failed) == (PodPhase.FINISHED, True)
    assert (convert.pod(leaving).phase, convert.pod(leaving).deletion_at) == (
        PodPhase.TERMINATING,
        1767225660.0,
    )


def test_labels_of_others_are_not_kept() -> None:
    assert convert.pod(a_pod()).labels == {}
    assert convert.pod(a_pod(convert.claim_json(CLAIM))).labels == {"app": "x"}


@pytest.mark.parametrize(
    "changed",
    [
        {"bytesPerDevice": 10**30},
        {"gpuMilli": 10**30},
        {"boundAtMilli": 10**400},
        {"computeMilli": 1001},
        {"format": "zz"},
    ],
    ids=str,
)
def test_a_claim_with_values_nobody_can_count_with_is_not_believed(changed: dict[str, Any]) -> None:
    annotation = json.dumps({**json.loads(convert.claim_json(CLAIM)), **changed})
    read = convert.pod(a_pod(annotation))
    assert read.claim is None
    assert next(iter(changed)) in read.problem


def test_a_deeply_nested_claim_is_not_believed() -> None:
    assert convert.pod(a_pod("[" * 5000)).claim is None


def test_requests_beyond_any_node_are_cut_so_that_sums_stay_countable() -> None:
    asked = {"cpu": "9e15", "memory": "7Ei"}
    read = convert.pod(a_pod(containers=[{"name": n, "resources": {"requests": asked}} for n in "abc"]))
    assert (read.cpu_milli, read.memory_bytes) == (1 << 50, 1 << 50)


def a_runtime(**env: str) -> list[dict[str, Any]]:
    return [{"name": "runtime", "env": [{"name": name, "value": value} for name, value in env.items()]}]


def test_an_edited_claim_counts_as_the_pod_was_created():
    """The annotation may be edited; the environment of a pod may not."""
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    forged = json.dumps({**json.loads(convert.claim_json(CLAIM)), "devices": ["GPU-z"], "bytesPerDevice": 1})
    pod = convert.pod(a_pod(forged, containers=a_runtime(**env)))
    assert pod.claim is not None
    assert pod.claim.devices == ("GPU-a", "GPU-b")
    assert pod.claim.bytes_per_device == 123
    assert "bytes_per_device, devices are not what the pod was created with" in pod.problem


def test_a_runtime_without_devices_claims_none():
    pod = convert.pod(a_pod(convert.claim_json(CLAIM), containers=a_runtime(**{names.ENV_DEVICES: "void"})))
    assert pod.claim is not None
    assert pod.claim.devices == ()
    assert pod.problem


def test_a_claim_that_agrees_with_the_environment_is_no_problem():
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    pod = convert.pod(a_pod(convert.claim_json(CLAIM), containers=a_runtime(**env)))
    assert pod.problem == ""
    assert pod.claim is not None
    assert pod.claim.devices == CLAIM.devices


def test_a_lowered_claim_reads_back_as_it_was_written():
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    lowered = replace(CLAIM, asked_bytes=100, asked_at=1_700_000_000.5, yielded=True)
    pod = convert.pod(a_pod(convert.claim_json(lowered), containers=a_runtime(**env)))
    assert pod.problem == ""
    assert pod.claim is not None
    assert (pod.claim.asked_bytes, pod.claim.asked_at, pod.claim.yielded) == (100, 1_700_000_000.5, True)
    assert (pod.claim.bytes_per_device, pod.claim.held_bytes) == (123, 100)


def test_a_claim_at_a_narrower_format_reads_back_as_it_was_written():
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    asked = replace(CLAIM, asked_bytes=100, asked_format="int4")
    for claim, served in ((asked, CLAIM.format), (replace(asked, yielded=True), "int4")):
        pod = convert.pod(a_pod(convert.claim_json(claim), containers=a_runtime(**env)))
        assert pod.claim is not None
        assert (pod.claim.asked_format, pod.claim.served_format) == ("int4", served)
    strange = replace(CLAIM, asked_bytes=100, asked_format="int3")
    pod = convert.pod(a_pod(convert.claim_json(strange), containers=a_runtime(**env)))
    assert pod.claim is not None
    assert (pod.claim.asked_format, pod.claim.asked_bytes) == ("", 100)


def test_a_claim_that_sleeps_reads_back_as_it_was_written():
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    sleeping = Sleeping(50, 70, 1_700_000_000.5, "team/urgent", down=True)
    claim = replace(CLAIM, sharing=Sharing.SHARED, asked_bytes=100, yielded=True, sleeping=sleeping)
    pod = convert.pod(a_pod(convert.claim_json(claim), containers=a_runtime(**env)))
    assert pod.problem == ""
    assert pod.claim is not None
    assert pod.claim.sleeping == sleeping
    assert (pod.claim.held_bytes, pod.claim.awake_bytes, pod.claim.host_bytes) == (50, 100, 70)


@pytest.mark.parametrize(
    "changes",
    [
        {"sharing": Sharing.EXCLUSIVE, "sleeping": Sleeping(50, 70, 1.0, down=True)},
        {"sharing": Sharing.SHARED, "sleeping": Sleeping(0, 70, 1.0, down=True)},
        {"sharing": Sharing.SHARED, "sleeping": Sleeping(123, 70, 1.0, down=True)},
    ],
)
def test_a_pod_is_not_believed_to_sleep_where_that_cannot_be(changes):
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    pod = convert.pod(a_pod(convert.claim_json(replace(CLAIM, **changes)), containers=a_runtime(**env)))
    assert pod.claim is not None
    assert pod.claim.sleeping is None
    assert pod.claim.held_bytes == 123
    assert "sleeping" in pod.problem


def test_a_claim_is_never_lowered_to_more_than_the_pod_was_created_with():
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    raised = replace(CLAIM, asked_bytes=1 << 40, yielded=True)
    pod = convert.pod(a_pod(convert.claim_json(raised), containers=a_runtime(**env)))
    assert pod.claim is not None
    assert pod.claim.held_bytes == 123
    assert "asked_bytes" in pod.problem


def test_where_a_replica_goes_and_when_it_came_read_back_as_they_were_written():
    env = {names.ENV_DEVICES: "GPU-a,GPU-b", names.ENV_MEMORY_LIMIT: "123"}
    target = Target(
        "n2", ("GPU-c", "GPU-d"), "int8", 4096, 8192, 1_700_000_000.5, 1_700_000_330.5, "team/big"
    )
    moving = replace(CLAIM, moved_at=1_600_000_000.25, target=target)
    pod = convert.pod(a_pod(convert.claim_json(moving), containers=a_runtime(**env)))
    assert pod.problem == ""
    assert pod.claim is not None
    assert (pod.claim.moved_at, pod.claim.target) == (moving.moved_at, target)

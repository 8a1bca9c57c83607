"""From `kubectl apply` to a serving replica and back, on a real API server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmos_operator.cluster import port as ports
from tests.support.fakekubelet import Script
from tests.support.operator_process import condition_of
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


async def test_a_workload_is_accepted_placed_started_and_serves(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("chat", uri)
    workload = await bench.until_phase("chat", "Running")
    status = workload["status"]
    assert status["readyReplicas"] == 1
    assert status["model"]["quantization"] == "bf16"
    assert status["placements"][0]["node"] == "n1"
    assert status["placements"][0]["deviceUUIDs"] == ["GPU-sim-n1-0"]
    assert status["url"] == "http://chat.team.svc"
    for kind in (
        "Accepted",
        "QuotaReserved",
        "Scheduled",
        "ModelCached",
        "ModelLoaded",
        "Available",
        "Ready",
    ):
        assert condition_of(workload, kind)["status"] == "True", kind
    (pod,) = await bench.pods("chat")
    claim = json.loads(pod["metadata"]["annotations"]["llmos.dev/claim"])
    assert claim["devices"] == ["GPU-sim-n1-0"]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == workload["metadata"]["uid"]
    service = await bench.port.get(ports.SERVICES, "chat", namespace=bench.namespace)
    assert service["spec"]["selector"]["llmos.dev/workload-uid"] == workload["metadata"]["uid"]
    secret = await bench.port.get(ports.SECRETS, "llmos-runtime-control", namespace=bench.namespace)
    assert secret["data"]["token"]


async def test_apply_to_ready_costs_at_most_five_writes(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    bench.operator()
    await bench.apply("first", uri)
    await bench.until_phase("first", "Running")
    bench.proxy.requests.clear()
    bench.kubelet.script = lambda _: Script(ready_after=1.0)
    await bench.apply("second", uri)
    await bench.until_phase("second", "Running")
    writes = [one for one in bench.proxy.writes() if "second" in one.path or one.method == "POST"]
    assert len(writes) <= 5, [f"{one.method} {one.path}" for one in writes]


async def test_deleting_a_workload_ends_its_pods_and_frees_its_device(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("one", uri)
    await bench.until_phase("one", "Running")
    await bench.apply("two", uri)
    await bench.until_condition("two", "Scheduled", "False", "NoCapacity")
    await bench.delete("one")
    await bench.until_phase("two", "Running")
    assert await bench.pods("one") == []


async def test_a_workload_recreated_under_its_name_gets_a_pod_and_a_service_of_its_own(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    bench.operator()
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    (before,) = await bench.pods("chat")
    await bench.delete("chat")
    again = await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")

    async def only_the_new() -> bool:
        pods = await bench.pods("chat")
        return [pod["metadata"]["ownerReferences"][0]["uid"] for pod in pods] == [again["metadata"]["uid"]]

    await bench.until(only_the_new, "only the new workload's pod is left")
    (after,) = await bench.pods("chat")
    assert after["metadata"]["name"] != before["metadata"]["name"]

    async def served() -> bool:
        service = await bench.port.get(ports.SERVICES, "chat", namespace=bench.namespace)
        return service["spec"]["selector"]["llmos.dev/workload-uid"] == again["metadata"]["uid"]

    await bench.until(served, "the Service leads to the new workload")


async def test_a_changed_spec_replaces_the_pod(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    bench.operator()
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    (before,) = await bench.pods("chat")
    await bench.apply("chat", uri, context={"maxNumSeqs": 7})

    async def replaced() -> bool:
        pods = await bench.pods("chat")
        return len(pods) == 1 and pods[0]["metadata"]["uid"] != before["metadata"]["uid"]

    await bench.until(replaced, "the pod was replaced")
    await bench.until_phase("chat", "Running")
    (after,) = await bench.pods("chat")
    env = {one["name"]: one.get("value") for one in after["spec"]["containers"][0]["env"]}
    assert env["LLMOS_MAX_NUM_SEQS"] == "7"


async def test_a_spec_edited_while_its_model_loads_leaves_one_pod_of_the_new_spec(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=1)
    bench.kubelet.script = lambda _: Script(ready_after=float("inf"))
    bench.operator()
    await bench.apply("chat", uri)
    await bench.until_condition("chat", "ModelLoaded", "False", "Loading")
    (loading,) = await bench.pods("chat")
    bench.kubelet.script = lambda _: Script()
    await bench.apply("chat", uri, context={"maxNumSeqs": 7})
    await bench.until_phase("chat", "Running")
    (pod,) = await bench.pods("chat")
    assert pod["metadata"]["uid"] != loading["metadata"]["uid"]
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    assert env["LLMOS_MAX_NUM_SEQS"] == "7"
    assert len(bench.kubelet.started) == 2


async def test_replicas_follow_the_spec_and_suspend_gives_everything_back(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=3)
    bench.operator()
    await bench.apply("chat", uri, replicas=3)
    await bench.until_phase("chat", "Running")
    assert len(await bench.pods("chat")) == 3
    await bench.apply("chat", uri, replicas=1)

    async def one_left() -> bool:
        return len(await bench.pods("chat")) == 1

    await bench.until(one_left, "one replica is left")
    await bench.apply("chat", uri, replicas=1, suspend=True)
    suspended = await bench.until_phase("chat", "Suspended")
    assert condition_of(suspended, "Suspended")["status"] == "True"

    async def none_left() -> bool:
        return not await bench.pods("chat")

    await bench.until(none_left, "no replica is left")
    await bench.apply("chat", uri, replicas=1, suspend=False)
    await bench.until_phase("chat", "Running")


async def test_a_pod_deleted_by_hand_comes_back(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    (before,) = await bench.pods("chat")
    await bench.port.delete(ports.PODS, before["metadata"]["name"], namespace=bench.namespace)

    async def back() -> bool:
        pods = await bench.pods("chat")
        return bool(pods) and pods[0]["metadata"]["uid"] != before["metadata"]["uid"]

    await bench.until(back, "a new pod exists")
    await bench.until_phase("chat", "Running")

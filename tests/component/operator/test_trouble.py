"""What goes wrong with workloads: each trouble gets a condition a person can act on, and harms nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.runtime.messages import Failure
from llmos_operator.cluster import port as ports
from llmos_operator.errors import LlmosError
from tests.support.fakekubelet import Script
from tests.support.operator_process import collect, condition_of
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


@pytest.mark.parametrize(
    ("name", "make", "reason", "words"),
    [
        ("missing", lambda _: "hf://acme/none", "ModelNotFound", "no model 'acme/none'"),
        ("code", lambda hub: write_model(hub, "acme/code", auto_map={"x": "y"}), "UnsafeConfig", "auto_map"),
        (
            "pickle",
            lambda hub: write_model(hub, "acme/pickle", pickle_only=True),
            "UnsafeFormat",
            "pytorch_model.bin",
        ),
        ("cut", lambda hub: write_model(hub, "acme/cut", cut=100), "Corrupted", "truncated"),
        ("scheme", lambda _: "s3://bucket/model", "AccessDenied", "resources.memory"),
        ("file", lambda _: "file:///models/x", "SourceNotAllowed", "sources.allowFile"),
        ("web", lambda _: "https://example.com/model", "SourceNotAllowed", "sources.allowedHosts"),
    ],
)
async def test_a_model_that_cannot_be_served_is_refused_and_others_go_on(
    bench: Bench, name: str, make, reason: str, words: str
) -> None:
    good = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply(name, make(bench.hub))
    await bench.apply("good", good)
    accepted = await bench.until_condition(name, "Accepted", "False", reason)
    assert words in accepted["message"]
    failed = await bench.until_phase(name, "Failed")
    assert condition_of(failed, "Ready")["reason"] == reason
    await bench.until_phase("good", "Running")
    assert await bench.pods(name) == []


async def test_a_model_that_is_published_later_is_found(bench: Bench) -> None:
    await bench.node("n1")
    bench.operator()
    await bench.apply("late", "hf://acme/late")
    await bench.until_condition("late", "Accepted", "False", "ModelNotFound")
    write_model(bench.hub, "acme/late")
    await bench.until_phase("late", "Running", seconds=40)


async def test_a_request_larger_than_any_device_says_by_how_much(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", memory="1Gi")
    bench.operator()
    await bench.apply("big", uri, resources={"memory": "3Gi"})
    scheduled = await bench.until_condition("big", "Scheduled", "False", "LargerThanAnyDevice")
    assert "2.0 GiB" in scheduled["message"]


async def test_work_this_release_cannot_run_says_so(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("vllm", uri, engine={"name": "vllm", "image": "vllm:1"}, parallelism={"data": 2})
    scheduled = await bench.until_condition("vllm", "Scheduled", "False", "Unsupported")
    assert "one pod" in scheduled["message"]
    assert condition_of(await bench.workload("vllm"), "Accepted")["status"] == "True"
    assert await bench.pods("vllm") == []


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"name": "vllm"}, "engine vllm needs an image"),
        ({"name": "vllm", "image": "v", "args": ["--max_model_len=8"]}, "what the operator decides"),
    ],
)
async def test_a_vllm_the_schema_can_refuse_is_refused_at_once(
    bench: Bench, engine: dict[str, object], words: str
) -> None:
    with pytest.raises(LlmosError, match=words):
        await bench.apply("vllm", "hf://acme/tiny", engine=engine)


async def test_an_abbreviated_argument_the_schema_lets_through_is_refused_by_the_operator(
    bench: Bench,
) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("vllm", uri, engine={"name": "vllm", "image": "v", "args": ["--gpu-mem=0.9"]})
    accepted = await bench.until_condition("vllm", "Accepted", "False", "InvalidSpec")
    assert accepted["message"].startswith("spec.engine.args[0]: --gpu-mem is set by the operator")


async def test_a_queue_that_does_not_exist_is_named(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("lost", uri, queueName="nowhere")
    scheduled = await bench.until_condition("lost", "Scheduled", "False", "QueueNotFound")
    assert "nowhere" in scheduled["message"]


async def test_a_namespace_the_queue_does_not_admit_is_told_and_let_in_when_its_label_comes(
    bench: Bench,
) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    selector = {"matchLabels": {"llmos.dev/team": "research"}}
    queue = {"metadata": {"name": "research"}, "spec": {"namespaceSelector": selector}}
    await bench.port.apply(ports.WORKLOAD_QUEUES, queue, manager="test")
    bench.operator()
    await bench.apply("outside", uri, queueName="research")
    scheduled = await bench.until_condition("outside", "Scheduled", "False", "NamespaceNotAdmitted")
    assert bench.namespace in scheduled["message"]
    assert "research" in scheduled["message"]
    labels = {"metadata": {"labels": {"llmos.dev/team": "research"}}}
    await bench.port.merge_patch(ports.NAMESPACES, bench.namespace, labels)
    await bench.until_phase("outside", "Running")


async def test_a_missing_secret_is_named_and_found_when_it_comes(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.kubelet.script = lambda _: Script(waiting=("CreateContainerConfigError", 'secret "keys" not found'))
    bench.operator()
    await bench.apply("keyed", uri, serving={"apiKeySecretRef": {"name": "keys"}})
    accepted = await bench.until_condition("keyed", "Accepted", "False", "SecretNotFound")
    assert '"keys"' in accepted["message"]
    bench.kubelet.script = lambda _: Script()
    (pod,) = await bench.pods("keyed")
    await bench.port.delete(ports.PODS, pod["metadata"]["name"], namespace=bench.namespace, grace_seconds=0)
    await bench.until_phase("keyed", "Running")
    assert condition_of(await bench.workload("keyed"), "Accepted")["status"] == "True"


async def test_a_load_that_cannot_succeed_is_shown_and_not_tried_again(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    cause = Failure(reason="Unsupported", message="model type 'x' is not served", permanent=True)
    bench.kubelet.script = lambda _: Script(failure=cause)
    bench.operator()
    await bench.apply("odd", uri)
    failed = await bench.until_phase("odd", "Failed")
    assert condition_of(failed, "ModelLoaded")["reason"] == "Unsupported"

    async def gone() -> bool:
        return not await bench.pods("odd")

    await bench.until(gone, "the pod was removed")
    assert len(bench.kubelet.started) == 1
    bench.kubelet.script = lambda _: Script()
    await bench.apply("odd", uri, context={"maxNumSeqs": 3})
    await bench.until_phase("odd", "Running")


async def test_a_restarted_operator_does_not_retry_a_load_that_cannot_succeed(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    cause = Failure(reason="Corrupted", message="digest mismatch", permanent=True)
    bench.kubelet.script = lambda _: Script(failure=cause)
    first = bench.operator()
    await bench.apply("odd", uri)
    await bench.until_phase("odd", "Failed")
    first.kill()
    await bench.apply("good", write_model(bench.hub, "acme/other"))
    bench.kubelet.script = lambda pod: (
        Script() if pod["metadata"]["name"].startswith("good") else Script(failure=cause)
    )
    bench.operator("operator-b")
    await bench.until_phase("good", "Running")
    assert len([name for name in bench.kubelet.started if name.startswith("odd")]) == 1
    assert condition_of(await bench.workload("odd"), "ModelLoaded")["reason"] == "Corrupted"


@pytest.mark.parametrize("reported_by", ["kubelet", "runtime"])
async def test_out_of_memory_raises_the_estimate_and_the_next_decision_differs(
    bench: Bench, reported_by: str
) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", memory="4Gi")
    cause = Failure(reason="OutOfMemory", message="needed more than reserved", permanent=True)
    hungry = Script(oom_killed=True) if reported_by == "kubelet" else Script(failure=cause)
    bench.kubelet.script = lambda _: hungry
    bench.operator()
    await bench.apply("hungry", uri)

    async def first() -> list:
        return await bench.pods("hungry") if bench.kubelet.started else []

    (before,) = await bench.until(first, "a first pod that was started")
    bench.kubelet.script = lambda _: Script()
    await bench.until_phase("hungry", "Running", seconds=40)
    (after,) = await bench.pods("hungry")
    assert reserved(after) > reserved(before)
    (profile,) = await collect(bench.port, ports.MODEL_PROFILES)
    (fmt,) = [one for one in profile["status"]["formats"] if one["format"] == "bf16"]
    assert fmt["oomFloorBytes"] == reserved(before)
    events = await bench.events("hungry")
    assert any(one["reason"] == "EstimateRaised" for one in events)


def reserved(pod: dict) -> int:
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    return int(env["LLMOS_MEMORY_LIMIT_BYTES"])


async def test_a_service_name_that_is_taken_is_left_alone_and_told(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    spec = {"selector": {"app": "mine"}, "ports": [{"port": 80}]}
    await bench.port.create(
        ports.SERVICES, {"metadata": {"name": "chat"}, "spec": spec}, namespace=bench.namespace
    )
    bench.operator()
    await bench.apply("chat", uri)
    accepted = await bench.until_condition("chat", "Accepted", "False", "NameTaken")
    assert "rename" in accepted["message"]
    service = await bench.port.get(ports.SERVICES, "chat", namespace=bench.namespace)
    assert service["spec"]["selector"] == {"app": "mine"}


async def test_a_priority_class_that_does_not_exist_is_named(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("vip", uri, scheduling={"priorityClassName": "no-such-class"})

    async def told() -> bool:
        status = (await bench.workload("vip")).get("status") or {}
        return "no-such-class" in str(status.get("conditions"))

    await bench.until(told, "the missing class is named")
    assert len(bench.kubelet.started) == 0


async def test_a_device_that_turns_bad_is_left(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    bench.operator()
    await bench.apply("chat", uri)
    running = await bench.until_phase("chat", "Running")
    (uuid,) = running["status"]["placements"][0]["deviceUUIDs"]
    await bench.devices("n1", 2, **{f"d{uuid[-1]}": "Unhealthy"})

    async def moved() -> bool:
        status = (await bench.workload("chat"))["status"]
        placed = status.get("placements") or [{}]
        return status["phase"] == "Running" and placed[0].get("deviceUUIDs") not in (None, [uuid])

    await bench.until(moved, "the replica moved to the healthy device")


async def test_a_node_that_is_deleted_is_left(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")
    await bench.node("n2")
    await bench.port.delete(ports.GPU_NODES, "n1")
    await bench.port.delete(ports.NODES, "n1")

    async def moved() -> bool:
        status = (await bench.workload("chat"))["status"]
        return status["phase"] == "Running" and [one["node"] for one in status["placements"]] == ["n2"]

    await bench.until(moved, "the replica moved to the node that is left")


async def test_a_higher_priority_takes_the_place_and_the_victim_is_told_why(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    await bench.port.create(ports.PRIORITY_CLASSES, {"metadata": {"name": "prod"}, "value": 1000})
    operator = bench.operator(LLMOS_SCHEDULING__MIN_RUNTIME="0.001")
    await bench.telemetry(operator, "n1")
    await bench.apply("low", uri)
    await bench.until_phase("low", "Running")
    bench.proxy.requests.clear()
    await bench.apply("high", uri, scheduling={"priorityClassName": "prod"})
    await bench.until_phase("high", "Running")
    victim = await bench.until_condition("low", "Preempted", "True", "Preempted")
    assert "high" in victim["message"]
    low = await bench.workload("low")
    assert low["status"]["lastPreemption"]["by"] == "team/high"
    evictions = [one for one in bench.proxy.requests if one.path.endswith("/eviction")]
    assert len(evictions) == 1
    assert any(one["reason"] == "Evicted" for one in await bench.events("low"))
    await bench.delete("high")
    back = await bench.until_phase("low", "Running")
    assert condition_of(back, "Preempted")["status"] == "False"

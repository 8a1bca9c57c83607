"""Workloads that wait in queues of Kueue run while it admits them, with its own CRDs on a real API server.

Kueue's controllers are scripted: the tests write what they write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.kueue import ScriptedKueue, condition, install, module
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from llmos_operator.cluster.port import Json
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

ENABLED = {"LLMOS_KUEUE__ENABLED": "true"}
WAITING = "WaitingForKueue"


@pytest.fixture(name="kueue")
async def _kueue(bench: Bench) -> ScriptedKueue:
    folder = module()
    if folder is None:
        pytest.skip("Kueue's CRDs come with its Go module, and there is no go")
    install(bench.plane, folder)
    made = ScriptedKueue(bench)
    await made.flavor("default")
    return made


async def queued(bench: Bench, name: str, uri: str, queue: str = "team", **spec: object) -> Json:
    body = {
        "metadata": {"name": name, "namespace": bench.namespace, "labels": {names.LABEL_KUEUE_QUEUE: queue}},
        "spec": {"model": {"uri": uri}, **spec},
    }
    return await bench.port.apply(ports.MODEL_WORKLOADS, body, manager="test", namespace=bench.namespace)


async def a_queued_chat(bench: Bench) -> str:
    """Start an operator on one node with the workload "chat" in a queue; return the model's URI."""
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator(**ENABLED)
    await queued(bench, "chat", uri)
    return uri


async def until_no_pods(bench: Bench, name: str) -> None:
    async def gone() -> bool:
        return not await bench.pods(name)

    await bench.until(gone, f"no pods of {name}")


async def test_it_starts_when_admitted_gives_way_when_evicted_and_comes_back(
    bench: Bench, kueue: ScriptedKueue
) -> None:
    await a_queued_chat(bench)
    asked = await kueue.workload("chat")
    assert asked["spec"]["queueName"] == "team"
    (pods,) = asked["spec"]["podSets"]
    assert pods["count"] == 1
    assert pods["template"]["spec"]["containers"][0]["resources"]["requests"] == {names.RESOURCE_GPU: "1"}

    await kueue.pend("chat", "insufficient unused quota for nvidia.com/gpu")
    await bench.until_condition("chat", "QuotaReserved", "False", WAITING)
    await bench.until_condition("chat", "Suspended", "True", WAITING)
    assert not await bench.pods("chat")

    await kueue.admit("chat")
    await bench.until_phase("chat", "Running")
    await bench.until_condition("chat", "Suspended", "False")

    await kueue.evict("chat")
    await until_no_pods(bench, "chat")

    async def released() -> Json | None:
        found = await kueue.workload("chat")
        return found if condition(found, "QuotaReserved").get("status") == "False" else None

    given_back = await bench.until(released, "its quota is given back")
    assert "admission" not in given_back["status"]
    assert condition(given_back, "Admitted")["status"] == "False"
    assert condition(given_back, "Requeued")["status"] == "True"

    await kueue.admit("chat")
    await bench.until_phase("chat", "Running")


async def test_what_its_user_suspends_gives_its_quota_back(bench: Bench, kueue: ScriptedKueue) -> None:
    uri = await a_queued_chat(bench)
    await kueue.admit("chat")
    await bench.until_phase("chat", "Running")
    await queued(bench, "chat", uri, suspend=True)
    await bench.until_phase("chat", "Suspended")
    await kueue.none("chat")
    assert not await bench.pods("chat")


async def test_a_flavor_says_on_which_nodes_it_may_be(bench: Bench, kueue: ScriptedKueue) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    await bench.node("n2")
    await bench.port.merge_patch(ports.NODES, "n2", {"metadata": {"labels": {"pool": "spot"}}})
    await kueue.flavor("spot", pool="spot")
    bench.operator(**ENABLED)
    await queued(bench, "chat", uri)
    await kueue.admit("chat", "spot")
    await bench.until_phase("chat", "Running")
    assert [one["spec"]["nodeName"] for one in await bench.pods("chat")] == ["n2"]


async def test_another_queue_is_asked_anew_and_no_queue_is_not_asked(
    bench: Bench, kueue: ScriptedKueue
) -> None:
    uri = await a_queued_chat(bench)
    await kueue.admit("chat")
    await bench.until_phase("chat", "Running")
    await queued(bench, "chat", uri, queue="other")

    async def moved() -> bool:
        return (await kueue.workload("chat"))["spec"]["queueName"] == "other"

    await bench.until(moved, "the other queue is asked")
    assert not await bench.pods("chat")
    await bench.apply("chat", uri)  # without the label
    await bench.until_phase("chat", "Running")
    await kueue.none("chat")


async def test_a_restarted_operator_leaves_alone_what_is_admitted(bench: Bench, kueue: ScriptedKueue) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    first = bench.operator(**ENABLED)
    await queued(bench, "chat", uri)
    await kueue.admit("chat")
    await bench.until_phase("chat", "Running")
    (before,) = await bench.pods("chat")
    first.kill()
    bench.operator("operator-b", **ENABLED)
    await queued(bench, "next", uri)
    await kueue.workload("next")  # the new leader has looked at everything
    (after,) = await bench.pods("chat")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "deletionTimestamp" not in after["metadata"]


async def test_without_the_setting_the_label_means_nothing(bench: Bench, kueue: ScriptedKueue) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator()
    await queued(bench, "chat", uri)
    await bench.until_phase("chat", "Running")
    await kueue.none("chat")

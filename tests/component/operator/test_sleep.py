"""Sleep before evict on a real API server: who sleeps for whom, who wakes when, and what a restart remembers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession

from llmos_operator.api import names
from llmos_operator.api.runtime.messages import RuntimeState
from tests.support.fakekubelet import Script
from tests.support.operator_process import agent_token
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

GIB = 1 << 30
SHARED = {"accelerators": 1, "sharing": "Shared"}
BASE = {"LLMOS_RUNTIME__BASE_MEMORY": "200Mi"}
LAYERS = 192
CONTEXT = 8192 * 2 * LAYERS * 2 * 16 * 2  # bytes of the KV cache of one full context


def claim_of(pod: dict[str, Any]) -> dict[str, Any]:
    return json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])


async def a_chat(bench: Bench, **more: Any) -> dict[str, Any]:
    """Let a chat with two contexts run on a device of its own; return its pod."""
    uri = write_model(bench.hub, "acme/tiny", num_hidden_layers=LAYERS, max_position_embeddings=8192)
    context = {"maxModelLen": 8192, "maxNumSeqs": 8}
    await bench.apply("chat", uri, resources=SHARED, context=context, **more)
    await bench.until_phase("chat", "Running")
    (pod,) = await bench.pods("chat")
    return pod


async def press(bench: Bench, chat: dict[str, Any]) -> None:
    """Ask for more than the chat could give up while it serves."""
    uri = write_model(bench.hub, "acme/other")
    size = GIB - claim_of(chat)["bytesPerDevice"] + CONTEXT * 3 // 2
    scheduling = {"priorityClassName": "high"}
    await bench.apply("pressing", uri, resources={**SHARED, "memory": str(size)}, scheduling=scheduling)


async def test_a_replica_sleeps_for_who_stands_higher_and_wakes_after_it(bench: Bench) -> None:
    await bench.priorities(low=1, high=100)
    await bench.node("n1", devices=1)
    operator = bench.operator(**BASE)
    await bench.telemetry(operator, "n1")
    low = {"disruption": {"minRuntime": "0s"}, "priorityClassName": "low"}
    before = await a_chat(bench, scheduling=low)
    await press(bench, before)
    await bench.until_phase("pressing", "Running", 60)
    (pod,) = await bench.pods("chat")
    uid = pod["metadata"]["uid"]
    assert uid == before["metadata"]["uid"], "nobody was evicted"
    assert bench.kubelet.reported(uid).state is RuntimeState.ASLEEP
    sleeping = claim_of(pod)["sleeping"]
    assert (sleeping["for"], sleeping["down"]) == ("team/pressing", True)
    assert sleeping["hostBytes"] > 0
    await bench.until_phase("chat", "Asleep")
    status = (await bench.workload("chat"))["status"]
    assert (status["lastPreemption"]["action"], status["lastPreemption"]["by"]) == ("Sleep", "team/pressing")
    (asleep,) = [one for one in status["conditions"] if one["type"] == "Asleep"]
    assert asleep["status"] == "True"
    assert "to make room for team/pressing" in asleep["message"]

    # A new leader has the same ledger, and a runtime that started anew is told anew.
    await asyncio.to_thread(bench.operators[-1].stop)  # it writes through this process
    bench.kubelet.report(uid, bench.kubelet.reported(uid).model_copy(update={"state": RuntimeState.READY}))
    operator = bench.operator("operator-b", **BASE)

    async def told_again() -> bool:
        return bench.kubelet.reported(uid).state is RuntimeState.ASLEEP

    await bench.until(told_again, "the runtime sleeps again")
    bench.agents[-1].report_to(operator)
    await bench.delete("pressing")
    (gone,) = await bench.pods("pressing")  # nobody collects garbage on this API server
    await bench.remove(gone)
    await bench.until_phase("chat", "Running", 60)
    (after,) = await bench.pods("chat")
    assert after["metadata"]["uid"] == uid
    assert "sleeping" not in claim_of(after)
    assert bench.kubelet.reported(uid).state is RuntimeState.READY
    reasons = {event["reason"] for event in await bench.events("chat")}
    assert {"Asleep", "Awake"} <= reasons
    assert "Evicted" not in reasons


async def test_who_does_not_go_to_sleep_is_evicted_instead(bench: Bench) -> None:
    await bench.priorities(low=1, high=100)
    bench.kubelet.script = lambda _: Script(stubborn=True)
    await bench.node("n1", devices=1)
    operator = bench.operator(**BASE, LLMOS_SCHEDULING__SLEEP_TIMEOUT="2")
    await bench.telemetry(operator, "n1")
    low = {"disruption": {"minRuntime": "0s"}, "priorityClassName": "low"}
    await press(bench, await a_chat(bench, scheduling=low))
    await bench.until_phase("pressing", "Running", 60)
    reasons = {event["reason"] for event in await bench.events("chat")}
    assert {"Asleep", "NotSlept", "Evicted"} <= reasons


async def test_who_is_not_asked_anything_sleeps_until_a_request_waits(bench: Bench) -> None:
    await bench.node("n1", devices=1)
    operator = bench.operator(**BASE)
    await bench.telemetry(operator, "n1")
    scaling = {"minReplicas": 1, "maxReplicas": 1, "idle": {"sleepAfter": "2s"}}
    uri = write_model(bench.hub, "acme/tiny", num_hidden_layers=LAYERS, max_position_embeddings=8192)
    await bench.apply("chat", uri, resources=SHARED, scaling=scaling)
    await bench.until_phase("chat", "Asleep", 60)
    (before,) = await bench.pods("chat")
    assert "for" not in claim_of(before)["sleeping"]
    status = (await bench.workload("chat"))["status"]
    (asleep,) = [one for one in status["conditions"] if one["type"] == "Asleep"]
    assert "because nobody asked anything of it" in asleep["message"]
    assert not status.get("lastPreemption")

    token = await agent_token(bench.port, "n1", "llmos-gateway")
    url = f"http://127.0.0.1:{operator.port_of('ingest')}/v1/demand"
    item = {"namespace": "team", "name": "chat", "waiting": 1, "inFlight": 0, "requests": 1}
    async with (
        ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.post(url, json={"gateway": "g", "items": [item]}) as answer,
    ):
        assert answer.status == 204, await answer.text()
    await bench.until_phase("chat", "Running")
    (after,) = await bench.pods("chat")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "sleeping" not in claim_of(after)

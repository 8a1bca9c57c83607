"""Shrink before evict on a real API server: who gives up memory, who refuses, and what a restart remembers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from llmos_operator.api.runtime.messages import RuntimeState
from tests.support.fakekubelet import Script
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

GIB = 1 << 30
SHARED = {"accelerators": 1, "sharing": "Shared"}
BASE = {"LLMOS_RUNTIME__BASE_MEMORY": "200Mi", "LLMOS_SCHEDULING__RESTORE_AFTER": "2"}
LONG = {"maxModelLen": 8192, "maxNumSeqs": 8}


def claim_of(pod: dict[str, Any]) -> dict[str, Any]:
    return json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])


async def a_full_device(bench: Bench, **settings: str) -> int:
    """Let a chat with two contexts run on a device of its own; return how much a claimant needs for it to give up one."""
    uri = write_model(bench.hub, "acme/tiny", num_hidden_layers=24, max_position_embeddings=8192)
    await bench.node("n1", devices=1)
    operator = bench.operator(**BASE, **settings)
    await bench.telemetry(operator, "n1")
    patient = {"disruption": {"minRuntime": "600s"}, "priorityClassName": "low"}
    await bench.apply("patient", uri, resources=SHARED, context=LONG, scheduling=patient)
    await bench.until_phase("patient", "Running")
    (pod,) = await bench.pods("patient")
    claim = claim_of(pod)
    assert claim["kvTokens"] == 2 * claim["maxModelLen"] == 16384
    one_context = 8192 * 2 * 24 * 2 * 16 * 2
    return GIB - claim["bytesPerDevice"] + one_context // 2


async def press(bench: Bench, size: int) -> None:
    uri = write_model(bench.hub, "acme/other")
    scheduling = {"priorityClassName": "high"}
    await bench.apply("pressing", uri, resources={**SHARED, "memory": str(size)}, scheduling=scheduling)


async def test_memory_is_given_up_for_who_stands_higher_and_comes_back_after_it(bench: Bench) -> None:
    await bench.priorities(low=1, high=100)
    size = await a_full_device(bench)
    (before,) = await bench.pods("patient")
    await press(bench, size)
    await bench.until_phase("pressing", "Running")
    (pod,) = await bench.pods("patient")
    claim = claim_of(pod)
    assert pod["metadata"]["uid"] == before["metadata"]["uid"], "nobody was evicted"
    assert claim["yielded"]
    assert claim["askedBytes"] < claim["bytesPerDevice"]
    assert bench.kubelet.reported(pod["metadata"]["uid"]).memory.limit_bytes == claim["askedBytes"]

    async def told() -> bool:
        status = (await bench.workload("patient"))["status"]
        last = status.get("lastPreemption") or {}
        return (last.get("action"), last.get("by")) == ("Shrink", "team/pressing")

    await bench.until(told, "the status says who took the memory")
    status = (await bench.workload("patient"))["status"]
    assert status["phase"] == "Running"

    # A new leader has the same ledger, and a runtime that started anew is told anew.
    await asyncio.to_thread(bench.operators[-1].stop)  # it writes through this process
    report = bench.kubelet.reported(pod["metadata"]["uid"])
    memory = report.memory.model_copy(update={"limit_bytes": claim["bytesPerDevice"]})
    bench.kubelet.report(pod["metadata"]["uid"], report.model_copy(update={"memory": memory}))
    assert report.state is RuntimeState.READY
    operator = bench.operator("operator-b", **BASE)

    async def told_again() -> bool:
        return bench.kubelet.reported(pod["metadata"]["uid"]).memory.limit_bytes == claim["askedBytes"]

    await bench.until(told_again, "the runtime keeps to its lowered limit again")
    bench.agents[-1].report_to(operator)
    await bench.delete("pressing")
    (gone,) = await bench.pods("pressing")  # nobody collects garbage on this API server
    await bench.remove(gone)

    async def restored() -> bool:
        (now,) = await bench.pods("patient")
        limit = bench.kubelet.reported(now["metadata"]["uid"]).memory.limit_bytes
        return "askedBytes" not in claim_of(now) and limit == claim["bytesPerDevice"]

    await bench.until(restored, "the memory is given back")
    reasons = {event["reason"] for event in await bench.events("patient")}
    assert {"Shrunk", "Restored"} <= reasons
    assert "Evicted" not in reasons


async def test_who_does_not_come_down_is_evicted_instead(bench: Bench) -> None:
    await bench.priorities(low=1, high=100)
    bench.kubelet.script = lambda _: Script(stubborn=True)
    size = await a_full_device(bench, LLMOS_SCHEDULING__SHRINK_TIMEOUT="2")
    (before,) = await bench.pods("patient")
    workload = await bench.workload("patient")
    scheduling = {**workload["spec"]["scheduling"], "disruption": {"minRuntime": "0s"}}
    await bench.delete("patient")
    await bench.remove(before)
    uri = workload["spec"]["model"]["uri"]
    await bench.apply("impatient", uri, resources=SHARED, context=LONG, scheduling=scheduling)
    await bench.until_phase("impatient", "Running")
    await press(bench, size)
    await bench.until_phase("pressing", "Running", 60)
    reasons = {event["reason"] for event in await bench.events("impatient")}
    assert {"Shrunk", "NotShrunk", "Evicted"} <= reasons

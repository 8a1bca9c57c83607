"""Idle memory is lent on a real API server: who borrows, what a new leader knows, and how it comes back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession

from llmos_operator.api import names
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench, OperatorProcess

pytestmark = [pytest.mark.anyio, pytest.mark.component]

GIB = 1 << 30
SHARED = {"accelerators": 1, "sharing": "Shared"}
BASE = {"LLMOS_RUNTIME__BASE_MEMORY": "200Mi", "LLMOS_SCHEDULING__MIN_RUNTIME": "600"}
CONTEXT = 8192 * 2 * 24 * 2 * 16 * 2  # bytes of the KV cache of one full context
LENDS = {"minReplicas": 1, "maxReplicas": 1, "idle": {"lendAfter": "1s"}}


def claim_of(pod: dict[str, Any]) -> dict[str, Any]:
    return json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])


async def placement(bench: Bench, name: str) -> dict[str, Any]:
    status = (await bench.workload(name)).get("status") or {}
    found: dict[str, Any] = next(iter(status.get("placements") or ()), {})
    return found


async def figure(operator: OperatorProcess, name: str) -> float:
    if "health server listens" not in operator.text():
        return 0.0
    url = f"http://127.0.0.1:{operator.port_of('health')}/metrics"
    async with ClientSession() as session, session.get(url) as answer:
        lines = (await answer.text()).splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def busy(bench: Bench, uid: str, running: int) -> Any:
    report = bench.kubelet.reported(uid)
    requests = report.requests.model_copy(update={"running": running, "waiting": running})
    return report.model_copy(update={"requests": requests})


async def test_memory_of_who_idles_is_lent_across_leaders_and_called_back_when_it_works(bench: Bench) -> None:
    await bench.priorities(low=1, high=100)
    uri = write_model(bench.hub, "acme/tiny", num_hidden_layers=24, max_position_embeddings=8192)
    await bench.node("n1", devices=1)
    operator = bench.operator(**BASE)
    await bench.telemetry(operator, "n1")
    context, high = {"maxModelLen": 8192, "maxNumSeqs": 8}, {"priorityClassName": "high"}
    await bench.apply("chat", uri, resources=SHARED, context=context, scheduling=high, scaling=LENDS)
    await bench.until_phase("chat", "Running")
    (lender,) = await bench.pods("chat")
    uid, whole = lender["metadata"]["uid"], claim_of(lender)["bytesPerDevice"]

    size = GIB - whole + CONTEXT // 2
    other, low = write_model(bench.hub, "acme/other"), {"priorityClassName": "low"}
    serving = {"drainTimeout": "1s"}
    await bench.apply(
        "spare", other, resources={**SHARED, "memory": str(size)}, scheduling=low, serving=serving
    )
    await bench.until_phase("spare", "Running")
    (borrower,) = await bench.pods("spare")
    assert claim_of(borrower)["lender"] == f"team/{lender['metadata']['name']}"
    assert claim_of(borrower)["minRuntimeMilli"] == 0, "the policy's least runtime does not hold for it"

    async def told() -> bool:
        lent, borrowed = await placement(bench, "chat"), await placement(bench, "spare")
        return bool(lent.get("lentMemory")) and borrowed.get("borrowedFrom", "").startswith("team/chat-")

    await bench.until(told, "both statuses say it")
    assert (await bench.workload("chat"))["status"].get("lastPreemption") is None, "nothing was taken from it"

    async def counted() -> bool:
        return await figure(operator, 'llmos_operator_lent_bytes{node="n1",side="borrowed"}') == size

    await bench.until(counted, "the metrics say what is lent")

    # A new leader has the same ledger, and silence until it has heard of the lender is no reason to call back.
    await asyncio.to_thread(bench.operators[-1].stop)  # it writes through this process
    operator = bench.operator("operator-b", **BASE)
    bench.agents[-1].report_to(operator)

    async def still_counted() -> bool:
        return await figure(operator, 'llmos_operator_lent_bytes{node="n1",side="borrowed"}') == size

    await bench.until(still_counted, "the new leader knows of the loan")
    assert {pod["metadata"]["uid"] for pod in await bench.pods("spare")} == {borrower["metadata"]["uid"]}

    assert "Evicted" not in {event["reason"] for event in await bench.events("spare")}
    bench.kubelet.report(uid, busy(bench, uid, 1))

    async def returned() -> bool:
        (now,) = await bench.pods("chat")
        limit = bench.kubelet.reported(uid).memory.limit_bytes
        return now["metadata"]["uid"] == uid and "askedBytes" not in claim_of(now) and limit == whole

    await bench.until(returned, "the lender has all of it back")

    async def waits() -> bool:
        status = (await bench.workload("spare")).get("status") or {}
        last = status.get("lastPreemption") or {}
        return status.get("phase") == "Pending" and (last.get("action"), last.get("by")) == (
            "Evict",
            "team/chat",
        )

    await bench.until(waits, "the borrower waits again, and its status says for whom it went")
    assert {"Lent", "Restored"} <= {event["reason"] for event in await bench.events("chat")}
    assert "Evicted" in {event["reason"] for event in await bench.events("spare")}
    assert await figure(operator, 'llmos_operator_loans_total{result="called_back"}') == 1
    assert await figure(operator, 'llmos_operator_loans_total{result="returned"}') == 1

"""An elastic workload does with fewer replicas for one of higher standing, on a real API server, and gets them back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

BASE = {"LLMOS_SCHEDULING__RESTORE_AFTER": "2", "LLMOS_SCHEDULING__MIN_RUNTIME": "1"}
QUICK = {"serving": {"drainTimeout": "1s"}}
WHOLE = {"memory": "256Mi", "accelerators": 1}


async def uids(bench: Bench, name: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in await bench.pods(name)}


async def status(bench: Bench, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await bench.workload(name)).get("status") or {}
    return found


async def test_a_replica_is_given_up_stays_given_up_across_leaders_and_comes_back(bench: Bench) -> None:
    await bench.priorities(low=1, high=100)
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    operator = bench.operator(**BASE)
    await bench.telemetry(operator, "n1")
    # Two are wanted by demand that does not change: a minimum of two that is lowered afterwards.
    low = {"priorityClassName": "low"}
    many = {"minReplicas": 2, "maxReplicas": 2}
    await bench.apply("web", uri, resources=WHOLE, scheduling=low, scaling=many, **QUICK)

    async def both() -> bool:
        return (await status(bench, "web")).get("readyReplicas") == 2

    await bench.until(both, "two replicas serve")
    before = await uids(bench, "web")
    elastic = {"minReplicas": 1, "maxReplicas": 2, "metrics": [{"type": "RunningRequests", "target": 1}]}
    for uid in before:
        bench.kubelet.report(uid, busy(bench, uid))
    await bench.apply("web", uri, resources=WHOLE, scheduling=low, scaling=elastic, **QUICK)

    high = {"priorityClassName": "high"}
    await bench.apply("urgent", uri, resources=WHOLE, scheduling=high, **QUICK)
    await bench.until_phase("urgent", "Running")
    (kept,) = await uids(bench, "web")
    assert kept in before

    async def held() -> bool:
        found = await status(bench, "web")
        said = (found.get("ceiling") or {}).get("replicas"), (found.get("ceiling") or {}).get("by")
        last = found.get("lastPreemption") or {}
        return said == (1, "team/urgent") and last.get("action") == "Shrink" and found["phase"] == "Running"

    await bench.until(held, "the status says that it does with one, and for whom")
    active = await bench.until_condition("web", "ScalingActive", "True")
    assert "team/urgent took a place" in active["message"]
    reasons = {event["reason"] for event in await bench.events("web")}
    assert "FewerReplicas" in reasons
    assert "Evicted" not in reasons

    await asyncio.to_thread(bench.operators[-1].stop)
    operator = bench.operator("operator-b", **BASE)
    bench.agents[-1].report_to(operator)
    await bench.delete("urgent")
    (gone,) = await bench.pods("urgent")  # nobody collects garbage on this API server
    await bench.remove(gone)
    bench.kubelet.report(kept, busy(bench, kept))

    await bench.until(both, "both replicas serve again")
    assert kept in await uids(bench, "web"), "the one that was left was not restarted"

    async def released() -> bool:
        ceiling = (await status(bench, "web")).get("ceiling") or {}
        return "replicas" not in ceiling

    await bench.until(released, "nothing limits it any more")
    assert "Restored" in {event["reason"] for event in await bench.events("web")}


def busy(bench: Bench, uid: str) -> Any:
    """Return a replica's report with a request in progress for each replica that is wanted."""
    report = bench.kubelet.reported(uid)
    requests = report.requests.model_copy(update={"running": 2})
    return report.model_copy(update={"requests": requests})

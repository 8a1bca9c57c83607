"""Health that acts, on a real API server: a sick node is emptied, closed and let back, also by an operator that was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.cluster import port as ports
from tests.support.operator_process import SYSTEM, collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

ACT = {"LLMOS_HEALTH__MODE": "Act", "LLMOS_HEALTH__CLEAN": "1"}
JOB = '{"template": {"spec": {"containers": [{"name": "reset", "image": "reset:1"}]}}}'


async def placed_on(bench: Bench, name: str) -> str:
    status = (await bench.workload(name)).get("status") or {}
    found = [one["node"] for one in status.get("placements") or ()]
    return found[0] if status.get("phase") == "Running" and len(found) == 1 else ""


async def phase_of(bench: Bench, node: str) -> str:
    body = await bench.port.get(ports.GPU_NODES, node)
    treatments = ((body.get("status") or {}).get("care") or {}).get("treatments") or ()
    return next((one["phase"] for one in treatments if one["target"] == "node"), "")


async def cordoned(bench: Bench, node: str) -> bool:
    return bool((await bench.port.get(ports.NODES, node))["spec"].get("unschedulable"))


async def a_workload_on_one_of_two(bench: Bench) -> tuple[str, str]:
    """Return the node a workload runs on, and the other one."""
    for node in ("n1", "n2"):
        await bench.node(node)
    await bench.apply("chat", write_model(bench.hub, "acme/tiny"))
    await bench.until_phase("chat", "Running")
    node = await placed_on(bench, "chat")
    return node, "n2" if node == "n1" else "n1"


async def until_equal(bench: Bench, ask: Any, wanted: object, what: str) -> None:
    async def reached() -> bool:
        return bool(await ask() == wanted)

    await bench.until(reached, what)


async def test_a_sick_node_is_emptied_closed_reset_and_let_back_across_a_crash(bench: Bench) -> None:
    first = bench.operator(**ACT, LLMOS_HEALTH__RESET_JOB=JOB)
    node, other = await a_workload_on_one_of_two(bench)
    await bench.devices(node, 1, reason="FallenOffBus", d0="Unhealthy")
    await until_equal(bench, lambda: placed_on(bench, "chat"), other, "the replica runs elsewhere")
    await until_equal(bench, lambda: phase_of(bench, node), "Resetting", "the node is empty and reset")
    assert await cordoned(bench, node)
    jobs: list[Any] = []

    async def has_its_job() -> bool:  # what is to be done is written down before it is done
        jobs[:] = await collect(bench.port, ports.JOBS, SYSTEM)
        return bool(jobs)

    await bench.until(has_its_job, "the reset has its Job")
    (job,) = jobs
    first.kill()
    second = bench.operator("operator-b", **ACT, LLMOS_HEALTH__RESET_JOB=JOB)
    await bench.telemetry(second, node)
    done = [
        {
            "type": "Failed",
            "status": "True",
            "reason": "x",
            "message": "x",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
    target = [{**done[0], "type": "FailureTarget"}]
    status = {"status": {"startTime": "2026-01-01T00:00:00Z", "failed": 1, "conditions": [*target, *done]}}
    await bench.port.merge_patch(
        ports.JOBS, job["metadata"]["name"], status, namespace=SYSTEM, subresource="status"
    )
    await until_equal(bench, lambda: phase_of(bench, node), "Waiting", "its verdict is waited for")
    await bench.devices(node, 1)
    await until_equal(bench, lambda: phase_of(bench, node), "Released", "it is let back")
    await until_equal(bench, lambda: cordoned(bench, node), wanted=False, what="it is open again")
    assert len(await collect(bench.port, ports.JOBS, SYSTEM)) == 1, "no Job was made twice"
    assert await placed_on(bench, "chat") == other, "nobody was moved back"


async def test_when_every_node_looks_sick_work_stays_where_the_breaker_holds(bench: Bench) -> None:
    bench.operator(**ACT)
    node, other = await a_workload_on_one_of_two(bench)
    await bench.devices(node, 1, reason="FallenOffBus", d0="Unhealthy")
    await until_equal(bench, lambda: placed_on(bench, "chat"), other, "the replica runs elsewhere")
    (before,) = await bench.pods("chat")
    await bench.devices(other, 1, reason="FallenOffBus", d0="Unhealthy")

    async def told() -> bool:
        events = await collect(bench.port, ports.EVENTS, "default")
        return any(one["reason"] == "RemedyHeld" and one["regarding"]["name"] == other for one in events)

    await bench.until(told, "an Event says that the breaker holds")
    (after,) = await bench.pods("chat")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert not await cordoned(bench, other)


async def test_by_default_replicas_leave_and_nodes_are_left_alone(bench: Bench) -> None:
    bench.operator()
    node, other = await a_workload_on_one_of_two(bench)
    await bench.devices(node, 1, reason="FallenOffBus", d0="Unhealthy")
    await until_equal(bench, lambda: placed_on(bench, "chat"), other, "the replica runs elsewhere")
    body = await bench.port.get(ports.GPU_NODES, node)
    assert body["status"]["care"]["disturbedAt"], "the breaker remembers what was taken off it"
    assert await phase_of(bench, node) == ""
    assert not await cordoned(bench, node)

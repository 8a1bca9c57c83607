"""Changes of a spec on a real API server: updates with a surge where there is room for one, and canaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

SPEC: dict[str, Any] = {
    "resources": {"memory": "256Mi", "accelerators": 1},
    "rollout": {"maxSurge": 1, "maxUnavailable": 0},
    "serving": {"drainTimeout": "1s"},
}
CHANGED = {"context": {"maxModelLen": 64}}


async def uids(bench: Bench) -> set[str]:
    return {pod["metadata"]["uid"] for pod in await bench.pods("chat")}


async def updated(bench: Bench) -> bool:
    workload = await bench.workload("chat")
    status = workload.get("status") or {}
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return counts == [1, 1, 1] and status["observedGeneration"] == workload["metadata"]["generation"]


@pytest.mark.parametrize("devices", [2, 1])
async def test_an_update_goes_by_a_replica_beside_the_old_one_or_in_place(bench: Bench, devices: int) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=devices)
    await bench.telemetry(bench.operator(), "n1")
    await bench.apply("chat", uri, **SPEC)
    await bench.until_phase("chat", "Running")
    (before,) = await uids(bench)
    seen: list[set[str]] = []

    async def replaced() -> bool:
        seen.append(await uids(bench))
        return before not in seen[-1] and await updated(bench)

    await bench.apply("chat", uri, **SPEC, **CHANGED)
    await bench.until(replaced, "the replica runs the changed spec")
    beside = any(before in one and len(one) == 2 for one in seen)
    assert beside == (devices == 2)
    if beside:
        assert all(one for one in seen), "there was a replica at every moment"


def canary_of(percent: int) -> dict[str, Any]:
    return {
        **SPEC,
        **CHANGED,
        "rollout": {"canaryTrafficPercent": percent, "maxUnavailable": 0, "maxSurge": 1},
    }


async def test_a_canary_serves_beside_the_old_replica_until_it_is_promoted(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    await bench.telemetry(bench.operator(), "n1")
    await bench.apply("chat", uri, **SPEC)
    await bench.until_phase("chat", "Running")
    (before,) = await uids(bench)

    async def divided(percent: int) -> bool:
        """Whether both replicas serve and the gateway is told so."""
        workload = await bench.workload("chat")
        status = workload["status"]
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
        return counts == [2, 1, 2] and status.get("canary", {}).get("trafficPercent") == percent

    async def promoted() -> bool:
        status = (await bench.workload("chat"))["status"]
        return before not in await uids(bench) and await updated(bench) and "canary" not in status

    await bench.apply("chat", uri, **canary_of(10))
    await bench.until(lambda: divided(10), "a canary serves beside the old replica")
    both = await uids(bench)
    assert before in both
    status = (await bench.workload("chat"))["status"]
    annotations = [pod["metadata"]["annotations"]["llmos.dev/spec-hash"] for pod in await bench.pods("chat")]
    assert annotations.count(status["canary"]["specHash"]) == 1
    told = {one["type"]: one.get("message", "") for one in status["conditions"]}
    assert told["Progressing"].startswith("Canary: 1 of 2 replicas, 10 % of requests.")

    await bench.apply("chat", uri, **canary_of(50))
    await bench.until(lambda: divided(50), "the canary has another share")
    assert await uids(bench) == both

    await bench.apply("chat", uri, **canary_of(0))
    await bench.until(promoted, "the new spec has replaced the old one")
    assert await uids(bench) == both - {before}


async def test_a_canary_that_is_taken_back_leaves_the_old_replica_as_it_was(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    await bench.telemetry(bench.operator(), "n1")
    spec = {**SPEC, "rollout": {"canaryTrafficPercent": 10}}
    await bench.apply("chat", uri, **spec)
    await bench.until_phase("chat", "Running")
    before = await uids(bench)

    async def beside() -> bool:
        return len(await uids(bench)) == 2 and "canary" in (await bench.workload("chat"))["status"]

    async def alone() -> bool:
        status = (await bench.workload("chat"))["status"]
        return len(await uids(bench)) == 1 and await updated(bench) and "canary" not in status

    await bench.apply("chat", uri, **spec, **CHANGED)
    await bench.until(beside, "a canary starts")
    await bench.apply("chat", uri, **spec)
    await bench.until(alone, "the canary is gone")
    assert await uids(bench) == before

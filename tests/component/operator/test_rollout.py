"""A rolling update with a surge on a real API server: new replicas serve before old ones go, where there is room."""

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

"""A replica that moves so that another workload can start, on a real API server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


def on(devices: int, **more: Any) -> dict[str, Any]:
    return {
        "resources": {"memory": "256Mi", "accelerators": devices},
        "serving": {"drainTimeout": "1s"},
        **more,
    }


async def test_one_replica_moves_so_that_a_larger_one_starts_and_all_run(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    await bench.node("n2", devices=2)
    operator = bench.operator(LLMOS_SCHEDULING__MIN_RUNTIME="1")
    for node in ("n1", "n2"):
        await bench.telemetry(operator, node)
    # One on each node; one of them can be spared for a moment, so that a move costs its reload only.
    await bench.apply("chat", uri, **on(1, replicas=2, scheduling={"placement": "Spread"}))
    await bench.until_phase("chat", "Running")
    before = {pod["metadata"]["uid"]: pod["spec"]["nodeName"] for pod in await bench.pods("chat")}
    assert sorted(before.values()) == ["n1", "n2"]

    await bench.apply("large", uri, **on(2))
    await bench.until_phase("large", "Running", 90)
    await bench.until_phase("chat", "Running", 90)
    (large,) = await bench.pods("large")
    pods = await bench.pods("chat")
    assert len(pods) == 2
    (moved,) = [pod for pod in pods if pod["metadata"]["uid"] not in before]
    (target,) = {node for node in before.values() if node != large["spec"]["nodeName"]}
    assert {pod["spec"]["nodeName"] for pod in pods} == {target}
    claim = json.loads(moved["metadata"]["annotations"][names.ANNOTATION_CLAIM])
    assert claim["movedAtMilli"] > 0
    assert "target" not in claim
    told = (await bench.workload("chat"))["status"]["lastPreemption"]
    assert (told["action"], told["by"]) == ("Move", f"{bench.namespace}/large")
    (note,) = [event["note"] for event in await bench.events("chat") if event["reason"] == "Moved"]
    assert f"to node {target} so that {bench.namespace}/large" in note

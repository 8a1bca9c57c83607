"""Work that ends by itself and a place that is kept until then, on a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.operator_process import condition_of
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


def on(devices: int, **scheduling: Any) -> dict[str, Any]:
    return {
        "resources": {"memory": "256Mi", "accelerators": devices},
        "serving": {"drainTimeout": "1s"},
        "scheduling": scheduling,
    }


async def test_a_place_is_kept_for_large_work_until_what_is_there_has_run_its_time(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    bench.operator()
    await bench.apply("busy", uri, **on(1, maxRuntime="20s"))
    await bench.until_phase("busy", "Running")
    await bench.apply("large", uri, **on(2))
    await bench.until_condition("large", "Scheduled", "False", "NoCapacity")
    await bench.apply("small", uri, **on(1))
    told = await bench.until_condition("small", "Scheduled", "False", "NoCapacity")
    assert f"kept for {bench.namespace}/large" in told["message"]
    decision = (await bench.workload("large"))["status"]["decision"]
    assert decision["reservedNodes"] == ["n1"]
    assert decision["expectedStart"]
    assert "PlaceKept" in {event["reason"] for event in await bench.events("large")}

    await bench.until_condition("busy", "Finished", "True", "DeadlineExceeded")
    await bench.until_phase("large", "Running", 60)
    assert await bench.pods("busy") == []
    assert await bench.pods("small") == []
    busy = await bench.workload("busy")
    assert busy["status"]["phase"] == "Succeeded"
    assert condition_of(busy, "Scheduled")["reason"] == "Complete"

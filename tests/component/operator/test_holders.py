"""Holder pods on a real API server: before shared work, over a change of leaders, and gone after it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.operator_process import SYSTEM, collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench, Json

pytestmark = [pytest.mark.anyio, pytest.mark.component]

SHARED = {"accelerators": 1, "sharing": "Shared"}


async def holders(bench: Bench) -> list[str]:
    """Return the holder pods, as namespace and name."""
    selector = f"{names.LABEL_ROLE}={names.ROLE_HOLDER}"
    found = await collect(bench.port, ports.PODS, SYSTEM, label_selector=selector)
    return [f"{SYSTEM}/{one['metadata']['name']}" for one in found]


async def devices_of(bench: Bench, workload: str) -> list[str]:
    """Return the devices of a workload's one pod."""
    (pod,) = await bench.pods(workload)
    found: Json = json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])
    return list(found["devices"])


async def test_shared_work_waits_for_its_holder_pod_and_a_new_leader_keeps_it(bench: Bench) -> None:
    await bench.node("n1", devices=2)
    await bench.devices("n1", 2, given={})
    first = bench.operator("operator-a", LLMOS_HOLDERS__REST="1")
    agent = await bench.telemetry(first, "n1")
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("one", uri, resources=SHARED)
    told = await bench.until_condition("one", "Scheduled", "False", "WaitingForHolder")
    assert "as soon as a holder pod has taken a device" in told["message"]

    async def made() -> list[str]:
        return await holders(bench)

    (holder,) = await bench.until(made, "a holder pod is made")
    assert await bench.pods("one") == []
    await bench.devices("n1", 2, given={1: holder})  # the kubelet chose the other one
    await bench.until_phase("one", "Running")
    assert await devices_of(bench, "one") == ["GPU-sim-n1-1"]

    first.kill()
    second = bench.operator("operator-b", LLMOS_HOLDERS__REST="1")
    agent.report_to(second)
    await bench.apply("two", uri, resources=SHARED)
    await bench.until_phase("two", "Running")
    assert await devices_of(bench, "two") == ["GPU-sim-n1-1"]
    assert await holders(bench) == [holder]

    await bench.delete("one")
    await bench.delete("two")

    async def gone() -> bool:
        return not await holders(bench)

    await bench.until(gone, "the holder pod goes after the last tenant")


async def test_whole_work_takes_a_device_only_after_its_idle_holder_pod_has_gone(bench: Bench) -> None:
    await bench.node("n1", devices=1)
    await bench.devices("n1", 1, given={})
    operator = bench.operator(LLMOS_HOLDERS__REST="600")
    await bench.telemetry(operator, "n1")
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("shared", uri, resources=SHARED)

    async def made() -> list[str]:
        return await holders(bench)

    (holder,) = await bench.until(made, "a holder pod is made")
    await bench.delete("shared")
    await bench.devices("n1", 1, given={0: holder})
    await bench.apply("whole", uri, resources={"accelerators": 1, "sharing": "Exclusive"})
    await bench.until_phase("whole", "Running")
    assert await holders(bench) == []

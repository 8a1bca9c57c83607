"""Devices of a DRA driver beside the real kube-scheduler: what its pods got by ResourceClaims is not planned with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.cluster import with_scheduler
from tests.support.dra import ask, give_back, given, publish
from tests.support.operator_process import Bench, bench
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.component]

SHARED = {"accelerators": 1, "sharing": "Shared"}


@pytest.fixture(name="bench")
async def _bench(tmp_path: Path) -> AsyncIterator[Bench]:
    with with_scheduler(tmp_path / "plane") as plane:
        async with bench(plane, tmp_path) as made:
            yield made


async def device_of(bench: Bench, workload: str) -> int:
    """Return the number of the one device of a workload's one pod."""
    (pod,) = await bench.pods(workload)
    (uuid,) = json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])["devices"]
    return int(uuid.rpartition("-")[2])


async def test_work_keeps_off_devices_that_kube_scheduler_gave_to_claims(bench: Bench) -> None:
    await bench.node("n1", devices=2)
    await publish(bench, "n1", 2)
    await ask(bench, "first")
    first = await given(bench, "first")
    operator = bench.operator()  # it finds the claim in its first list
    agent = await bench.telemetry(operator, "n1")
    assert agent
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("one", uri, resources=SHARED)
    await bench.until_phase("one", "Running")
    assert await device_of(bench, "one") == 1 - first

    await bench.node("n2", devices=1)
    await publish(bench, "n2", 1)
    await bench.port.merge_patch(ports.NODES, "n1", {"spec": {"unschedulable": True}})
    await ask(bench, "second")
    await given(bench, "second")  # and of this one the watch tells
    await bench.telemetry(operator, "n2")
    await bench.apply("two", uri, resources=SHARED)
    waiting = await bench.until_condition("two", "Scheduled", "False")
    assert waiting["reason"]
    await give_back(bench, "second")
    await bench.until_phase("two", "Running")
    (pod,) = await bench.pods("two")
    assert pod["spec"]["nodeName"] == "n2"

"""The console's hour: what a sample says, what nobody told, and that it never grows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from llmos_operator.control.console.history import EVERY_SECONDS, SAMPLES
from llmos_operator.state.telemetry import Reading
from tests.support.builders import GIB, a_cluster, a_node, a_workload, gpu
from tests.support.consoles import shown

pytestmark = pytest.mark.anyio


async def test_a_sample_tells_devices_memory_waiting_work_and_requests() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2).observed_using(0, "30Gi"))
    cluster.running(a_workload("chat").shared(), "n1", [0], memory="20Gi")
    async with shown(cluster) as fleet:
        size = cluster.snapshot().nodes["n1"].devices[0].device.memory_bytes
        fleet.accounts.sampled(
            [Reading(gpu("n1", 0), busy_percent=81), Reading(gpu("n1", 1), busy_percent=20)]
        )
        fleet.tell("default/chat", phase="Running")
        cluster.add(a_workload("giant").value)
        fleet.tell("default/giant", phase="Pending")
        await fleet.remember(running=3, waiting=2)
        told = fleet.server.history.told()
    assert told["busy"] == [50]
    assert told["reserved"] == [1000 * 20 * GIB // (2 * size)]
    assert told["used"] == [1000 * 30 * GIB // (2 * size)]
    assert (told["waiting"], told["requests"], told["first"]) == ([1], [5], [None])


async def test_what_no_device_tells_is_absent_and_not_zero() -> None:
    async with shown(a_cluster()) as fleet:
        await fleet.remember()
        told = fleet.server.history.told()
    assert [told[name] for name in ("busy", "reserved", "used", "first")] == [[None]] * 4


async def test_the_wait_for_the_first_token_is_that_of_the_time_since_the_sample_before() -> None:
    async with shown(a_cluster()) as fleet:
        for answered, waited in ((100, 90_000), (104, 90_800), (104, 90_800), (2, 500), (3, 1_500)):
            await fleet.remember(first_tokens=answered, first_token_millis=waited)
        told = fleet.server.history.told()
    # What it had told before the first look, nothing, and an engine that was started anew.
    assert told["first"] == [None, 200, None, 250, 1000]


async def test_a_replica_that_is_not_heard_any_more_has_no_requests() -> None:
    async with shown(a_cluster()) as fleet:
        await fleet.remember(running=4)
        await fleet.server.history.sample(fleet.cluster.snapshot(), fleet.clock.now() + 60)
        assert fleet.server.history.told()["requests"] == [4, 0]


async def test_it_keeps_an_hour_and_no_more() -> None:
    async with shown(a_cluster()) as fleet:
        for number in range(SAMPLES + 25):
            await fleet.remember(ago=-number * EVERY_SECONDS, running=number)
        told = fleet.server.history.told()
    assert told["requests"] == list(range(25, SAMPLES + 25))
    assert {len(told[name]) for name in ("time", "busy", "used", "first")} == {SAMPLES}
    assert told["time"][-1] - told["time"][0] == 3600 - EVERY_SECONDS
    assert len(json.dumps(told)) < 16 << 10


async def test_a_defect_in_a_sample_is_told_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llmos_operator.control.console.server.EVERY_SECONDS", 0.001)
    async with shown(a_cluster()) as fleet:
        sample, tries = fleet.server.history.sample, 0

        async def defective(*args: Any) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise KeyError("defect")
            await sample(*args)

        monkeypatch.setattr(fleet.server.history, "sample", defective)
        task = asyncio.create_task(fleet.server.remember())
        async with asyncio.timeout(90):
            while not fleet.server.history.told()["time"]:
                assert not task.done(), "it goes on"
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "no sample for the console's history" in caplog.text


async def test_it_is_served_while_this_process_leads() -> None:
    async with shown(a_cluster()) as fleet, aiohttp.ClientSession() as client:
        await fleet.remember(running=1)
        async with client.get(fleet.url + "history.json") as response:
            assert (await response.json())["requests"] == [1]
        async with client.get(
            fleet.url + "history.json", headers={"Sec-Fetch-Site": "cross-site"}
        ) as response:
            assert response.status == 403
        fleet.leading = False
        async with client.get(fleet.url + "history.json") as response:
            assert await response.json() == {}

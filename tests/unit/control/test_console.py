"""The console's server: what it answers, to whom, and what it never shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from llmos_operator.control.console.server import console_host, loopback
from llmos_operator.settings import BadSettings
from llmos_operator.state.telemetry import Reading
from tests.support.builders import a_cluster, a_node, a_workload, gpu
from tests.support.consoles import SECRET, Shown, a_fleet, misbehave, populate, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio


async def _get(fleet: Shown, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    async with (
        aiohttp.ClientSession() as client,
        client.get(fleet.url + path, headers=headers) as response,
    ):
        return response.status, response.headers.copy(), await response.read()


async def _state(fleet: Shown) -> dict[str, Any]:
    fleet.later()
    status, _, body = await _get(fleet, "state.json")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


async def test_a_device_tells_ledger_use_and_tenants() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2).observed_using(0, "30Gi"))
    cluster.running(a_workload("chat").shared(), "n1", [0], memory="20Gi")
    async with shown(cluster) as fleet:
        found = await _state(fleet)
    first, second = found["nodes"][0]["devices"]
    assert first == [0, 0, 80 << 10, 20 << 10, 30 << 10, None, "Healthy", "", 0, [0], 0, 0, None]
    assert second[3:5] == [0, 0]
    assert (found["products"], found["tenants"]) == (["A100-80G"], ["default/chat"])


async def test_a_device_tells_whether_a_holder_pod_or_somebody_else_has_it() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(3).plugged())
    cluster.holder("n1", device=0)
    cluster.other("n1", "train", 1)
    async with shown(cluster) as fleet:
        devices = (await _state(fleet))["nodes"][0]["devices"]
    assert [one[8] for one in devices] == [4, 2, 0]


async def test_strain_and_draw_of_a_device_are_told_and_a_budget_with_what_is_drawn_of_it() -> None:
    node = a_node("n1").with_gpus(2).drawing(400).within_watts(700).held_down(0, 850).ageing(0, 100)
    async with shown(a_cluster(node)) as fleet:
        readings = [
            Reading(gpu("n1", 0), power_milliwatts=215_700),
            Reading(gpu("n1", 1), power_milliwatts=40_100),
        ]
        fleet.accounts.sampled(readings)
        found = await _state(fleet)
        assert [one[8:] for one in found["nodes"][0]["devices"]] == [
            [8, [], 850, 100, 210],
            [0, [], 0, 0, 40],
        ]
        told = {"level": "node", "name": "n1", "budget": 700, "expected": 80, "drawn": 250}
        assert found["power"] == [told]
        fleet.accounts.sampled([Reading(gpu("n1", 1))])
        assert (await _state(fleet))["power"] == [told | {"drawn": None}]


async def test_a_thousand_devices_are_small_enough_to_ask_for_every_two_seconds() -> None:
    async with shown(a_fleet()) as fleet:
        populate(fleet)
        fleet.later()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as client,
            client.get(fleet.url + "state.json", headers={"Accept-Encoding": "gzip"}) as response,
        ):
            packed = await response.read()
            assert response.headers["Content-Encoding"] == "gzip"
    assert len(packed) < 64 << 10


async def test_what_has_not_changed_is_not_sent_again() -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet:
        _, headers, _ = await _get(fleet, "state.json")
        fleet.later()
        status, _, body = await _get(fleet, "state.json", **{"If-None-Match": headers["ETag"]})
        assert (status, body) == (304, b"")
        fleet.cluster.running(a_workload("chat"), "n1", [0])
        fleet.later()
        status, _, _ = await _get(fleet, "state.json", **{"If-None-Match": headers["ETag"]})
        assert status == 200


async def test_no_secret_is_in_what_it_sends() -> None:
    async with shown(a_fleet()) as fleet:
        populate(fleet)
        misbehave(fleet)
        assert SECRET not in json.dumps(await _state(fleet))
        _, _, body = await _get(fleet, "workload.json?key=team-a/hostile")
        assert b"LoadFailed" in body
        assert SECRET.encode() not in body


async def test_work_that_needs_somebody_comes_first() -> None:
    async with shown(a_fleet()) as fleet:
        populate(fleet)
        misbehave(fleet)
        phases = [row["phase"] for row in (await _state(fleet))["workloads"]]
    assert phases[:3] == ["Failed", "Pending", "Pending"]
    assert set(phases[3:]) == {"Running"}


async def test_a_replica_that_stands_by_says_so_and_nothing_else() -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet:
        fleet.leading = False
        assert await _state(fleet) == {"leading": False}
        assert (await _get(fleet, "workload.json?key=default/chat"))[0] == 404


@pytest.mark.parametrize("host", ["rebound.example:8086", "10.0.0.7", "127.0.0.1.example.com"])
async def test_another_host_than_loopback_gets_nothing(host: str) -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet:
        for path in ("", "state.json"):
            assert (await _get(fleet, path, Host=host))[0] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_pages_of_others_may_link_to_it_and_read_nothing(site: str) -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet:
        assert (await _get(fleet, "", **{"Sec-Fetch-Site": site}))[0] == 200
        for path in ("state.json", "workload.json?key=default/chat"):
            assert (await _get(fleet, path, **{"Sec-Fetch-Site": site}))[0] == 403


@pytest.mark.parametrize("host", ["localhost:8086", "127.8.1.2:1", "[::1]:8086", "[::1]"])
async def test_a_person_behind_a_forwarded_port_is_answered(host: str) -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet:
        assert (await _get(fleet, "", Host=host))[0] == 200


async def test_every_answer_forbids_everything_but_the_page_itself() -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet:
        for path in ("", "console.js", "state.json", "workload.json?key=x", "nothing"):
            _, headers, _ = await _get(fleet, path)
            assert headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert "Access-Control-Allow-Origin" not in headers


async def test_it_can_only_be_read() -> None:
    async with shown(a_cluster(a_node("n1").with_gpus(1))) as fleet, aiohttp.ClientSession() as client:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            async with client.request(method, fleet.url + "state.json") as response:
                assert response.status == 405


def test_it_listens_on_loopback_or_not_at_all() -> None:
    assert console_host("", "0.0.0.0") == "127.0.0.1"
    assert console_host("", "127.8.0.3") == "127.8.0.3"
    assert console_host("::1", "10.0.0.1") == "::1"
    for host in ("0.0.0.0", "10.0.0.1", "console.example"):
        with pytest.raises(BadSettings, match="port-forward"):
            console_host(host, "127.0.0.1")
    assert not loopback("127.0.0.1.example.com")

"""Faults of the world around the operator: it ends as if they had not happened, with nothing lost and nothing doubled."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from llmos_operator.cluster import port as ports
from tests.support.cluster import api_only
from tests.support.operator_process import Bench, agent_token, bench, condition_of
from tests.support.tinymodels import write_model

pytestmark = [pytest.mark.anyio, pytest.mark.component]


async def placements(made: Bench) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return pod name -> (UID, devices) of all pods of workloads."""
    found = {}
    for pod in await made.pods():
        notes = pod["metadata"].get("annotations") or {}
        if "llmos.dev/claim" in notes:
            claim = json.loads(notes["llmos.dev/claim"])
            found[pod["metadata"]["name"]] = (pod["metadata"]["uid"], tuple(claim["devices"]))
    return found


def assert_no_device_is_shared(found: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    devices = [uuid for _, held in found.values() for uuid in held]
    assert len(devices) == len(set(devices)), found


async def until_running(made: Bench, names: list[str], seconds: float = 90.0) -> None:
    for name in names:
        await made.until_phase(name, "Running", seconds)


async def test_an_operator_killed_in_the_middle_loses_and_doubles_nothing(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=8)
    await bench.node("n2", devices=8)
    names = [f"w{index}" for index in range(12)]
    # Short, but longer than a busy machine may keep a process from its turn.
    quick = {"LLMOS_LEASE__DURATION": "4", "LLMOS_LEASE__RENEW_DEADLINE": "3", "LLMOS_LEASE__RETRY": "0.3"}
    current = bench.operator(**quick)
    for index, name in enumerate(names):
        await bench.apply(name, uri)
        if index in {3, 7, 10}:
            current.kill()
            current = bench.operator(f"operator-{index}", **quick)
            await asyncio.sleep(0.4 * (index % 4))
    await until_running(bench, names, 60)
    found = await placements(bench)
    assert len(found) == len(names)
    assert_no_device_is_shared(found)


async def test_a_restarted_operator_knows_the_same_and_writes_nothing(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=6)
    names = [f"w{index}" for index in range(6)]
    first = bench.operator()
    for name in names:
        await bench.apply(name, uri)
    await until_running(bench, names)

    async def summarised() -> bool:
        node = await bench.port.get(ports.GPU_NODES, "n1")
        return [one["claims"] for one in node["status"].get("ledger", {}).get("devices", [])] == [1] * 6

    await bench.until(summarised, "the ledger is shown")
    before, ledger = (
        await placements(bench),
        (await bench.port.get(ports.GPU_NODES, "n1"))["status"]["ledger"],
    )
    first.kill()
    bench.proxy.requests.clear()
    second = bench.operator("operator-b")

    async def synced() -> bool:
        return await second.probe("/readyz") == 200

    await bench.until(synced, "the second operator leads")
    await asyncio.sleep(12)  # longer than the interval of summaries: whatever it would write is written
    assert await placements(bench) == before
    assert (await bench.port.get(ports.GPU_NODES, "n1"))["status"]["ledger"] == ledger
    assert [f"{one.method} {one.path}" for one in bench.proxy.writes()] == []


@pytest.mark.parametrize("down", [1.0, 15.0])
async def test_an_api_server_that_restarts_is_survived(tmp_path: Path, down: float) -> None:
    with api_only(tmp_path) as plane:
        async with bench(plane, tmp_path) as made:
            uri = write_model(made.hub, "acme/tiny")
            await made.node("n1", devices=4)
            operator = made.operator(direct=True)
            await made.apply("before", uri)
            await made.until_phase("before", "Running")
            old = await placements(made)
            outage = asyncio.create_task(asyncio.to_thread(plane.restart, "kube-apiserver", down_for=down))
            if down > 10:
                await unready(made, operator, 15)
                assert await operator.probe("/livez") == 200
            await outage
            await asyncio.to_thread(plane.wait_ready)
            up = time.monotonic()
            await made.until(lambda: made.apply("after", uri), "the API server takes work again")
            await made.until_phase("after", "Running", 30)
            print(
                f"down {down:.0f} s: a new workload ran {time.monotonic() - up:.1f} s after the API server was back"
            )
            found = await placements(made)
            assert found.items() >= old.items()
            assert_no_device_is_shared(found)
            assert operator.process.poll() is None


async def unready(made: Bench, operator: Any, seconds: float) -> None:
    async def false() -> bool:
        return await operator.probe("/readyz") == 503

    await made.until(false, "readiness is false during the outage", seconds)


async def test_events_a_watch_lost_are_repaired_by_the_resync(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=2)
    bench.operator(LLMOS_SCHEDULING__RESYNC="5")
    await bench.apply("one", uri)
    await bench.until_phase("one", "Running")
    bench.proxy.swallow = lambda *_: True
    await bench.apply("two", uri)
    await bench.delete("one")
    await bench.node("n3")
    await asyncio.sleep(1.0)
    bench.proxy.swallow = lambda *_: False
    assert not (await bench.workload("two")).get("status")
    await bench.until_phase("two", "Running", seconds=20)
    assert len(await placements(bench)) == 1


async def test_refused_writes_are_tried_again_slowly_and_end_well(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=3)
    bench.operator()
    await bench.apply("warm", uri)
    await bench.until_phase("warm", "Running")
    codes = iter([409, 500, 429, 403, 503] * 100)
    bench.proxy.fail = lambda method, path: next(codes) if method != "GET" and "/leases/" not in path else 0
    bench.proxy.requests.clear()
    started = time.monotonic()
    await bench.apply("chat", uri)
    await asyncio.sleep(8)
    seconds = time.monotonic() - started
    writes = bench.proxy.writes(but=("/leases/", "/events", "gpunodes", "workloadqueues"))
    per_object = {}
    for one in writes:
        per_object[one.path] = per_object.get(one.path, 0) + 1
    assert max(per_object.values()) <= seconds * 1.0 + 3, per_object
    bench.proxy.fail = lambda *_: 0
    await bench.until_phase("chat", "Running", seconds=30)
    assert len(await placements(bench)) == 2


async def test_a_create_whose_answer_was_lost_is_not_doubled(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=4)
    bench.operator()
    await bench.apply("warm", uri)
    await bench.until_phase("warm", "Running")
    lost = []

    def lose(method: str, path: str) -> bool:
        if method == "POST" and path.endswith("/pods") and len(lost) < 2:
            lost.append(path)
            return True
        return False

    bench.proxy.lose_answer = lose
    await bench.apply("chat", uri, replicas=2)
    await bench.until_phase("chat", "Running")
    assert lost
    found = await placements(bench)
    assert len(found) == 3
    assert_no_device_is_shared(found)


async def test_a_former_leader_writes_nothing_and_ends(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=4)
    quick = {"LLMOS_LEASE__DURATION": "4", "LLMOS_LEASE__RENEW_DEADLINE": "3", "LLMOS_LEASE__RETRY": "0.3"}
    former = bench.operator("operator-a", **quick)
    await bench.apply("one", uri)
    await bench.until_phase("one", "Running")
    former.freeze()
    bench.operator("operator-b", direct=True, **quick)
    await bench.apply("two", uri)
    await bench.until_phase("two", "Running")
    bench.proxy.requests.clear()
    former.thaw()
    await bench.apply("three", uri)
    status = await asyncio.to_thread(former.process.wait, 20)
    assert status == 1
    assert "LeaseLost" in former.text()
    assert [f"{one.method} {one.path}" for one in bench.proxy.writes()] == []
    await bench.until_phase("three", "Running")
    found = await placements(bench)
    assert len(found) == 3
    assert_no_device_is_shared(found)


async def test_a_stopping_leader_hands_over_at_once(bench: Bench) -> None:
    patient = {"LLMOS_LEASE__DURATION": "600"}  # far longer than anything here waits
    first = bench.operator("operator-a", **patient)
    await bench.until(lambda: probe(first, 200), "the first leads")
    second = bench.operator("operator-b", direct=True, **patient)
    await bench.until(lambda: said(second, "waiting for the lease"), "the second stands by")
    await bench.until(lambda: probe(second, 200), "standing by is ready, too")
    # In a thread: the proxy the operator says goodbye through lives on this loop.
    assert await asyncio.to_thread(first.stop) == 0
    await bench.until(lambda: said(second, "synced"), "the second leads")


async def probe(operator: Any, status: int) -> bool:
    return await operator.probe("/readyz") == status


async def said(operator: Any, text: str) -> bool:
    return text in operator.text()


async def test_two_hundred_workloads_at_rest_cost_nothing(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    for index in range(5):
        await bench.node(f"n{index}", devices=50)
    # Two hundred pods, their kubelet and the proxy share one event loop here: answers take seconds while all start.
    operator = bench.operator(LLMOS_LEASE__DURATION="15", LLMOS_LEASE__RENEW_DEADLINE="10")
    names = [f"w{index}" for index in range(200)]
    for name in names:
        await bench.apply(name, uri)
    await until_running(bench, names, 120)
    await asyncio.sleep(15)  # summaries and last reports
    bench.proxy.requests.clear()
    started, cpu = time.monotonic(), cpu_seconds(operator.process.pid)
    await asyncio.sleep(60)
    seconds = time.monotonic() - started
    used = cpu_seconds(operator.process.pid) - cpu
    rate = len(bench.proxy.requests) / seconds
    print(
        f"200 workloads at rest: {rate:.2f} requests/s, {used / seconds:.1%} of a core, {rss_mib(operator.process.pid)} MiB"
    )
    assert [f"{one.method} {one.path}" for one in bench.proxy.writes()] == []
    assert rate <= 1.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def rss_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))


async def test_telemetry_is_taken_from_the_node_it_speaks_for_only(bench: Bench) -> None:
    await bench.node("n1")
    await bench.node("n2")
    operator = bench.operator()
    agent = await bench.telemetry(operator, "n1")
    url = f"http://127.0.0.1:{operator.port_of('ingest')}/v1/telemetry"
    body = {"node": "n2", "epoch": 1, "sequence": 1, "devices": []}
    async with ClientSession() as session:
        for headers, wanted in (
            ({}, 401),
            ({"Authorization": "Bearer nonsense"}, 401),
            ({"Authorization": f"Bearer {agent.token}"}, 400),
        ):
            async with session.post(url, json=body, headers=headers) as answer:
                assert answer.status == wanted, await answer.text()
        demand = url.replace("telemetry", "demand")
        async with session.post(
            demand, json={"gateway": "g", "items": []}, headers={"Authorization": f"Bearer {agent.token}"}
        ) as answer:
            assert answer.status == 403


async def test_a_workload_scaled_to_zero_wakes_when_a_request_waits(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    operator = bench.operator()
    spec = {"minReplicas": 0, "maxReplicas": 2, "idle": {"scaleToZeroAfter": "2s"}}
    await bench.apply("chat", uri, scaling=spec)
    await bench.until_condition("chat", "ScalingActive", "True", "ScaledToZero")
    assert await bench.pods("chat") == []
    token = await agent_token(bench.port, "n1", "llmos-gateway")
    url = f"http://127.0.0.1:{operator.port_of('ingest')}/v1/demand"
    item = {"namespace": "team", "name": "chat", "waiting": 1, "inFlight": 0, "requests": 1}
    async with (
        ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.post(url, json={"gateway": "g", "items": [item]}) as answer,
    ):
        assert answer.status == 204, await answer.text()
    awake = await bench.until_phase("chat", "Running")
    assert condition_of(awake, "ScalingActive")["reason"] == "Scaling"

    async def asleep() -> bool:
        return not await bench.pods("chat")

    await bench.until(asleep, "idle again, it gives its device back", 30)
    await bench.until_condition("chat", "ScalingActive", "True", "ScaledToZero")


async def test_work_dropped_while_the_lease_had_lapsed_is_done_afterwards(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", devices=12)
    quick = {"LLMOS_LEASE__DURATION": "30", "LLMOS_LEASE__RENEW_DEADLINE": "1", "LLMOS_LEASE__RETRY": "0.5"}
    operator = bench.operator(**quick)
    await bench.apply("first", uri)
    await bench.until_phase("first", "Running")
    names = [f"w{index}" for index in range(10)]
    for name in names:
        await bench.apply(name, uri)
        operator.freeze()  # long enough for the fence to fall, at another point of the work each time
        await asyncio.sleep(1.2)
        operator.thaw()
        await asyncio.sleep(0.05 * len(name))
    await until_running(bench, names, 60)
    assert "lapsed" in operator.text()
    found = await placements(bench)
    assert len(found) == 11
    assert_no_device_is_shared(found)
    assert operator.process.poll() is None

"""Streams, holds, failures and the end of the process, over real connections."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from llmos_operator.api.telemetry import DemandBatch
from llmos_operator.cluster.port import MODEL_WORKLOADS, PODS
from tests.support.gateway import (
    GatewayBench,
    ScriptedReplica,
    condition,
    pod_json,
    running_gateway,
    sse,
    until,
)

pytestmark = pytest.mark.anyio

STREAM = {"model": "chat", "stream": True, "messages": []}


def _event(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


async def _one_by_one(replica: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
    """An event for each time the gate is opened, until `peak` is set to 0."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    number = 0
    while True:
        await replica.gate.wait()
        replica.gate.clear()
        number += 1
        await response.write(f"data: {_event(str(number))}\n\n".encode())


async def _slow_bench(bench: GatewayBench, handler: Any) -> ScriptedReplica:
    replica = await bench.add_replica(await bench.add_workload("chat"), handler=handler)
    replica.gate.clear()
    return replica


async def test_events_arrive_one_by_one_as_they_are_made() -> None:
    async with running_gateway() as bench:
        replica = await _slow_bench(bench, _one_by_one)
        async with bench.client.post(f"{bench.url}/v1/chat/completions", json=STREAM) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            for number in range(1, 6):
                replica.gate.set()
                line = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 60)
                assert line == f"data: {_event(str(number))}\n\n".encode()


async def test_a_client_that_leaves_ends_the_replicas_work_at_once() -> None:
    async with running_gateway() as bench:
        replica = await _slow_bench(bench, _one_by_one)
        async with bench.client.post(f"{bench.url}/v1/chat/completions", json=STREAM) as answer:
            replica.gate.set()
            await answer.content.readuntil(b"\n\n")
            answer.close()
        await until(lambda: replica.cancelled == 1)
        assert bench.metric("client_gone_total", namespace="team", workload="chat") == 1
        assert bench.gateway.demand.in_flight() == {}


async def test_a_client_that_leaves_before_the_first_byte_ends_the_replicas_work_too() -> None:
    async with running_gateway() as bench:
        replica = await _slow_bench(bench, None)
        asked = asyncio.create_task(bench.chat("chat"))
        await until(lambda: replica.running == 1)
        asked.cancel()
        await until(lambda: replica.cancelled == 1)


async def test_a_storm_of_leaving_clients_leaves_nothing_behind() -> None:
    async with running_gateway() as bench:
        replica = await _slow_bench(bench, None)
        asked: list[asyncio.Task[Any]] = []
        while (
            len(asked) < 200
        ):  # by twenties: clients, gateway and replica share one loop, and connecting has a limit
            asked += [asyncio.create_task(bench.chat("chat")) for _ in range(20)]
            await until(lambda: replica.running == len(asked))
        for task in asked:
            task.cancel()
        await until(lambda: replica.running == 0 and bench.gateway.front.active == 0)
        assert bench.metric("in_flight", namespace="team", workload="chat") == 0
        assert bench.metric("buffered_bytes") == 0
        replica.gate.set()
        assert (await bench.chat("chat"))[0] == 200


async def test_a_slow_reader_holds_back_the_replica_and_not_the_gateways_memory() -> None:
    written = 0

    async def flood(_: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _i in range(4000):
            await response.write(b"data: " + b"x" * 16_000 + b"\n\n")
            written += 16_000
        return response

    async with running_gateway() as bench:
        await _slow_bench(bench, flood)
        async with bench.client.post(f"{bench.url}/v1/chat/completions", json=STREAM) as answer:
            await answer.content.readany()
            before = -1
            async with asyncio.timeout(60):
                while written != before:  # until the pipe is full
                    before = written
                    await asyncio.sleep(0.3)
            assert written < 30_000_000
            received = 0
            async for chunk in answer.content.iter_any():
                received += len(chunk)
            assert received > 60_000_000


async def test_usage_told_by_a_stream_is_counted() -> None:
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}})

    async def answer(_: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
        return await sse(request, [_event("a"), _event("b"), usage, "[DONE]"])

    async with running_gateway() as bench:
        await _slow_bench(bench, answer)
        async with bench.client.post(f"{bench.url}/v1/chat/completions", json=STREAM) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        await until(
            lambda: bench.metric("tokens_total", namespace="team", workload="chat", kind="completion") == 2
        )


# ------------------------------------------------------------ failures of replicas


async def test_a_replica_that_cannot_be_reached_is_replaced_by_another() -> None:
    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        await bench.add_replica(uid, start=False)
        good = await bench.add_replica(uid)
        for _ in range(4):
            status, body, _ = await bench.chat("chat")
            assert (status, body["replica"]) == (200, good.name)
        assert bench.metric("retries_total", namespace="team", workload="chat", reason="connect") == 1


async def test_with_no_replica_reachable_the_request_is_held_until_one_is() -> None:
    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        replica = await bench.add_replica(uid, start=False)
        asked = asyncio.create_task(bench.chat("chat"))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        other = await bench.add_replica(uid)
        status, body, _ = await asked
        assert (status, body["replica"]) == (200, other.name)
        assert replica.requests == []


@pytest.mark.parametrize("why", ["draining", "loading", "overloaded"])
async def test_a_request_that_a_replica_declined_goes_to_another(why: str) -> None:
    async def decline(_: ScriptedReplica, __: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(
            {"error": {}}, status=503, headers={"X-LLMOS-Refused": why, "Retry-After": "7"}
        )

    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        bad = await bench.add_replica(uid, handler=decline)
        good = await bench.add_replica(uid)
        answers = [await bench.chat("chat") for _ in range(4)]
        assert {(status, body["replica"]) for status, body, _ in answers} == {(200, good.name)}
        assert len(bad.requests) >= 1
        assert all("X-LLMOS-Refused" not in headers for _, _, headers in answers)


async def test_overload_of_all_replicas_is_the_clients_to_know() -> None:
    async def full(_: ScriptedReplica, __: web.BaseRequest) -> web.StreamResponse:
        headers = {"X-LLMOS-Refused": "overloaded", "Retry-After": "7"}
        return web.json_response({"error": {"code": "overloaded"}}, status=429, headers=headers)

    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        for _ in range(2):
            await bench.add_replica(uid, handler=full)
        status, body, headers = await bench.chat("chat")
        assert (status, body["error"]["code"], headers["Retry-After"]) == (429, "overloaded", "7")


async def test_an_error_of_the_replica_is_passed_on_and_not_repeated() -> None:
    async def fail(_: ScriptedReplica, __: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": {"message": "boom"}}, status=500)

    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        replicas = [await bench.add_replica(uid, handler=fail) for _ in range(2)]
        status, body, _ = await bench.chat("chat")
        assert (status, body["error"]["message"]) == (500, "boom")
        assert sum(len(r.requests) for r in replicas) == 1


async def _cut(replica: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
    await replica.gate.wait()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_a_replica_lost_with_the_request_is_502_and_nobody_else_gets_it() -> None:
    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        replicas = [await bench.add_replica(uid, handler=_cut) for _ in range(2)]
        status, body, _ = await bench.chat("chat")
        assert (status, body["error"]["code"], body["error"]["type"]) == (502, "replica_lost", "server_error")
        assert sum(len(r.requests) for r in replicas) == 1
        assert (
            bench.metric("upstream_errors_total", namespace="team", workload="chat", reason="disconnected")
            == 1
        )


async def test_a_stream_cut_in_the_middle_ends_with_an_error_event() -> None:
    async def half(_: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {_event('a')}\n\n".encode())
        assert request.transport is not None
        request.transport.abort()
        return response

    async with running_gateway() as bench:
        await _slow_bench(bench, half)
        async with bench.client.post(f"{bench.url}/v1/chat/completions", json=STREAM) as answer:
            events = (await answer.read()).decode().strip().split("\n\n")
        assert events[0] == f"data: {_event('a')}"
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert (error["code"], "[DONE]" in events[-1]) == ("replica_lost", False)
        assert bench.metric("requests_total", namespace="team", workload="chat", code="502") == 1


async def test_a_plain_answer_cut_in_the_middle_is_visibly_incomplete() -> None:
    async def half(_: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": ')
        assert request.transport is not None
        request.transport.close()
        return response

    async with running_gateway() as bench:
        await _slow_bench(bench, half)
        with pytest.raises(aiohttp.ClientError):
            await bench.chat("chat")


async def test_a_request_that_takes_too_long_is_504() -> None:
    async with running_gateway(request_timeout=0.1) as bench:
        replica = await _slow_bench(bench, None)
        status, body, _ = await bench.chat("chat")
        assert (status, body["error"]["code"]) == (504, "request_timeout")
        await until(lambda: replica.running == 0)


# ------------------------------------------------------------ cold starts


async def test_a_cold_workload_is_woken_and_its_requests_are_served_when_it_is_up() -> None:
    reports: list[DemandBatch] = []

    async def operator(request: web.BaseRequest) -> web.Response:
        reports.append(DemandBatch.model_validate_json(await request.read()))
        return web.Response()

    runner = web.ServerRunner(web.Server(operator, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with running_gateway(operator_url=url) as bench:
            uid = await bench.add_workload("chat")
            asked = [asyncio.create_task(bench.chat("chat")) for _ in range(20)]
            await until(lambda: bool(reports))
            first = reports[0].items[0]
            assert (first.namespace, first.name, first.waiting >= 1) == ("team", "chat", True)
            await bench.add_replica(uid)
            assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
    finally:
        await runner.cleanup()


async def test_a_pod_that_becomes_ready_later_serves_the_held_request() -> None:
    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        replica = await ScriptedReplica(host="127.66.1.1", name="late").start()
        bench.replicas.append(replica)
        body = pod_json("late", uid, replica.host, replica.port, ready=False)
        created = await bench.cluster.create(PODS, body, namespace="team")
        asked = asyncio.create_task(bench.chat("chat"))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        created["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        await bench.cluster.replace(PODS, created, namespace="team")
        assert (await asked)[0] == 200


async def test_a_rejecting_workload_answers_503_with_the_expected_seconds() -> None:
    async with running_gateway() as bench:
        await bench.add_workload(
            "chat",
            spec={"scaling": {"coldStart": "Reject", "maxReplicas": 1}},
            conditions=[condition("ModelLoaded", "False", "Downloading", "3 of 9 GB")],
            eta="17s",
        )
        status, body, headers = await bench.chat("chat")
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "workload_starting", "17")
        assert "Downloading: 3 of 9 GB" in body["error"]["message"]


async def test_a_workload_that_fails_while_requests_are_held_tells_them_why() -> None:
    async with running_gateway() as bench:
        await bench.add_workload("chat")
        asked = asyncio.create_task(bench.chat("chat"))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        found = await bench.cluster.get(MODEL_WORKLOADS, "chat", namespace="team")
        found["status"]["conditions"] = [
            condition("ModelLoaded", "False", "UnsafeFormat", "model.bin is a pickle")
        ]
        await bench.cluster.replace(MODEL_WORKLOADS, found, namespace="team")
        status, body, _ = await asked
        assert (status, body["error"]["code"]) == (503, "workload_failed")
        assert "UnsafeFormat: model.bin is a pickle" in body["error"]["message"]


async def test_a_client_that_leaves_while_held_leaves_the_queue() -> None:
    async with running_gateway() as bench:
        await bench.add_workload("chat")
        asked = asyncio.create_task(bench.chat("chat"))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        asked.cancel()
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 0)


# ------------------------------------------------------------ the end


async def test_stopping_drops_no_request() -> None:
    async with running_gateway(drain_delay=0.1) as bench:
        uid = await bench.add_workload("chat")
        replica = await bench.add_replica(uid)
        replica.gate.clear()
        in_flight = [asyncio.create_task(bench.chat("chat")) for _ in range(10)]
        await until(lambda: replica.running == 10)
        bench.stop.set()
        await until(lambda: bench.gateway.front.draining)
        async with bench.client.get(f"http://127.0.0.1:{bench.gateway.health_port}/readyz") as answer:
            assert (answer.status, "stopping" in await answer.text()) == (503, True)
        late = asyncio.create_task(bench.chat("chat"))  # load balancers are slow to notice
        await until(lambda: replica.running == 11)
        await until(lambda: _refuses(bench))
        assert not any(task.done() for task in [*in_flight, late])
        replica.gate.set()
        answers = await asyncio.gather(*in_flight, late)
        assert [status for status, _, _ in answers] == [200] * 11
        assert {headers.get("Connection") for _, _, headers in answers} == {"close"}


def _refuses(bench: GatewayBench) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", bench.gateway.port)) != 0


async def test_what_does_not_finish_in_time_is_cut_and_what_waits_is_told() -> None:
    async with running_gateway(drain_delay=0.01, drain_timeout=0.1) as bench:
        replica = await _slow_bench(bench, None)
        await bench.add_workload("cold")
        running = asyncio.create_task(bench.chat("chat"))
        held = asyncio.create_task(bench.chat("cold"))
        await until(
            lambda: replica.running == 1 and bench.metric("held", namespace="team", workload="cold") == 1
        )
        bench.stop.set()
        status, body, _ = await held
        assert (status, body["error"]["code"]) == (503, "gateway_stopping")
        with pytest.raises(aiohttp.ClientError):
            await running

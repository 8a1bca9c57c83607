"""The gateway over real connections: routing, errors, keys and limits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from llmos_operator.cluster.port import MODEL_WORKLOADS
from llmos_operator.gateway import keys
from tests.support.gateway import ScriptedReplica, running_gateway, until, workload_json

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_a_request_reaches_the_replica_byte_for_byte_and_its_answer_comes_back() -> None:
    async with running_gateway() as bench:
        replica = await bench.add_replica(await bench.add_workload("chat", served="org/chat"))
        raw = b'{ "model":"org/chat",  "messages": [], "odd": 1e3 }'
        async with bench.client.post(
            f"{bench.url}/v1/chat/completions?x=a%26b", data=raw, headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 200
            assert (await answer.json())["replica"] == replica.name
            assert answer.headers["X-LLMOS-Workload"] == "team/chat"
            assert len(answer.headers["X-Request-Id"]) == 32
        method, path, sent, body = replica.requests[0]
        assert (method, path, body["odd"]) == ("POST", "/v1/chat/completions?x=a%26b", 1000.0)
        assert int(sent["Content-Length"]) == len(raw)
        assert sent["X-Request-Id"] == answer.headers["X-Request-Id"]


async def test_a_namespaced_name_is_rewritten_for_the_replica() -> None:
    async with running_gateway() as bench:
        replica = await bench.add_replica(await bench.add_workload("chat", served="org/chat"))
        assert (await bench.chat("team/chat"))[0] == 200
        assert replica.requests[0][3]["model"] == "org/chat"


async def test_requests_go_to_the_least_loaded_replica() -> None:
    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        replicas = [await bench.add_replica(uid) for _ in range(3)]
        for replica in replicas:
            replica.gate.clear()
        asked = [asyncio.create_task(bench.chat("chat")) for _ in range(9)]
        await until(lambda: sum(r.running for r in replicas) == 9)
        assert [r.running for r in replicas] == [3, 3, 3]
        assert bench.metric("in_flight", namespace="team", workload="chat") == 9
        for replica in replicas:
            replica.gate.set()
        assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
        assert bench.metric("in_flight", namespace="team", workload="chat") == 0
        assert bench.metric("requests_total", namespace="team", workload="chat", code="200") == 9
        assert bench.metric("tokens_total", namespace="team", workload="chat", kind="prompt") == 27


@pytest.mark.parametrize("on", [True, False])
async def test_the_turns_of_a_conversation_go_to_one_replica_unless_that_is_off(on: bool) -> None:
    async with running_gateway(prefix_affinity=on) as bench:
        uid = await bench.add_workload("chat")
        for _ in range(2):
            await bench.add_replica(uid)
        messages = [{"role": "system", "content": "s" * 900}]
        answered = []
        for turn in range(4):
            messages.append({"role": "user", "content": f"question {turn}"})
            answered.append((await bench.chat("chat", messages=messages))[1]["replica"])
        assert len(set(answered)) == (1 if on else 2)
        labels = {"namespace": "team", "workload": "chat"}
        assert bench.metric("prompts_total", **labels, result="kept") == (3.0 if on else 0.0)


async def test_answers_of_a_canary_are_counted_by_side_and_status() -> None:
    async def fail(_: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        await bench.add_replica(uid, spec_hash="a")
        await bench.add_replica(uid, spec_hash="b", handler=fail)
        labels = {"namespace": "team", "workload": "chat"}
        assert (await bench.chat("chat"))[0] == 200
        assert bench.metric("canary_requests_total", **labels, spec="old", code="200") == 0.0
        workload = next(iter(bench.gateway.catalog.workloads()))
        bench.gateway.catalog.put_workload(replace(workload, canary_hash="b", canary_percent=50))
        assert sorted([(await bench.chat("chat"))[0] for _ in range(2)]) == [200, 502]
        assert bench.metric("canary_requests_total", **labels, spec="old", code="200") == 1.0
        assert bench.metric("canary_requests_total", **labels, spec="new", code="502") == 1.0


async def _hang(replica: ScriptedReplica, _: web.BaseRequest) -> web.StreamResponse:
    await replica.gate.wait()
    return web.Response()


async def _decline(_: ScriptedReplica, __: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=503, headers={"X-LLMOS-Refused": "failed"})


@pytest.mark.parametrize(
    ("handler", "start", "code", "given"),
    [(_hang, True, "504", 504), (_decline, True, "503", 200), (None, False, "503", 200)],
)
async def test_a_canary_that_hangs_declines_or_cannot_be_reached_is_counted(
    handler: Any, start: bool, code: str, given: int
) -> None:
    async with running_gateway(request_timeout=0.3) as bench:
        uid = await bench.add_workload("chat")
        await bench.add_replica(uid, spec_hash="a")
        canary = await bench.add_replica(uid, start=start, handler=handler)
        canary.gate.clear()
        workload = next(iter(bench.gateway.catalog.workloads()))
        bench.gateway.catalog.put_workload(replace(workload, canary_hash="b", canary_percent=99))
        assert (await bench.chat("chat"))[0] == given
        labels = {"namespace": "team", "workload": "chat"}
        assert bench.metric("canary_requests_total", **labels, spec="new", code=code) == 1.0
        assert bench.metric("canary_requests_total", **labels, spec="old", code="200") == float(given == 200)


async def test_a_client_that_leaves_a_canary_is_counted_as_such() -> None:
    async def begin(replica: ScriptedReplica, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await replica.gate.wait()
        return response

    async with running_gateway() as bench:
        uid = await bench.add_workload("chat")
        await bench.add_replica(uid, spec_hash="a")
        canary = await bench.add_replica(uid, spec_hash="b", handler=begin)
        canary.gate.clear()
        workload = next(iter(bench.gateway.catalog.workloads()))
        bench.gateway.catalog.put_workload(replace(workload, canary_hash="b", canary_percent=99))
        async with bench.client.post(f"{bench.url}/v1/completions", json={"model": "chat"}) as answer:
            assert await answer.content.readexactly(1) == b"x"
            answer.close()
        labels = {"namespace": "team", "workload": "chat"}
        await until(lambda: bench.metric("canary_requests_total", **labels, spec="new", code="499") == 1.0)
        assert bench.metric("canary_requests_total", **labels, spec="new", code="200") == 0.0


async def test_an_unknown_model_is_404_and_names_the_known_ones() -> None:
    async with running_gateway() as bench:
        await bench.add_workload("chat")
        await bench.add_workload("embed", namespace="other")
        status, body, _ = await bench.chat("gpt-9")
        assert status == 404
        assert body["error"] == {
            "message": "The model `gpt-9` does not exist. Known models: chat, embed.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


async def test_an_ambiguous_model_is_400_until_a_header_or_the_host_decides() -> None:
    async with running_gateway(hosts={"Red.example": "red"}) as bench:
        for namespace in ("red", "blue"):
            await bench.add_replica(
                await bench.add_workload("chat", namespace=namespace), namespace=namespace
            )
        status, body, _ = await bench.chat("chat")
        assert (status, body["error"]["code"]) == (400, "ambiguous_model")
        assert "blue/chat, red/chat" in body["error"]["message"]
        for headers, workload in (
            ({"X-LLMOS-Namespace": "blue"}, "blue/chat"),
            ({"Host": "red.example:8000"}, "red/chat"),
        ):
            status, _, sent = await bench.chat("chat", headers=headers)
            assert (status, sent["X-LLMOS-Workload"]) == (200, workload)


async def test_a_default_namespace_decides_too() -> None:
    async with running_gateway(default_namespace="blue") as bench:
        for namespace in ("red", "blue"):
            await bench.add_replica(
                await bench.add_workload("chat", namespace=namespace), namespace=namespace
            )
        assert (await bench.chat("chat"))[2]["X-LLMOS-Workload"] == "blue/chat"


async def test_an_adapter_is_listed_with_its_parent_and_its_requests_reach_the_replica_under_its_own_name() -> (
    None
):
    spec = {"adapters": [{"name": "tone", "uri": "hf://org/tone"}]}
    async with running_gateway() as bench:
        replica = await bench.add_replica(await bench.add_workload("chat", served="org/chat", spec=spec))
        async with bench.client.get(f"{bench.url}/v1/models") as answer:
            listed = (await answer.json())["data"]
        assert [(one["id"], one.get("parent")) for one in listed] == [
            ("org/chat", None),
            ("tone", "org/chat"),
        ]
        async with bench.client.get(f"{bench.url}/v1/models/team/tone") as answer:
            assert (answer.status, (await answer.json())["parent"]) == (200, "org/chat")
        for name in ("tone", "team/tone"):
            assert (await bench.chat(name))[2]["X-LLMOS-Workload"] == "team/chat"
        assert [document["model"] for _, _, _, document in replica.requests] == ["tone", "tone"]


async def test_models_are_listed_and_described() -> None:
    async with running_gateway() as bench:
        await bench.add_replica(await bench.add_workload("chat", served="org/chat"))
        await bench.add_workload("idle", spec={"suspend": True})
        async with bench.client.get(f"{bench.url}/v1/models") as answer:
            listed = await answer.json()
        assert listed["object"] == "list"
        assert [(m["id"], m["llmos"]["state"]) for m in listed["data"]] == [
            ("org/chat", "Ready"),
            ("idle", "Suspended"),
        ]
        assert listed["data"][0]["owned_by"] == "team"
        for name in ("org/chat", "org%2Fchat", "team/chat"):
            async with bench.client.get(f"{bench.url}/v1/models/{name}") as answer:
                assert (answer.status, (await answer.json())["id"]) == (200, "org/chat")
        async with bench.client.get(f"{bench.url}/v1/models/nope") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("DELETE", "/v1/embeddings", 405, "method_not_allowed", "POST"),
        ("POST", "/v1/models", 405, "method_not_allowed", "GET"),
        ("GET", "/classify", 405, "method_not_allowed", "POST"),
        ("POST", "/classify/x", 404, "unknown_url", None),
        ("POST", "/tokenize", 404, "unknown_url", None),
        ("GET", "/", 404, "unknown_url", None),
        ("GET", "/metrics", 404, "unknown_url", None),
        ("POST", "/v1/../control/v1/drain", 404, "unknown_url", None),
        ("POST", "/v1/x/..", 404, "unknown_url", None),
        ("POST", "/v1/%2e%2e/control", 404, "unknown_url", None),
        ("POST", "/v1/load_lora_adapter", 404, "unknown_url", None),
        ("POST", "/v1/unload_lora_adapter", 404, "unknown_url", None),
        ("GET", "/v1/files", 400, "missing_required_parameter", None),
    ],
)
async def test_wrong_paths_and_methods(
    method: str, path: str, status: int, code: str, allow: str | None
) -> None:
    async with running_gateway() as bench:
        replica = await bench.add_replica(await bench.add_workload("chat"))
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        # By hand: clients tidy paths up before sending.
        body = b'{"model": "chat"}'
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(
            next(line for line in head.splitlines() if line.lower().startswith("content-length")).split()[1]
        )
        answer = json.loads(await reader.readexactly(length))
        writer.close()
        assert (int(head.split()[1]), answer["error"]["code"]) == (status, code)
        assert allow is None or f"Allow: {allow}" in head
        assert replica.requests == []


@pytest.mark.parametrize("path", ["/classify", "/score", "/rerank", "/v2/rerank"])
async def test_paths_of_the_runtime_outside_of_v1_pass_by_model(path: str) -> None:
    async with running_gateway() as bench:
        replica = await bench.add_replica(await bench.add_workload("chat"))
        body = {"model": "team/chat", "input": "x"}
        async with bench.client.post(f"{bench.url}{path}", json=body) as answer:
            assert answer.status == 200
        assert [sent for _, sent, _, _ in replica.requests] == [path]


async def test_other_paths_pass_by_model() -> None:
    async with running_gateway() as bench:
        replica = await bench.add_replica(await bench.add_workload("chat"))
        async with bench.client.post(
            f"{bench.url}/v1/audio/speech", json={"model": "chat", "input": "x"}
        ) as answer:
            assert answer.status == 200
        async with bench.client.get(f"{bench.url}/v1/some/list?model=chat") as answer:
            assert answer.status == 200
        form = aiohttp.FormData()
        form.add_field("file", b"\x00\x01", filename="a.wav", content_type="audio/wav")
        form.add_field("model", "team/chat")
        async with bench.client.post(f"{bench.url}/v1/audio/transcriptions", data=form) as answer:
            assert answer.status == 200
        assert [path for _, path, _, _ in replica.requests] == [
            "/v1/audio/speech",
            "/v1/some/list?model=chat",
            "/v1/audio/transcriptions",
        ]
        assert b"\r\n\r\nchat\r\n" in replica.requests[2][3]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413(chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b"x" * 1000

    async with running_gateway(max_body=20_000) as bench:
        data = pieces() if chunked else b"x" * 40_000
        async with bench.client.post(f"{bench.url}/v1/completions", data=data) as answer:
            assert answer.status == 413
            error = (await answer.json())["error"]
        assert error["code"] == "request_too_large"
        assert "20000 bytes" in error["message"]
        assert bench.metric("buffered_bytes") == 0


async def test_sound_has_a_limit_of_its_own() -> None:
    async with running_gateway(max_body=2000, max_audio_body=20_000) as bench:
        await bench.add_replica(await bench.add_workload("chat"))

        async def ask(size: int, path: str = "/v1/audio/transcriptions") -> int:
            form = aiohttp.FormData()
            form.add_field("file", bytes(size), filename="a.wav", content_type="audio/wav")
            form.add_field("model", "chat")
            async with bench.client.post(f"{bench.url}{path}", data=form) as answer:
                return answer.status

        assert await ask(10_000) == 200
        assert await ask(25_000) == 413
        assert await ask(10_000, "/v1/images/edits") == 413


async def test_a_form_is_held_until_a_replica_is_there() -> None:
    async with running_gateway() as bench:
        workload = await bench.add_workload("chat")
        form = aiohttp.FormData()
        form.add_field("file", b"\x00\x01", filename="a.wav", content_type="audio/wav")
        form.add_field("model", "chat")
        asking = asyncio.create_task(bench.client.post(f"{bench.url}/v1/audio/transcriptions", data=form))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        replica = await bench.add_replica(workload)
        async with await asking as answer:
            assert answer.status == 200
        assert b"\x00\x01" in replica.requests[0][3]


async def test_bodies_altogether_are_bounded() -> None:
    async with running_gateway(max_buffered=50_000) as bench:
        await bench.add_workload("chat")
        text = "x" * 30_000
        held = asyncio.create_task(bench.chat("chat", prompt=text))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        assert bench.metric("buffered_bytes") > 30_000
        status, body, headers = await bench.chat("chat", prompt=text)
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "gateway_overloaded", "2")
        held.cancel()
        await until(lambda: bench.metric("buffered_bytes") == 0)


async def test_a_body_that_never_arrives_is_given_up() -> None:
    async with running_gateway(body_timeout=0.1) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert b" 408 " in head
        assert bench.metric("buffered_bytes") == 0
        writer.close()


async def test_expect_continue_is_answered_before_the_body_is_sent() -> None:
    async with running_gateway() as bench:
        await bench.add_replica(await bench.add_workload("chat"))
        body = b'{"model": "chat"}'
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_keys_decide_who_may_ask_and_what_exists(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(
        f"keys:\n- {{name: red, sha256: {keys.hash_key('k-red')}, namespaces: [red]}}\n"
        f"- {{name: all, sha256: {keys.hash_key('k-all')}}}\n"
    )
    async with running_gateway(keys_file=str(path)) as bench:
        for namespace in ("red", "blue"):
            replica = await bench.add_replica(
                await bench.add_workload(f"chat-{namespace}", namespace=namespace), namespace=namespace
            )
        for headers in (None, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic k-all"}):
            status, body, sent = await bench.chat("chat-red", headers=headers)
            assert (status, body["error"]["code"], sent["WWW-Authenticate"]) == (
                401,
                "invalid_api_key",
                "Bearer",
            )
        red, everything = {"Authorization": "Bearer k-red"}, {"Authorization": "bearer k-all"}
        assert (await bench.chat("chat-red", headers=red))[0] == 200
        status, body, _ = await bench.chat("chat-blue", headers=red)
        assert (status, "Known models: chat-red." in body["error"]["message"]) == (404, True)
        assert (await bench.chat("blue/chat-blue", headers=red))[0] == 404
        async with bench.client.get(f"{bench.url}/v1/models", headers=red) as answer:
            assert [m["id"] for m in (await answer.json())["data"]] == ["chat-red"]
        assert (await bench.chat("chat-blue", headers=everything))[0] == 200
        assert "Authorization" not in replica.requests[0][2]
        # The gateway's key in its own header leaves Authorization to the workload's own keys.
        mixed = {"X-LLMOS-Key": "k-all", "Authorization": "Bearer workload-key"}
        assert (await bench.chat("chat-blue", headers=mixed))[0] == 200
        assert replica.requests[1][2]["Authorization"] == "Bearer workload-key"
        assert "X-LLMOS-Key" not in replica.requests[1][2]


async def test_the_rate_of_a_key_and_of_a_workload_are_held(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(
        f"keys:\n- {{name: few, sha256: {keys.hash_key('few')}, requestsPerMinute: 2}}\n"
        f"- {{name: many, sha256: {keys.hash_key('many')}}}\n"
    )
    async with running_gateway(keys_file=str(path)) as bench:
        limited = {"serving": {"rateLimit": {"tokensPerMinute": 8}}}
        for name, spec in (("free", {}), ("limited", limited)):
            await bench.add_replica(await bench.add_workload(name, spec=spec))
        few, many = {"Authorization": "Bearer few"}, {"Authorization": "Bearer many"}
        assert [(await bench.chat("free", headers=few))[0] for _ in range(3)] == [200, 200, 429]
        status, body, sent = await bench.chat("free", headers=few)
        assert (status, body["error"]["type"], body["error"]["code"]) == (
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert "few reached: 2 requests per minute" in body["error"]["message"]
        assert 25 <= int(sent["Retry-After"]) <= 30
        # Each answer costs five tokens of the eight a minute: the second one runs into debt.
        assert [(await bench.chat("limited", headers=many))[0] for _ in range(3)] == [200, 200, 429]
        assert (await bench.chat("free", headers=many))[0] == 200


async def test_before_the_first_list_the_gateway_says_that_it_is_starting() -> None:
    async with running_gateway() as bench:
        for reflector in bench.gateway.watches.reflectors:
            reflector.mirror.synced = False
        status, body, headers = await bench.chat("chat")
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "gateway_starting", "1")
        async with bench.client.get(f"http://127.0.0.1:{bench.gateway.health_port}/readyz") as answer:
            assert answer.status == 503


async def test_health_and_metrics_are_on_their_own_port() -> None:
    async with running_gateway() as bench:
        await bench.add_replica(await bench.add_workload("chat"))
        await bench.chat("chat")
        health = f"http://127.0.0.1:{bench.gateway.health_port}"
        for path in ("/livez", "/readyz"):
            async with bench.client.get(health + path) as answer:
                assert answer.status == 200
        async with bench.client.get(f"{health}/metrics") as answer:
            text = await answer.text()
        assert 'llmos_gateway_requests_total{code="200",namespace="team",workload="chat"} 1.0' in text
        assert "llmos_gateway_workloads 1.0" in text


async def test_series_of_a_deleted_workload_are_dropped() -> None:
    async with running_gateway() as bench:
        await bench.add_replica(await bench.add_workload("chat"))
        await bench.chat("chat")
        await bench.cluster.delete(MODEL_WORKLOADS, "chat", namespace="team")
        await until(lambda: not list(bench.gateway.catalog.workloads()))
        assert bench.metric("requests_total", namespace="team", workload="chat", code="200") == 0
        assert bench.metric("workloads") == 0


async def test_an_object_that_cannot_be_read_harms_no_other() -> None:
    async with running_gateway() as bench:
        bad = workload_json("bad", spec={"serving": {"port": "http"}})
        await bench.cluster.create(MODEL_WORKLOADS, bad, namespace="team")
        await bench.add_replica(await bench.add_workload("chat"))
        assert (await bench.chat("chat"))[0] == 200
        assert (await bench.chat("bad"))[0] == 404
        assert bench.metric("objects_skipped_total", kind="ModelWorkload") == 1


async def test_requests_on_one_connection_one_after_the_other() -> None:
    async with running_gateway() as bench:
        await bench.add_replica(await bench.add_workload("chat"))
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.gateway.port)
        body = b'{"model": "chat"}'
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        writer.write(request * 3)  # pipelined
        for _ in range(3):
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
            assert head.startswith("HTTP/1.1 200")
            length = next(line for line in head.splitlines() if line.lower().startswith("content-length"))
            await reader.readexactly(int(length.split()[1]))
        writer.close()

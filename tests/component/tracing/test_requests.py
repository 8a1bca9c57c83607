"""One trace from the client's span over the gateway to the engine: a real gateway, a real runtime front, a real receiver."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.cluster.port import PODS
from llmos_operator.gateway import keys
from llmos_operator.observability.logging import JsonFormatter
from tests.support.engine import MODEL, ScriptedEngine, running_runtime
from tests.support.gateway import pod_json, running_gateway, until
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.engine import RuntimeBench
    from tests.support.gateway import GatewayBench
    from tests.support.otlp import Receiver, Seen

pytestmark = [pytest.mark.component, pytest.mark.anyio]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
PROMPT, ANSWER = "MARKER-prompt-71", "MARKER-answer-93"


@asynccontextmanager
async def path(
    folder: Path, collector: Receiver, *, engine: ScriptedEngine | None = None, **gateway: Any
) -> AsyncIterator[tuple[GatewayBench, RuntimeBench]]:
    """A gateway in front of a runtime, both sending spans to ``collector``."""
    engine = engine or ScriptedEngine(text=ANSWER)
    settings = {"tracing": {"endpoint": collector.url}, **gateway}
    async with (
        running_gateway(**settings) as bench,  # the outer one: when it has ended no task may be left
        running_runtime(folder, engine=engine, trace_endpoint=collector.url) as runtime,
    ):
        uid = await bench.add_workload("chat", served=MODEL)
        pod = pod_json("chat-0", uid, "127.0.0.1", runtime.runtime.port)
        await bench.cluster.create(PODS, pod, namespace="team")
        await until(lambda: bench.gateway.catalog.replica_count() == 1)
        yield bench, runtime


async def ask(bench: GatewayBench, **more: Any) -> tuple[int, Any]:
    headers = more.pop("headers", {})
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64, **more}
    url = f"{bench.url}/v1/chat/completions"
    async with bench.client.post(url, json=body, headers=headers) as answer:
        text = await answer.text()
        return answer.status, text


async def the(collector: Receiver, name: str, **attributes: Any) -> Seen:
    """Wait for a span without holding up the servers of the test."""
    return await asyncio.to_thread(collector.one, name, **attributes)


async def test_a_request_is_one_trace_from_the_client_to_the_first_token(
    tmp_path: Path, collector: Receiver
) -> None:
    async with path(tmp_path, collector) as (bench, _):
        status, _ = await ask(bench, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
        assert status == 200
        front = await the(collector, "POST /v1/chat/completions", llmos__workload="chat")
        attempt = await the(collector, f"chat {MODEL}")
        served = await the(collector, "POST /v1/chat/completions", llmos__format="bf16")
        parts = [await the(collector, name) for name in ("queue", "prefill", "decode")]
    assert {one.trace for one in (front, attempt, served, *parts)} == {TRACE}
    assert (front.parent, front.kind, front.resource["service.name"]) == (SPAN, "server", "llmos-gateway")
    assert (attempt.parent, attempt.kind) == (front.id, "client")
    assert (served.parent, served.kind) == (attempt.id, "server")
    assert served.resource["service.name"] == "llmos-runtime"
    assert {one.parent for one in parts} == {served.id}
    queue, prefill, decode = parts
    assert queue.end == pytest.approx(prefill.start, abs=1e-4)
    assert prefill.end == pytest.approx(decode.start, abs=1e-4)
    tokens = len(ANSWER) + 1
    for one in (front, attempt, served):
        assert one.attributes["http.response.status_code"] == 200
        assert one.attributes["gen_ai.usage.output_tokens"] == tokens
        assert one.status == "unset"
    assert attempt.attributes["gen_ai.operation.name"] == "chat"
    assert attempt.attributes["gen_ai.request.model"] == MODEL
    assert attempt.attributes["llmos.replica"] == "chat-0"
    assert served.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert served.attributes["gen_ai.server.time_to_first_token"] >= 0
    assert "llmos.first_token" in [name for name, _, _ in served.events]


async def test_a_stream_tells_its_first_chunk(tmp_path: Path, collector: Receiver) -> None:
    async with path(tmp_path, collector) as (bench, _):
        status, _ = await ask(bench, stream=True)
        assert status == 200
        attempt = await the(collector, f"chat {MODEL}")
    assert attempt.attributes["gen_ai.request.stream"] is True
    assert attempt.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert [name for name, _, _ in attempt.events] == ["llmos.first_byte"]


@pytest.mark.parametrize("parent", ["", "junk", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-x"])
async def test_a_malformed_parent_begins_a_trace_of_its_own(
    tmp_path: Path, collector: Receiver, parent: str
) -> None:
    async with path(tmp_path, collector) as (bench, _):
        status, _ = await ask(bench, headers={"traceparent": parent, "tracestate": "vendor=1"})
        assert status == 200
        front = await the(collector, "POST /v1/chat/completions", llmos__workload="chat")
        served = await the(collector, "POST /v1/chat/completions", llmos__format="bf16")
    assert front.parent == ""
    assert front.trace == served.trace != TRACE
    assert front.state == served.state == ""


async def test_a_client_that_does_not_sample_is_not_traced(tmp_path: Path, collector: Receiver) -> None:
    async with path(tmp_path, collector) as (bench, _):
        await ask(bench, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
        await ask(bench)  # its spans end later: once they are here, the others would be, too
        await the(collector, "decode")
    assert TRACE not in {one.trace for one in collector.spans}


async def test_switched_off_the_parent_goes_through_untouched() -> None:
    async with running_gateway() as bench:
        uid = await bench.add_workload("chat", served="m")
        replica = await bench.add_replica(uid)
        await bench.chat("m", headers={"traceparent": PARENT, "tracestate": "vendor=1"})
        await bench.chat("m")
    seen = [(h.get("traceparent"), h.get("tracestate")) for _, _, h, _ in replica.requests]
    assert seen == [(PARENT, "vendor=1"), (None, None)]


async def test_the_state_of_other_systems_reaches_the_replica(collector: Receiver) -> None:
    async with running_gateway(tracing={"endpoint": collector.url}) as bench:
        uid = await bench.add_workload("chat", served="m")
        replica = await bench.add_replica(uid)
        await bench.chat("m", headers={"traceparent": PARENT, "tracestate": "vendor=1"})
    ((_, _, headers, _),) = replica.requests
    assert headers.getall("traceparent")[0].startswith(f"00-{TRACE}-")
    assert len(headers.getall("traceparent")) == 1
    assert SPAN not in headers["traceparent"]
    assert headers["tracestate"] == "vendor=1"


async def test_no_prompt_no_answer_and_no_key_is_in_any_span(
    tmp_path: Path, collector: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.new_key()
    listed = tmp_path / "keys.yaml"
    listed.write_text(f"keys:\n- {{name: someone, sha256: {keys.hash_key(key)}}}")
    with caplog.at_level(logging.INFO):
        async with path(tmp_path, collector, keys_file=str(listed)) as (bench, _):
            good = {"Authorization": f"Bearer {key}"}
            assert (await ask(bench, headers=good))[0] == 200
            assert (await ask(bench, headers=good, stream=True, stop=["MARKER-stop"], user="MARKER-user"))[
                0
            ] == 200
            assert (await ask(bench, headers={"Authorization": "Bearer MARKER-key"}))[0] == 401
            assert (await ask(bench, headers=good, model="MARKER-model"))[0] == 404
            async with bench.client.get(f"{bench.url}/v1/models/MARKER-path", headers=good) as answer:
                assert answer.status == 404
            await the(collector, "GET /v1/models/{model}")
            await the(collector, "POST /v1/chat/completions", error__type="model_not_found")
            await asyncio.to_thread(eventually, lambda: len(collector.named("decode")) == 2)
    assert len(collector.named(f"chat {MODEL}")) == 2
    sent = b"".join(collector.raw)
    assert b"MARKER" not in sent
    assert key.encode() not in sent


async def test_a_refusal_is_told_by_its_code(collector: Receiver) -> None:
    async with running_gateway(tracing={"endpoint": collector.url}) as bench:
        await bench.add_workload("cold", served="m", spec={"scaling": {"coldStart": "Reject"}})
        status, _, _ = await bench.chat("m")
        assert status == 503
        span = await the(collector, "POST /v1/chat/completions")
    assert span.attributes["error.type"] == "workload_starting"
    assert span.attributes["http.response.status_code"] == 503
    assert span.attributes["llmos.attempts"] == 0
    assert span.status == "error"


async def test_a_hold_and_every_attempt_are_told(collector: Receiver) -> None:
    async with running_gateway(tracing={"endpoint": collector.url}) as bench:
        uid = await bench.add_workload("chat", served="m")
        asking = asyncio.create_task(bench.chat("m"))
        await until(lambda: bench.metric("held", namespace="team", workload="chat") == 1)
        dead = await bench.add_replica(uid, start=False)
        await until(
            lambda: bench.metric("retries_total", namespace="team", workload="chat", reason="connect") == 1
        )
        live = await bench.add_replica(uid)
        assert (await asking)[0] == 200
        front = await the(collector, "POST /v1/chat/completions")
        failed = await the(collector, "chat m", llmos__replica=dead.name)
        served = await the(collector, "chat m", llmos__replica=live.name)
        holds = collector.named("hold")
    assert {one.parent for one in (failed, served, *holds)} == {front.id}
    assert (failed.status, failed.attributes["error.type"], failed.attributes["llmos.attempt"]) == (
        "error",
        "connect",
        1,
    )
    assert (served.status, served.attributes["llmos.attempt"]) == ("unset", 2)
    assert front.attributes["llmos.attempts"] == 2
    assert holds[0].attributes["llmos.hold.ended"] == "served"
    assert holds[0].end <= failed.end


async def test_a_client_that_leaves_ends_the_spans(tmp_path: Path, collector: Receiver) -> None:
    engine = ScriptedEngine(manual=True)
    async with path(tmp_path, collector, engine=engine) as (bench, _):
        asking = asyncio.create_task(ask(bench))
        await until(lambda: len(engine.submits) == 1)
        asking.cancel()
        front = await the(collector, "POST /v1/chat/completions", llmos__workload="chat")
        attempt = await the(collector, f"chat {MODEL}")
        served = await the(collector, "POST /v1/chat/completions", llmos__format="bf16")
    assert front.attributes["error.type"] == "client_gone"
    assert attempt.attributes["error.type"] == "cancelled"
    assert served.attributes["error.type"] == "client_gone"
    assert {one.status for one in (front, attempt, served)} == {"error"}


async def test_log_lines_of_a_request_name_its_trace(
    tmp_path: Path, collector: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with path(tmp_path, collector) as (bench, _):
            await ask(bench, headers={"traceparent": PARENT})
            front = await the(collector, "POST /v1/chat/completions", llmos__workload="chat")
    lines = [json.loads(JsonFormatter().format(one)) for one in caplog.records if one.message == "request"]
    assert [(one["trace_id"], one["span_id"]) for one in lines] == [(TRACE, front.id)]


async def test_embeddings_are_told_as_such(tmp_path: Path, collector: Receiver) -> None:
    engine = ScriptedEngine(info={"embedding_size": 4})
    async with running_runtime(tmp_path, engine=engine, trace_endpoint=collector.url) as runtime:
        status, _, _ = await runtime.post("/v1/embeddings", {"model": MODEL, "input": "MARKER"})
        assert status == 200
        span = await the(collector, "POST /v1/embeddings")
    assert span.attributes["gen_ai.operation.name"] == "embeddings"
    assert span.attributes["gen_ai.usage.input_tokens"] == 6
    assert b"MARKER" not in b"".join(collector.raw)


async def test_a_load_is_told_below_the_placement(tmp_path: Path, collector: Receiver) -> None:
    settings = {"trace_endpoint": collector.url, "trace_parent": PARENT}
    stages = (("Downloading", 0.0001), ("Loading", 0.0002))
    engine = ScriptedEngine(info={"stage_seconds": stages, "load_path": "cold"})
    async with running_runtime(tmp_path, engine=engine, **settings):
        load = await the(collector, "load")
        parts = [await the(collector, f"load {stage}") for stage, _ in stages]
    assert (load.trace, load.parent) == (TRACE, SPAN)
    assert load.attributes["llmos.load.path"] == "cold"
    assert {one.parent for one in parts} == {load.id}
    assert load.start <= parts[0].start <= parts[0].end <= parts[1].end <= load.end + 1e-6
    assert parts[1].end - parts[1].start == pytest.approx(0.0002, abs=1e-5)


async def test_a_receiver_that_hangs_holds_up_no_request(tmp_path: Path, collector: Receiver) -> None:
    collector.gate.clear()
    async with path(tmp_path, collector) as (bench, runtime):
        await ask(bench)
        await until(lambda: bool(collector.requests))
        for _ in range(20):
            assert (await ask(bench))[0] == 200
        ended = bench.registry.get_sample_value("llmos_tracing_spans_total", {"result": "ended"})
        async with runtime.http.get(runtime.url + "/metrics") as answer:
            text = await answer.text()
    assert ended == 42
    assert 'llmos_tracing_spans_total{result="ended"}' in text
    assert collector.spans == []

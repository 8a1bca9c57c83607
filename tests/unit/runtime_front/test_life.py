"""Clients that leave, engines that die, overload, draining: what happens to everybody else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime import exchange
from llmos_operator.runtime.ipc import EngineMemory, Failed, Stats
from llmos_operator.runtime.ipc.messages import RankMemory
from tests.support.engine import MODEL, RuntimeBench, ScriptedEngine, running_runtime, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
C = "/v1/chat/completions"
TOKEN = "control"
LABELS = {"model_name": MODEL, "engine": "0"}


async def _open_stream(bench: RuntimeBench, **fields: Any) -> aiohttp.ClientResponse:
    """Start a stream and read its first event; the engine is manual."""
    before = len(bench.engine.submits)
    asked = asyncio.create_task(bench.http.post(bench.url + C, json={**CHAT, "stream": True, **fields}))
    await until(lambda: len(bench.engine.submits) > before)
    bench.engine.step()
    answer = await asked
    await answer.content.readuntil(b"\n\n")
    return answer


async def _chat(bench: RuntimeBench) -> tuple[int, Any, Any]:
    return await bench.post(C, CHAT)


# ------------------------------------------------------------ clients


async def test_a_client_that_leaves_a_stream_stops_the_engine_within_a_step(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True, text="x" * 400)
    async with running_runtime(tmp_path, engine=engine) as bench:
        answer = await _open_stream(bench)
        answer.close()
        await until(lambda: len(engine.cancelled) == 1)
        assert engine.running == {}
        await until(lambda: bench.runtime.drain.inside == 0)
        assert bench.metric("llmos_runtime_client_gone_total") == 1
        assert bench.metric("vllm:request_success_total", finished_reason="abort", **LABELS) == 1


async def test_a_client_that_leaves_before_the_first_token_stops_the_engine_too(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        for stream in (True, False):
            asked = asyncio.create_task(
                bench.http.post(bench.url + C, json={**CHAT, "stream": stream, "n": 2})
            )
            await until(lambda: len(engine.running) == 2)
            asked.cancel()
            await until(lambda: not engine.running)
        assert len(engine.cancelled) == 4


_ENCODER: dict[str, Any] = {"generative": False, "embedding_size": 2, "apis": ("embeddings", "score")}
_JUDGE: dict[str, Any] = {
    "generative": False,
    "embedding_size": 1,
    "labels": ("good",),
    "apis": ("classify", "score"),
}


@pytest.mark.parametrize(
    ("path", "info", "body"),
    [
        ("/v1/embeddings", _ENCODER, {"input": ["a", "b"]}),
        ("/v1/score", _ENCODER, {"text_1": "a", "text_2": ["b", "c"]}),
        ("/v1/rerank", _ENCODER, {"query": "a", "documents": ["b", "c"]}),
        ("/classify", _JUDGE, {"input": ["a", "b"]}),
    ],
)
async def test_a_client_that_leaves_stops_an_encoder_and_others_are_answered(
    tmp_path: Path, path: str, info: dict[str, Any], body: dict[str, Any]
) -> None:
    engine = ScriptedEngine(manual=True, info=info)
    async with running_runtime(tmp_path, engine=engine) as bench:
        leaving, staying = (
            asyncio.create_task(bench.post(path, {"model": MODEL, **body, "user": name})) for name in "ab"
        )
        await until(lambda: len(engine.unanswered) == 2)
        leaving.cancel()
        await until(lambda: len(engine.cancelled) == 1)
        assert len(engine.unanswered) == 1
        engine.answer_embeds()
        assert (await staying)[0] == 200
        await until(lambda: bench.runtime.drain.inside == 0)
        assert bench.runtime.admission.inside == 0
        assert bench.metric("llmos_runtime_client_gone_total") == 1
        assert bench.metric("llmos_runtime_http_requests_total", endpoint=path, code="499") == 1


async def test_a_storm_of_leaving_clients_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True, text="x" * 400)
    async with running_runtime(tmp_path, engine=engine, max_queue=1000) as bench:
        asked = [
            asyncio.create_task(bench.http.post(bench.url + C, json={**CHAT, "stream": True}))
            for _ in range(200)
        ]
        await until(lambda: len(engine.running) == 200)
        engine.step(3)
        for task in asked:
            task.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, aiohttp.ClientResponse):
                answer.close()
        await until(lambda: not engine.running and bench.runtime.drain.inside == 0)
        assert not bench.runtime.engine.current.busy
        assert (bench.runtime.admission.inside, bench.runtime.engine._owners) == (0, {})
        engine.manual = False
        assert (await _chat(bench))[0] == 200


async def test_a_slow_reader_slows_nobody_else(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True, text="x" * 480, info={"max_model_len": 100_000})
    async with running_runtime(tmp_path, engine=engine) as bench:
        slow = await _open_stream(bench, n=8, max_tokens=470)
        engine.step(470)  # 3760 events of 250 bytes, more than socket buffers take
        engine.manual, engine.text = False, "quick"
        for _ in range(5):
            assert (await _chat(bench))[1]["choices"][0]["message"]["content"] == "quick"
        text = (await slow.read()).decode()
        assert text.endswith("data: [DONE]\n\n")
        contents = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        assert sum(len(e["choices"][0]["delta"].get("content", "")) for e in contents) >= 8 * 469


async def test_a_reader_that_takes_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "STALL_SECONDS", 0.2)
    engine = ScriptedEngine(manual=True, text="x" * 60_000, info={"max_model_len": 100_000})
    async with running_runtime(tmp_path, engine=engine) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.runtime.port, limit=1024)
        body = json.dumps({**CHAT, "stream": True}).encode()
        writer.write(
            b"POST " + C.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await until(lambda: bool(engine.running))
        engine.step(50_000)
        await until(lambda: bench.runtime.drain.inside == 0)
        assert bench.metric("llmos_runtime_client_gone_total") == 1
        await until(lambda: not engine.running)
        writer.close()
        del reader


# ------------------------------------------------------------ the engine


async def test_an_engine_that_dies_ends_streams_with_an_error_event(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        answer = await _open_stream(bench)
        engine.crash()
        events = (await answer.read()).decode().strip().split("\n\n")
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("engine_lost", "server_error")
        assert "[DONE]" not in events[-1]


async def test_an_engine_that_dies_fails_requests_with_503_and_comes_back(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = [asyncio.create_task(_chat(bench)) for _ in range(3)]
        await until(lambda: len(engine.running) == 3)
        engine.crash()
        for status, body, headers in await asyncio.gather(*asked):
            assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "engine_lost", "1")
            # A request that kills engines must not be sent to the next replica by the gateway.
            assert "X-LLMOS-Refused" not in headers
        status, _, headers = await _chat(bench)
        assert (status, headers["X-LLMOS-Refused"]) == (503, "loading")
        assert (await bench.get("/readyz"))[0] == 503
        assert (await bench.get("/livez"))[0] == 200
        engine.manual = False
        await until(lambda: not bench.runtime.host.not_ready())
        assert (await _chat(bench))[0] == 200
        assert bench.metric("llmos_runtime_engine_restarts_total") == 1


async def test_an_engine_that_fails_one_request_answers_500_and_goes_on(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = asyncio.create_task(_chat(bench))
        await until(lambda: len(engine.running) == 1)
        engine.finish("error", "the step failed: boom")
        status, body, _ = await asked
        assert (status, body["error"]["code"]) == (500, "generation_failed")
        assert "boom" in body["error"]["message"]
        engine.manual = False
        assert (await _chat(bench))[0] == 200


async def test_a_request_whose_deadline_passed_in_the_queue_is_429(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = asyncio.create_task(_chat(bench))
        await until(lambda: len(engine.running) == 1)
        engine.finish("error", "the deadline passed before the request could start")
        status, body, headers = await asked
        assert (status, body["error"]["code"], headers["X-LLMOS-Refused"]) == (
            429,
            "overloaded",
            "overloaded",
        )


async def test_an_engine_that_fails_for_good_later_is_reported(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with running_runtime(tmp_path, engine=engine) as bench:
        engine.send(Failed("OutOfMemory", "killed while serving", permanent=True))
        await until(lambda: bench.runtime.host.state() == "Failed")
        assert (await bench.get("/readyz"))[0] == 503


# ------------------------------------------------------------ overload


async def test_what_would_wait_too_long_is_refused_at_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine, max_num_seqs=2, max_queue=3) as bench:
        asked = [asyncio.create_task(_chat(bench)) for _ in range(5)]
        await until(lambda: len(engine.running) == 5)
        status, body, headers = await _chat(bench)
        assert (status, body["error"]["code"], headers["X-LLMOS-Refused"]) == (
            429,
            "overloaded",
            "overloaded",
        )
        assert int(headers["Retry-After"]) >= 1
        assert (await bench.get("/readyz"))[1] == "the queue is full"
        assert bench.metric("vllm:admission_rejections_total", **LABELS) == 1
        engine.manual = False
        engine.step(40)
        assert {answer[0] for answer in await asyncio.gather(*asked)} == {200}
        assert (await _chat(bench))[0] == 200
        assert (await bench.get("/readyz"))[0] == 200


# ------------------------------------------------------------ the end


async def test_stopping_lets_what_runs_finish_and_declines_the_rest(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine, grace_seconds=20, linger=0.3) as bench:
        running = [asyncio.create_task(_chat(bench)) for _ in range(3)]
        await until(lambda: len(engine.running) == 3)
        bench.stop.set()
        await until(lambda: bench.runtime.drain.draining)
        assert (await bench.get("/readyz"))[:2] == (503, "draining")
        late = asyncio.create_task(_chat(bench))  # endpoints are slow to follow: still taken
        await until(lambda: len(engine.running) == 4)
        await until(lambda: bench.runtime.drain.declining)
        status, body, headers = await _chat(bench)
        assert (status, body["error"]["code"], headers["X-LLMOS-Refused"]) == (503, "draining", "draining")
        assert headers["Connection"] == "close"
        assert not any(task.done() for task in running)
        engine.step(40)
        answers = await asyncio.gather(*running, late)
        assert [status for status, _, _ in answers] == [200] * 4
        await asyncio.wait_for(bench.running, 60)


async def test_what_cannot_finish_in_time_ends_with_abort_and_its_text_so_far(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine, grace_seconds=1) as bench:
        stream = await _open_stream(bench)
        whole = asyncio.create_task(_chat(bench))
        await until(lambda: len(engine.running) == 2)
        engine.step(3)
        await until(lambda: bench.metric("vllm:inter_token_latency_seconds_count", **LABELS) >= 2)
        bench.stop.set()
        status, body, _ = await whole
        assert (status, body["choices"][0]["finish_reason"]) == (200, "abort")
        assert body["choices"][0]["message"]["content"] == "The"
        events = (await stream.read()).decode().strip().split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"
        assert events[-1] == "data: [DONE]"
        assert len(engine.cancelled) == 2
        await asyncio.wait_for(bench.running, 60)


# ------------------------------------------------------------ the operator


async def _control(bench: RuntimeBench, method: str, path: str, token: str = TOKEN, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with bench.http.request(method, f"{bench.control}{path}", json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_the_control_api_refuses_whoever_has_no_token(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        for token in ("", "wrong"):
            for method, path in (("GET", "/status"), ("POST", "/drain"), ("POST", "/budget")):
                assert (await _control(bench, method, path, token))[0] == 401
        assert not bench.runtime.drain.draining
        assert (await bench.get("/control/v1/status"))[0] == 404  # not on the serving port


async def test_without_a_token_of_its_own_the_control_api_refuses_everybody(tmp_path: Path) -> None:
    async with running_runtime(tmp_path, control_token="") as bench:
        for token in ("", "control", " "):
            assert (await _control(bench, "GET", "/status", token))[0] == 401


async def test_status_tells_state_model_memory_and_requests(tmp_path: Path) -> None:
    ranks = (RankMemory(0, 50, 90), RankMemory(1, 50, 60))
    engine = ScriptedEngine(
        stats=Stats(
            running=2,
            waiting=1,
            kv_blocks_used=8,
            kv_blocks_total=32,
            generation_tokens=9,
            first_tokens=3,
            first_token_seconds=0.7504,
            memory=EngineMemory(ranks=ranks),
        )
    )
    async with running_runtime(tmp_path, engine=engine) as bench:
        status, body = await _control(bench, "GET", "/status")
        assert status == 200
        assert body["state"] == "Ready"
        assert body["model"]["digest"] == "sha256:" + "ab" * 32
        assert body["load"]["stage"] == "Ready"
        assert body["loadSeconds"] == {"loading": 0.5}
        await until(lambda: bench.runtime.engine.status().stats.running == 2)
        told = (await _control(bench, "GET", "/status"))[1]
        assert told["memory"]["ranks"] == [
            {"rank": 0, "weightsBytes": 50, "measuredBytes": 90},
            {"rank": 1, "weightsBytes": 50, "measuredBytes": 60},
        ]
        requests = told["requests"]
        assert (requests["running"], requests["waiting"], requests["kvUsageMilli"]) == (2, 1, 250)
        assert (requests["firstTokens"], requests["firstTokenMillis"]) == (3, 750)
        assert requests["lastRequestAgeSeconds"] is None
        await _chat(bench)
        assert (await _control(bench, "GET", "/status"))[1]["requests"]["lastRequestAgeSeconds"] == 0


async def test_a_drain_order_is_followed(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = asyncio.create_task(_chat(bench))
        await until(lambda: len(engine.running) == 1)
        status, body = await _control(bench, "POST", "/drain", body={"timeoutSeconds": 30})
        assert (status, body) == (202, {"inside": 1})
        await until(lambda: bench.runtime.drain.declining)
        assert (await _control(bench, "GET", "/status"))[1]["state"] == "Draining"
        engine.step(40)
        assert (await asked)[0] == 200


async def test_a_budget_reaches_the_engine_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        assert (await _control(bench, "POST", "/budget", body={"memoryBytes": 123}))[0] == 202
        await until(lambda: bench.engine.budgets == [123])
        status, body = await _control(bench, "POST", "/budget", body={"memoryBytes": "much"})
        assert (status, body["error"]["param"]) == (400, "memoryBytes")


async def test_sleep_waits_for_what_runs_takes_nothing_new_and_wake_serves_again(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = asyncio.create_task(_chat(bench))
        await until(lambda: len(engine.running) == 1)
        order = {"level": 1, "timeoutSeconds": 60}
        assert (await _control(bench, "POST", "/sleep", body=order))[0] == 202
        assert (await bench.get("/readyz"))[0] == 503
        assert (await _chat(bench))[0] == 503
        assert engine.naps == []
        engine.step(40)
        assert (await asked)[0] == 200
        await until(lambda: bench.runtime.engine.status().state is RuntimeState.ASLEEP)
        assert engine.naps == [1]
        assert (await _control(bench, "GET", "/status"))[1]["state"] == "Asleep"
        assert "Asleep" in (await bench.get("/readyz"))[1]
        assert (await bench.get("/livez"))[0] == 200
        assert (await _control(bench, "POST", "/sleep", body=order))[0] == 202  # again: nothing changes
        assert (await _control(bench, "POST", "/wake"))[0] == 202
        await until(lambda: bench.runtime.host.not_ready() == "")
        assert engine.naps == [1]
        status, body = await _control(bench, "POST", "/sleep", body={"level": 3})
        assert (status, body["error"]["param"]) == (400, "level")


async def test_sleep_does_not_wait_longer_than_its_time(tmp_path: Path) -> None:
    engine = ScriptedEngine(manual=True)
    async with running_runtime(tmp_path, engine=engine) as bench:
        asked = asyncio.create_task(_chat(bench))
        await until(lambda: len(engine.running) == 1)
        await _control(bench, "POST", "/sleep", body={"level": 2, "timeoutSeconds": 0})
        await until(lambda: engine.naps == [2])
        engine.finish("abort", "the model goes to sleep")
        await asked


# ------------------------------------------------------------ figures


async def test_vllms_names_are_served_with_their_edges(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        await _chat(bench)
        await bench.events(C, CHAT)
        bench.engine.send(Stats(running=1, kv_blocks_used=16, kv_blocks_total=32, prompt_tokens=7))
        await until(lambda: bench.metric("vllm:kv_cache_usage_perc", **LABELS) == 0.5)
        _, text = await bench.get("/metrics")
        for name in (
            "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
            "generation_tokens_total", "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
        ):  # fmt: skip
            assert f'vllm:{name}{{engine="0",model_name="{MODEL}"}}' in text, name
        assert (
            'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="test/model"}' in text
        )
        assert (
            'vllm:time_to_first_token_seconds_bucket{engine="0",le="2560.0",model_name="test/model"} 2.0'
            in text
        )
        assert (
            'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="test/model"} 2.0' in text
        )
        assert bench.metric("vllm:request_success_total", finished_reason="stop", **LABELS) == 2
        assert bench.metric("vllm:request_queue_time_seconds_sum", **LABELS) == pytest.approx(0.2, abs=0.01)
        assert bench.metric("vllm:inter_token_latency_seconds_count", **LABELS) >= 2
        assert bench.metric("llmos_runtime_http_requests_total", endpoint=C, code="200") == 2
        assert bench.metric("llmos_runtime_memory_bytes", kind="measured") in {0.0, 90.0}


async def test_paths_that_do_not_exist_share_one_series(tmp_path: Path) -> None:
    async with running_runtime(tmp_path) as bench:
        for number in range(5):
            await bench.get(f"/nothing/{number}")
        assert bench.metric("llmos_runtime_http_requests_total", endpoint="other", code="404") == 5

"""Another precision in the same pod: who waits, who is answered by which engine, and what a failure leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.ipc import EngineInfo, EngineMemory, Failed, Load, Stats
from llmos_operator.runtime.ipc.client import EngineStatus
from llmos_operator.runtime.requantise import plan
from tests.support.engine import MODEL, RuntimeBench, ScriptedEngine, running_runtime, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
C = "/v1/chat/completions"
MIB = 1 << 20
NEEDS = {"format_bytes": (("bf16", 400 * MIB), ("int8", 250 * MIB), ("int4", 200 * MIB))}
BASE = 700 * MIB
ROOMY = EngineMemory(1000 * MIB, 1000 * MIB, base_bytes=BASE, limit_bytes=2000 * MIB, free_bytes=4000 * MIB)
TIGHT = replace(ROOMY, free_bytes=100 * MIB)  # the machine has no room for two


def an_engine(memory: EngineMemory = ROOMY, **fields: Any) -> ScriptedEngine:
    return ScriptedEngine(info=dict(NEEDS), memory=memory, **fields)


def serving(folder: Path, engine: ScriptedEngine, **settings: Any) -> Any:
    return running_runtime(folder, engine=engine, **{"memory_limit_bytes": 2000 * MIB, **settings})


async def order(bench: RuntimeBench, precision: str, **more: Any) -> tuple[int, Any]:
    headers = {"Authorization": "Bearer control"}
    body = {"precision": precision, **more}
    async with bench.http.post(f"{bench.control}/requantise", json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def status(bench: RuntimeBench) -> Any:
    headers = {"Authorization": "Bearer control"}
    async with bench.http.get(f"{bench.control}/status", headers=headers) as answer:
        return await answer.json()


def chat(bench: RuntimeBench) -> asyncio.Task[tuple[int, Any, Any]]:
    return asyncio.create_task(bench.post(C, CHAT))


async def ended(bench: RuntimeBench) -> Any:
    await until(lambda: not bench.runtime.host.changes.running)
    return (await status(bench))["change"]


# ------------------------------------------------------------ both fit


async def test_beside_what_runs_ends_in_the_old_engine_and_what_comes_goes_to_the_new(tmp_path: Path) -> None:
    engine = an_engine(manual=True)
    async with serving(tmp_path, engine) as bench:
        old = bench.runtime.engine.current
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        assert (await order(bench, "int8", budgetBytes=1500 * MIB)) == (202, {})
        await until(lambda: bench.runtime.engine.current is not old)
        assert old.busy
        memory = (await status(bench))["memory"]  # of both: nobody counts on the new budget yet
        assert (memory["limitBytes"], memory["measuredBytes"]) == (2000 * MIB, 1300 * MIB)
        assert (await status(bench))["change"]["state"] == "Done"
        late = chat(bench)
        await until(lambda: len(engine.running) == 2)
        assert (await status(bench))["model"]["format"] == "int8"
        assert (await bench.get("/readyz"))[0] == 200
        engine.step(40)
        answers = await asyncio.gather(running, late)
        assert [code for code, _, _ in answers] == [200, 200]
        assert [body["system_fingerprint"].split("-")[1] for _, body, _ in answers] == ["bf16", "int8"]
        change = await ended(bench)
        assert (change["format"], change["former"], change["beside"]) == ("int8", "bf16", True)
        assert old.order is None
        load = engine.loads[-1]
        assert (load.format, load.memory_limit_bytes, load.base_bytes) == ("int8", 1500 * MIB, BASE)
        assert (load.digest, load.max_model_len) == ("sha256:" + "ab" * 32, 512)


async def test_beside_both_keep_below_the_larger_budget_until_the_old_engine_has_ended(
    tmp_path: Path,
) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine) as bench:
        await order(bench, "int8", budgetBytes=1900 * MIB)
        await ended(bench)
        # The old one makes room, the new one leaves the old one its own; at the end it has the whole budget.
        await until(lambda: engine.budgets == [1750 * MIB, 1700 * MIB, 1900 * MIB])
        await order(bench, "int4", budgetBytes=1500 * MIB)
        await ended(bench)
        await until(lambda: engine.budgets[3:] == [1700 * MIB, 1500 * MIB])  # small enough from the start


async def test_beside_the_rest_is_aborted_with_its_text_so_far_when_the_time_is_over(tmp_path: Path) -> None:
    engine = an_engine(manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        engine.step(3)
        await order(bench, "int8", timeoutSeconds=0)
        code, body, _ = await running
        assert (code, body["choices"][0]["finish_reason"]) == (200, "abort")
        assert body["choices"][0]["message"]["content"] == "The"
        assert (await ended(bench))["state"] == "Done"


async def test_beside_a_failing_format_leaves_the_old_one_serving_and_says_why(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine) as bench:
        old = bench.runtime.engine.current
        engine.failure = Failed(
            "QualityLossExceeded", "format int4 is refused: 12 %; the workload allows 5 %"
        )
        await order(bench, "int4")
        change = await ended(bench)
        assert (change["state"], change["failure"]["reason"]) == ("Failed", "QualityLossExceeded")
        assert "12 %" in change["failure"]["message"]
        assert bench.runtime.engine.current is old
        assert (await bench.post(C, CHAT))[0] == 200
        told = await status(bench)
        assert (told["model"]["format"], told["state"], told["failure"]) == ("bf16", "Ready", None)
        assert engine.budgets[-1] == 2000 * MIB  # what it had before
        assert bench.metric("llmos_runtime_format_change_seconds_count", result="failed") == 1


async def test_an_engine_that_dies_while_it_loads_is_a_failure_and_not_tried_for_ever(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine) as bench:
        engine.ready = False
        await order(bench, "int8")
        await until(lambda: len(engine.loads) == 2)
        engine.crash()
        assert (await ended(bench))["failure"]["permanent"] is False
        assert len(engine.loads) == 2
        assert (await bench.post(C, CHAT))[0] == 200


# ------------------------------------------------------------ one after the other


async def test_without_room_for_both_new_requests_wait_and_are_answered_by_the_new_engine(
    tmp_path: Path,
) -> None:
    engine = an_engine(TIGHT, manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        waiting = [chat(bench) for _ in range(3)]
        await until(lambda: len(bench.runtime.engine._held) == 3)
        assert len(engine.loads) == 1
        assert (await bench.get("/readyz"))[:2] == (503, "the model changes its format")
        engine.step(40)
        assert (await running)[0] == 200
        await until(lambda: len(engine.running) == 3)
        assert [load.format for load in engine.loads] == ["bf16", "int8"]
        engine.step(40)
        assert [code for code, _, _ in await asyncio.gather(*waiting)] == [200] * 3
        change = await ended(bench)
        assert (change["state"], change["beside"]) == ("Done", False)
        assert bench.runtime.engine._held == {}
        result = {"result": "one_after_the_other"}
        assert bench.metric("llmos_runtime_format_change_seconds_count", **result) == 1


async def test_who_waits_for_an_encoder_is_answered_too(tmp_path: Path) -> None:
    fields = {**NEEDS, "generative": False, "embedding_size": 2, "apis": ("embeddings",)}
    engine = ScriptedEngine(info=fields, memory=TIGHT, manual=True)
    async with serving(tmp_path, engine) as bench:
        body = {"model": MODEL, "input": "a"}
        first = asyncio.create_task(bench.post("/v1/embeddings", body))
        await until(lambda: len(engine.unanswered) == 1)
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        second = asyncio.create_task(bench.post("/v1/embeddings", body))
        await until(lambda: bench.runtime.admission.inside == 2)
        engine.manual = False
        engine.answer_embeds()
        assert [code for code, _, _ in await asyncio.gather(first, second)] == [200, 200]
        assert (await ended(bench))["state"] == "Done"


async def test_a_failing_format_has_the_old_one_started_again_for_who_waits(tmp_path: Path) -> None:
    engine = an_engine(TIGHT, manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        engine.failures["int8"] = Failed("OutOfMemory", "needs 10 MiB more")
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        waiting = chat(bench)
        await until(lambda: len(bench.runtime.engine._held) == 1)
        engine.step(40)
        await running
        await until(lambda: len(engine.running) == 1)
        engine.step(40)
        code, body, _ = await waiting
        assert (code, body["system_fingerprint"].split("-")[1]) == (200, "bf16")
        assert [load.format for load in engine.loads] == ["bf16", "int8", "bf16"]
        assert (await ended(bench))["failure"]["message"] == "needs 10 MiB more"
        assert (await status(bench))["failure"] is None


async def test_when_the_old_format_does_not_come_back_either_who_waits_may_go_elsewhere(
    tmp_path: Path,
) -> None:
    engine = an_engine(TIGHT, manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        engine.failure = Failed("OutOfMemory", "the machine is full")
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        waiting = chat(bench)
        await until(lambda: len(bench.runtime.engine._held) == 1)
        engine.step(40)
        await running
        code, _, headers = await waiting
        assert (code, headers["X-LLMOS-Refused"]) == (503, "loading")
        await ended(bench)
        assert (await status(bench))["state"] == "Failed"


async def test_who_waits_longer_than_a_request_may_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = an_engine(TIGHT, manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        monkeypatch.setattr("llmos_operator.runtime.answering.DEADLINE_FACTOR", 0.0)
        code, body, headers = await bench.post(C, CHAT)
        assert (code, body["error"]["code"]) == (429, "overloaded")
        assert headers["X-LLMOS-Refused"] == "overloaded"
        engine.step(40)
        await running
        await ended(bench)


async def test_who_waits_and_leaves_is_not_sent_to_the_new_engine(tmp_path: Path) -> None:
    engine = an_engine(TIGHT, manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        waiting = chat(bench)
        await until(lambda: len(bench.runtime.engine._held) == 1)
        waiting.cancel()
        await until(lambda: bench.runtime.engine._held == {})
        engine.step(40)
        await running
        await ended(bench)
        assert len(engine.submits) == 1


async def test_who_waits_is_bounded_by_admission(tmp_path: Path) -> None:
    engine = an_engine(TIGHT, manual=True)
    async with serving(tmp_path, engine, max_num_seqs=1, max_queue=2) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        await order(bench, "int8")
        await until(lambda: bench.runtime.engine.holding)
        waiting = [chat(bench) for _ in range(2)]
        await until(lambda: len(bench.runtime.engine._held) == 2)
        assert (await bench.post(C, CHAT))[0] == 429
        engine.manual = False
        engine.step(40)
        assert {code for code, _, _ in await asyncio.gather(running, *waiting)} == {200}


async def test_a_runtime_that_stops_during_a_change_leaves_no_engine_behind(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine) as bench:
        engine.ready = False
        await order(bench, "int8")
        await until(lambda: len(engine.loads) == 2)
        bench.stop.set()
        await asyncio.wait_for(bench.running, 60)
        await until(lambda: not engine._tasks)


# ------------------------------------------------------------ what is kept, and told


async def test_adapters_are_loaded_into_the_new_engine(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine, max_adapters=2) as bench:
        await bench.runtime.host.load_adapter("tuned", "hf://org/tuned")
        await order(bench, "int8")
        assert (await ended(bench))["state"] == "Done"
        assert [one.name for one in engine.loads[-1].adapters] == ["tuned"]
        assert (await bench.post(C, {**CHAT, "model": "tuned"}))[0] == 200


async def test_an_adapter_that_the_new_engine_has_not_keeps_the_old_one(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine, max_adapters=2) as bench:
        await bench.runtime.host.load_adapter("tuned", "hf://org/tuned")
        engine.adapters.clear()
        await order(bench, "int8")
        assert "tuned" in (await ended(bench))["failure"]["message"]
        assert (await status(bench))["model"]["format"] == "bf16"


async def test_counters_go_on_and_models_and_health_tell_the_format(tmp_path: Path) -> None:
    engine = an_engine(stats=Stats(finished=3, generation_tokens=9))
    async with serving(tmp_path, engine) as bench:
        await until(lambda: bench.runtime.engine.status().stats.finished == 3)
        await order(bench, "int8")
        await ended(bench)
        await until(lambda: bench.runtime.engine.status().stats.finished == 6)
        labels = {"model_name": MODEL, "engine": "0"}
        assert bench.metric("vllm:generation_tokens_total", **labels) == 18
        async with bench.http.get(f"{bench.url}/v1/models") as answer:
            assert (await answer.json())["data"][0]["format"] == "int8"
        async with bench.http.get(f"{bench.url}/readyz") as answer:
            assert answer.headers["x-llmos-format"] == "int8"


async def test_the_new_engine_is_started_again_at_the_new_format(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine) as bench:
        await order(bench, "int8")
        await ended(bench)
        engine.crash()
        await until(lambda: len(engine.loads) == 3)
        assert engine.loads[-1].format == "int8"
        await until(lambda: not bench.runtime.host.not_ready())
        assert bench.metric("llmos_runtime_engine_restarts_total") == 1


# ------------------------------------------------------------ refusals


async def test_one_change_at_a_time_and_nothing_else_meanwhile(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine, max_adapters=1) as bench:
        engine.ready = False
        await order(bench, "int8")
        await until(lambda: len(engine.loads) == 2)
        host = bench.runtime.host
        assert (await order(bench, "int4"))[0] == 409
        for forbidden in (
            lambda: host.set_budget(1),
            lambda: host.sleep(1, 1.0),
        ):
            with pytest.raises(ApiError, match="changing from bf16 to int8"):
                forbidden()
        for pending in (host.load_adapter("a", "hf://org/a"), host.unload_adapter("a")):
            with pytest.raises(ApiError, match="changing from bf16 to int8"):
                await pending
        engine.make_ready()
        assert (await ended(bench))["state"] == "Done"


async def test_the_format_in_use_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, an_engine()) as bench:
        assert (await order(bench, "bf16"))[0] == 202
        assert (await status(bench))["change"] is None
        assert len(bench.engine.loads) == 1


async def test_what_is_not_allowed_not_served_or_too_large_is_refused_at_once(tmp_path: Path) -> None:
    engine = an_engine()
    async with serving(tmp_path, engine, formats=("bf16", "int8", "fp8")) as bench:
        code, body = await order(bench, "int4")
        assert (code, body["error"]["code"]) == (400, "format_not_allowed")
        assert "bf16, int8, fp8" in body["error"]["message"]
        code, body = await order(bench, "fp8")
        assert (code, body["error"]["code"], body["error"]["param"]) == (
            400,
            "unsupported_value",
            "precision",
        )
        code, body = await order(bench, "int8", budgetBytes=940 * MIB)
        assert (code, body["error"]["code"]) == (409, "out_of_memory")
        assert "950 MiB" in body["error"]["message"]
        assert (await order(bench, ""))[0] == 400
        assert len(engine.loads) == 1


async def test_a_model_that_does_not_serve_is_not_changed(tmp_path: Path) -> None:
    engine = an_engine(manual=True)
    async with serving(tmp_path, engine) as bench:
        running = chat(bench)
        await until(lambda: len(engine.running) == 1)
        bench.runtime.host.sleep(1, 60.0)
        assert (await order(bench, "int8"))[0] == 503
        engine.step(40)
        await running
        await until(lambda: bench.runtime.engine.status().state is RuntimeState.ASLEEP)
        await until(lambda: bench.runtime.host._dozing is None)
        assert (await order(bench, "int8"))[0] == 409


# ------------------------------------------------------------ the decision

INFO = EngineInfo("/m", "A", "sha256:1", "main", "bf16", "cpu", 512, 258, **NEEDS)  # type: ignore[arg-type]
LOAD = Load("hf://a/b", memory_limit_bytes=2000 * MIB)


@pytest.mark.parametrize(
    ("memory", "info", "load", "budget", "beside"),
    [
        (ROOMY, INFO, LOAD, 0, True),
        (TIGHT, INFO, LOAD, 0, False),
        (replace(ROOMY, measured_bytes=1800 * MIB), INFO, LOAD, 0, False),
        # A larger budget counts from the beginning.
        (replace(ROOMY, measured_bytes=1800 * MIB), INFO, LOAD, 2100 * MIB, True),
        (replace(ROOMY, measured_bytes=1800 * MIB), INFO, replace(LOAD, memory_limit_bytes=0), 0, True),
        # A GPU's KV cache is made at once: the whole of the new budget must fit beside what is predicted of the old one.
        (ROOMY, replace(INFO, device="cuda"), LOAD, 1700 * MIB, True),
        (ROOMY, replace(INFO, device="cuda"), LOAD, 1701 * MIB, False),
        (ROOMY, INFO, replace(LOAD, tensor=2), 0, False),
    ],
)
def test_both_engines_are_there_at_once_only_where_measured_memory_allows_it(
    memory: EngineMemory, info: EngineInfo, load: Load, budget: int, beside: bool
) -> None:
    status = EngineStatus(RuntimeState.READY, info=info, memory=memory)
    assert plan(status, info, load, "int8", budget, 1.0).beside is beside


def test_a_model_of_several_pods_is_refused() -> None:
    status = EngineStatus(RuntimeState.READY, info=INFO, memory=ROOMY)
    with pytest.raises(ApiError, match="several pods"):
        plan(status, INFO, replace(LOAD, tensor=2, local=1), "int8", 0, 1.0)

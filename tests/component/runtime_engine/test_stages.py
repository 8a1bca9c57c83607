"""A model whose layers lie on several ranks one after the other, each a process, in a real engine."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import EngineLost, SamplingParams, Submit
from tests.component.runtime_engine.test_split import generated, prompts, rank_pids, together
from tests.support.models import write_random

pytestmark = pytest.mark.model

LAYERS = 5  # no multiple of any number of stages below


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_greedy_answers_are_those_of_plain_generate(bench, tmp_path, stages, tied):
    reference = write_random(tmp_path / "m", "llama", tie_word_embeddings=tied, num_hidden_layers=LAYERS)
    status = bench.load(tmp_path / "m", format="fp32", pipeline=stages)
    assert status.state is RuntimeState.READY, status.failure
    assert len(status.memory.ranks) == stages
    asked = prompts(7)
    expected = [generated(reference, prompt, 20) for prompt in asked]
    assert together(bench, asked) == expected
    assert together(bench, asked) == expected, "from the prefix cache"


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral", "gemma3_text"])
def test_every_family_has_stages(bench, tmp_path, model_type):
    reference = write_random(tmp_path / "m", model_type)
    status = bench.load(tmp_path / "m", format="fp32", pipeline=2)
    assert status.state is RuntimeState.READY, status.failure
    asked = prompts(4)
    assert together(bench, asked, 12) == [generated(reference, prompt, 12) for prompt in asked]


@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
def test_each_format_has_stages(bench, chat_model, tokenizer, tmp_path, fmt):
    whole = bench.load(chat_model, format=fmt, cache_dir=str(tmp_path)).memory.weights_bytes
    status = bench.load(chat_model, format=fmt, pipeline=2, cache_dir=str(tmp_path))
    assert status.state is RuntimeState.READY, status.failure
    prompt = tokenizer.encode("The capital of France is").ids
    tokens, last = bench.run(bench.answer("paris", prompt, max_tokens=6, logprobs=2))
    assert "Paris" in tokenizer.decode(tokens)
    assert last.finish_reason
    sizes = [one.weights_bytes for one in status.memory.ranks]
    assert max(sizes) < 0.72 * whole, "the token table is tied, so that both ends have it"


@pytest.fixture
def pair(bench, tmp_path):
    """A small model in two stages."""
    write_random(tmp_path / "m")
    status = bench.load(tmp_path / "m", format="fp32", pipeline=2, fresh=True)
    assert status.state is RuntimeState.READY, status.failure
    return bench


def test_sampling_with_a_seed_and_a_cancel_leave_nothing_behind(pair):
    async def go():
        seeded = {"temperature": 1.0, "seed": 7, "max_tokens": 24, "ignore_eos": True}
        first, _ = await pair.answer("a", (5, 6, 7), **seeded)
        submit = Submit("gone", (8, 9), SamplingParams(max_tokens=400, ignore_eos=True))
        async with pair.client.generate(submit) as outputs:
            await anext(aiter(outputs))
        again, _ = await pair.answer("b", (5, 6, 7), **seeded)
        stats = await pair.stats_until(lambda stats: not stats.running and not stats.waiting)
        return first, again, stats

    first, again, stats = pair.run(go())
    assert first == again
    assert stats.kv_blocks_used == 0


@pytest.mark.parametrize(
    ("strike", "told"),
    [(signal.SIGKILL, "was ended by SIGKILL"), (signal.SIGSTOP, "silent|imed out")],
    ids=["killed", "stopped"],
)
def test_a_stage_that_is_lost_ends_the_group_and_a_new_one_serves(pair, strike, told):
    client = pair.client
    engine, (other,) = client.status().pid, rank_pids(client)

    async def lose():
        submit = Submit("doomed", (5, 6, 7), SamplingParams(max_tokens=480, ignore_eos=True, temperature=1.0))
        async with client.generate(submit) as outputs:
            await anext(aiter(outputs))
            os.kill(other, strike)
            with pytest.raises(EngineLost):
                async for _ in outputs:
                    pass
        while client.status().restarts == 0:
            await asyncio.sleep(0.05)
        return client.status().failure, await client.wait(RuntimeState.READY)

    failure, status = pair.run(lose())
    assert not failure.permanent
    assert re.search(told, failure.message), failure.message
    assert status.pid != engine
    assert not Path(f"/proc/{other}").exists(), "no stage outlives its group"
    assert pair.run(pair.answer("back", (5, 6, 7)))[0]
    pair.loaded = None


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_drops_every_stage_and_waking_loads_them(pair, level):
    before = pair.run(pair.answer("before", (5, 6, 7)))[0]

    async def nap():
        pair.client.sleep(level)
        await pair.client.wait(RuntimeState.ASLEEP)
        pair.client.wake()
        return await pair.client.wait(RuntimeState.READY)

    pair.run(nap())
    assert pair.run(pair.answer("awake", (5, 6, 7)))[0] == before


def test_a_smaller_budget_while_steps_are_under_way_changes_no_answer(bench, tmp_path):
    reference = write_random(tmp_path / "m")
    status = bench.load(tmp_path / "m", format="fp32", pipeline=2, max_model_len=448)
    few = status.memory.base_bytes + status.memory.weights_bytes + (80 << 20)
    asked = prompts(7)

    async def go():
        running = [
            asyncio.create_task(bench.answer(f"r{i}", prompt, max_tokens=40, ignore_eos=True))
            for i, prompt in enumerate(asked)
        ]
        first = Submit("first", (5, 6, 7), SamplingParams(max_tokens=400, ignore_eos=True, temperature=0.0))
        async with bench.client.generate(first) as outputs:
            await anext(aiter(outputs))  # the others are under way beside it
            bench.client.set_budget(few)
            await bench.stats_until(lambda stats: stats.memory.limit_bytes == few)
        return [tokens for tokens, _ in await asyncio.gather(*running)]

    assert bench.run(go()) == [generated(reference, prompt, 40) for prompt in asked]
    bench.loaded = None


def test_what_cannot_have_stages_is_refused_with_the_numbers(bench, tmp_path):
    write_random(tmp_path / "m", num_hidden_layers=2)
    failure = bench.load(tmp_path / "m", pipeline=3).failure
    assert (failure.reason, failure.permanent) == ("Unsupported", True)
    assert "2 layers" in failure.message
    assert "at most 2" in failure.message
    assert "to 1" in bench.load(tmp_path / "m", pipeline=2, tensor=2).failure.message
    assert "adapters are not served" in bench.load(tmp_path / "m", pipeline=2, max_adapters=1).failure.message
    write_random(tmp_path / "phi", "phi3")
    assert "has no pipeline stages" in bench.load(tmp_path / "phi", pipeline=2).failure.message

"""A model that several ranks share, each a process with its part, in a real engine."""

import asyncio
import os
import random
import re
import signal
import socket
from pathlib import Path

import pytest
import torch

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import EngineLost, SamplingParams, Submit
from llmos_operator.runtime.ranks.following import follow
from llmos_operator.runtime.settings import from_environment
from tests.support.models import write_random

pytestmark = pytest.mark.model

WIDE = {  # for up to four ranks; wide enough for int4's packing
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 331,  # a prime: the last rank has fewer tokens than the others
    "eos_token_id": 330,
}
LENGTHS = (5, 37, 1, 300, 64, 2, 29)


def prompts(count):
    rng = random.Random(count)
    return [[rng.randrange(2, 300) for _ in range(length)] for length in LENGTHS[:count]]


def generated(model, prompt, count):
    given = torch.tensor([prompt])
    out = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def together(bench, asked, count=20):
    async def go():
        return await asyncio.gather(
            *(
                bench.answer(f"r{i}", prompt, max_tokens=count, ignore_eos=True)
                for i, prompt in enumerate(asked)
            )
        )

    return [tokens for tokens, _ in bench.run(go())]


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_greedy_answers_are_those_of_plain_generate(bench, tmp_path, ways, tied):
    reference = write_random(tmp_path / "m", "llama", tie_word_embeddings=tied, **WIDE)
    status = bench.load(tmp_path / "m", format="fp32", tensor=ways)
    assert status.state is RuntimeState.READY, status.failure
    asked = prompts(7)
    assert together(bench, asked) == [generated(reference, prompt, 20) for prompt in asked]


def test_the_chat_model_is_split_over_three_and_each_holds_a_third(bench, chat_model, tokenizer):
    whole = bench.load(chat_model, format="fp32").memory.weights_bytes
    prompt = tokenizer.encode("The capital of France is").ids
    alone = together(bench, [prompt])
    status = bench.load(chat_model, format="fp32", tensor=3)
    assert status.state is RuntimeState.READY, status.failure
    assert together(bench, [prompt]) == alone

    def told(stats):
        ranks = stats.memory.ranks
        return len(ranks) == 3 and all(one.measured_bytes > one.weights_bytes for one in ranks)

    ranks = bench.run(bench.stats_until(told)).memory.ranks
    assert [one.rank for one in ranks] == [0, 1, 2]
    for one in ranks:
        assert one.weights_bytes == pytest.approx(whole / 3, rel=0.01)  # norms are whole on each


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral", "gemma3_text"])
def test_every_family_is_split_alike(bench, tmp_path, model_type):
    reference = write_random(tmp_path / "m", model_type)
    status = bench.load(tmp_path / "m", format="fp32", tensor=2)
    assert status.state is RuntimeState.READY, status.failure
    asked = prompts(4)
    assert together(bench, asked, 12) == [generated(reference, prompt, 12) for prompt in asked]


@pytest.mark.parametrize(("fmt", "share"), [("bf16", 1.01), ("int8", 0.61), ("int4", 0.46)])
def test_each_format_is_split_at_no_loss(bench, chat_model, tokenizer, tmp_path, fmt, share):
    status = bench.load(chat_model, format=fmt, tensor=3, cache_dir=str(tmp_path))
    assert status.state is RuntimeState.READY, status.failure
    tokens, _ = bench.run(
        bench.answer("paris", tokenizer.encode("The capital of France is").ids, max_tokens=6)
    )
    assert "Paris" in tokenizer.decode(tokens)
    plain = (chat_model / "model.safetensors").stat().st_size
    assert status.memory.weights_bytes <= 1.01 * share * plain / 3
    if fmt != "bf16":  # judged by all ranks together, against the source
        assert status.info.quality_kl_micro <= 10_000


@pytest.fixture
def pair(bench, tmp_path):
    """A small model on two ranks."""
    write_random(tmp_path / "m")
    status = bench.load(tmp_path / "m", format="fp32", tensor=2, fresh=True)
    assert status.state is RuntimeState.READY, status.failure
    return bench


def rank_pids(client):
    """The processes of the other ranks: the engine's children."""
    pid = client.status().pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("strike", "told"),
    [
        (signal.SIGKILL, "was ended by SIGKILL"),
        (signal.SIGSTOP, "silent|imed out"),
    ],
    ids=["killed", "stopped"],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_lost_ends_the_group_and_a_new_one_serves(pair, rank, strike, told):
    client = pair.client
    engine, (other,) = client.status().pid, rank_pids(client)

    async def lose():
        submit = Submit("doomed", (5, 6, 7), SamplingParams(max_tokens=480, ignore_eos=True, temperature=1.0))
        async with client.generate(submit) as outputs:
            await anext(aiter(outputs))
            os.kill(engine if rank == 0 else other, strike)
            with pytest.raises(EngineLost):
                async for _ in outputs:
                    pass
        while client.status().restarts == 0:
            await asyncio.sleep(0.05)
        failure = client.status().failure
        return failure, await client.wait(RuntimeState.READY)

    failure, status = pair.run(lose())
    assert not failure.permanent
    if rank:
        assert re.search(told, failure.message), failure.message
    assert status.pid != engine
    assert not Path(f"/proc/{other}").exists(), "no rank outlives its group"
    assert len(rank_pids(client)) == 1
    assert pair.run(pair.answer("back", (5, 6, 7)))[0]
    pair.loaded = None


def test_random_requests_leave_no_block_behind_and_change_no_answer(bench, tmp_path):
    reference = write_random(tmp_path / "m")
    status = bench.load(tmp_path / "m", format="fp32", tensor=2, max_model_len=448)
    few = status.memory.base_bytes + status.memory.weights_bytes + (80 << 20)
    rng = random.Random(7)
    asked = [[rng.randrange(2, 300) for _ in range(rng.randrange(1, 200))] for _ in range(30)]

    async def some(number):
        submit = Submit(
            f"x{number}",
            tuple(asked[number]),
            SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
        )
        leave_after, tokens = rng.choice((0, 3, 100, 100)), []
        async with bench.client.generate(submit) as outputs:
            async for output in outputs:
                tokens += output.tokens
                if len(tokens) >= leave_after:
                    return None
        return tokens

    async def all_of_them():
        bench.client.set_budget(few)
        return await asyncio.gather(*(some(number) for number in range(len(asked))))

    answers = bench.run(all_of_them())
    stats = bench.run(
        bench.stats_until(
            lambda stats: not stats.running and not stats.waiting and stats.memory.limit_bytes == few
        )
    )
    assert stats.kv_blocks_used == 0
    assert stats.kv_blocks_total * 16 >= 448
    done = [(prompt, tokens) for prompt, tokens in zip(asked, answers, strict=True) if tokens is not None]
    assert len(done) > 8
    for prompt, tokens in done[:8]:
        assert tokens == generated(reference, prompt, 24)
    longest = [rng.randrange(2, 300) for _ in range(440)]  # takes every block there is for one sequence
    assert bench.run(bench.answer("all", longest, max_tokens=4, ignore_eos=True))[0] == generated(
        reference, longest, 4
    )
    bench.loaded = None


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_gives_every_ranks_memory_back(pair, level):
    client, prompt = pair.client, [5, 6, 7]
    before, pids = pair.run(pair.answer("before", prompt))[0], rank_pids(client)

    async def nap():
        client.sleep(level)
        asleep = await client.wait(RuntimeState.ASLEEP)
        client.wake()
        return asleep, await client.wait(RuntimeState.READY)

    asleep, woken = pair.run(nap())
    assert asleep.memory.host_bytes == 0, "copies of a part cannot wait in the page cache"
    assert woken.info.load_path == "warm"
    assert rank_pids(client) == pids, "the same processes load again"
    assert pair.run(pair.answer("awake", prompt))[0] == before


def test_what_cannot_be_split_is_refused_with_the_numbers(bench, chat_model, tmp_path):
    failure = bench.load(chat_model, tensor=2).failure
    assert (failure.reason, failure.permanent) == ("Unsupported", True)
    assert "3 key-value heads" in failure.message
    assert "to 1 or 3" in failure.message
    write_random(tmp_path / "phi", "phi3")
    assert "Phi3ForCausalLM cannot be split" in bench.load(tmp_path / "phi", tensor=2).failure.message
    write_random(tmp_path / "m")
    assert "adapters are not served" in bench.load(tmp_path / "m", tensor=2, max_adapters=1).failure.message


def test_pods_share_a_model_and_start_again_together(bench, tmp_path):
    reference = write_random(tmp_path / "m")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    member = from_environment(
        {
            "LLMOS_MODEL_URI": f"file://{tmp_path / 'm'}",
            "LLMOS_ALLOW_FILE": "true",
            "LLMOS_CACHE_DIR": str(tmp_path / "cache"),
            "LLMOS_CONTROL_TOKEN": "secret",
            "NNODES": "2",
            "NODE_RANK": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    stop = asyncio.Event()
    following = bench.loop.create_task(follow(member, stop))
    asked = prompts(4)
    try:
        status = bench.load(
            tmp_path / "m",
            format="fp32",
            tensor=2,
            local=1,
            listen="127.0.0.1",
            meeting=("127.0.0.1", port),
            meeting_token=member.load_order().meeting_token,
        )
        assert status.state is RuntimeState.READY, status.failure
        assert len(rank_pids(bench.client)) == 0
        assert together(bench, asked, 12) == [generated(reference, prompt, 12) for prompt in asked]

        async def lose():
            os.kill(bench.client.status().pid, signal.SIGKILL)
            while bench.client.status().restarts == 0:
                await asyncio.sleep(0.05)
            return await bench.client.wait(RuntimeState.READY)

        assert [one.rank for one in bench.run(lose()).memory.ranks] == [0, 1]
        assert together(bench, asked, 12) == [generated(reference, prompt, 12) for prompt in asked]
    finally:
        stop.set()
        bench.run(following)
        bench.run(bench.client.unload())
        bench.loaded = None

"""The packaged chat and sentence models in a real engine process."""

import asyncio
import math
import signal
import struct

import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import Embed, EngineLost, EngineUnavailable, SamplingParams, Submit
from tests.support.models import SENTENCES, packaged

pytestmark = pytest.mark.model

PLENTY = 5 << 30  # bytes, far above what the engine and these tests take themselves

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little girl who",
    "def fib(n):",
    "List three colours:",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "Water boils at",
    "In 1969, humans first",
)


def ids(tokenizer, text):
    return tokenizer.encode(text).ids


@pytest.fixture
def served(bench, chat_model):
    """The chat model at bf16, loaded once for all tests that ask for nothing else."""
    assert bench.load(chat_model).state is RuntimeState.READY
    return bench


@pytest.mark.parametrize("count", [1, 2, 7])
def test_greedy_fp32_answers_are_those_of_plain_generate(bench, chat_model, tokenizer, count):
    assert bench.load(chat_model, format="fp32").state is RuntimeState.READY
    prompts = [ids(tokenizer, text) for text in PROMPTS[:count]]

    async def together():
        return await asyncio.gather(
            *(bench.answer(f"r{i}", prompt, ignore_eos=True) for i, prompt in enumerate(prompts))
        )

    got = [tokens for tokens, _ in bench.run(together())]
    assert got == plain_generate(chat_model, prompts, 16)


_known = {}


def plain_generate(folder, prompts, count):
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.set_num_threads(1)
    answers = []
    for prompt in prompts:
        if tuple(prompt) not in _known:
            model = _known.setdefault("model", None) or AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32
            )
            _known["model"] = model
            given = torch.tensor([prompt])
            out = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            _known[tuple(prompt)] = out[0, len(prompt) :].tolist()
        answers.append(_known[tuple(prompt)])
    return answers


@pytest.mark.parametrize(("fmt", "weight_share"), [("bf16", 1.01), ("int8", 0.61), ("int4", 0.46)])
def test_each_format_knows_the_capital_of_france_and_what_it_cost(
    bench, chat_model, tokenizer, fmt, weight_share
):
    status = bench.load(chat_model, format=fmt)
    assert status.state is RuntimeState.READY, status.failure
    tokens, last = bench.run(bench.answer("paris", ids(tokenizer, PROMPTS[0]), max_tokens=6))
    assert "Paris" in tokenizer.decode(tokens)
    assert last.finish_reason == "length"
    plain = (chat_model / "model.safetensors").stat().st_size
    assert status.memory.weights_bytes <= weight_share * plain
    if fmt != "bf16":
        assert status.info.quality_loss_milli <= 1000  # one percent of perplexity
        assert status.info.quality_kl_micro <= 10_000
        stages = dict(status.info.stage_seconds)
        again = bench.load(chat_model, format=fmt, fresh=True)
        assert again.info.load_path == "warm"
        assert dict(again.info.stage_seconds)["Quantizing"] < stages["Quantizing"]


def test_logprobs_are_given_where_asked(served, tokenizer):
    _, last = served.run(served.answer("lp", ids(tokenizer, PROMPTS[0]), max_tokens=1, logprobs=3))
    assert last.logprobs[0].token == ids(tokenizer, " Paris")[0]
    assert last.logprobs[0].rank == 1
    assert len(last.logprobs[0].top) == 3
    _, last = served.run(
        served.answer("plp", ids(tokenizer, PROMPTS[0]), max_tokens=1, logprobs=0, prompt_logprobs=True)
    )
    assert len(last.prompt_logprobs) == len(ids(tokenizer, PROMPTS[0])) - 1
    assert all(one.logprob < 0 for one in last.prompt_logprobs)


def test_a_seed_makes_sampling_repeatable(served, tokenizer):
    prompt = ids(tokenizer, PROMPTS[1])

    async def both():
        params = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
        return await asyncio.gather(
            served.answer("s1", prompt, **params), served.answer("s2", prompt, **params)
        )

    (first, _), (second, _) = served.run(both())
    assert first == second
    assert served.run(served.answer("s3", prompt, temperature=1.0, top_p=0.9, seed=6))[0] != first


def test_an_end_token_stops_and_a_repeated_prompt_is_cached(served, tokenizer):
    chat = "<|im_start|>user\nSay yes or no: is water wet?<|im_end|>\n<|im_start|>assistant\n"
    before = served.run(served.stats_now())
    tokens, last = served.run(served.answer("c1", ids(tokenizer, chat), max_tokens=100))
    assert last.finish_reason == "stop"
    assert last.stop_token == 2
    assert 2 not in tokens
    after = served.run(
        served.stats_until(lambda stats: stats.finished > before.finished and not stats.running)
    )
    assert after.generation_tokens - before.generation_tokens == len(tokens) + 1, (
        "the end token was generated, too"
    )
    assert last.timing.arrived_at <= last.timing.first_token_at <= last.timing.finished_at
    assert after.first_tokens - before.first_tokens == 1
    waited = last.timing.first_token_at - last.timing.arrived_at
    assert after.first_token_seconds - before.first_token_seconds == pytest.approx(waited)

    async def cached():
        async with served.client.generate(
            Submit("c2", tuple(ids(tokenizer, chat)), SamplingParams(max_tokens=1, temperature=0))
        ) as outputs:
            return [output.cached_tokens async for output in outputs]

    assert served.run(cached())[0] >= 16


def test_leaving_a_stream_cancels_it_within_a_step(served, tokenizer):
    async def leave():
        before = served.client.status().stats
        submit = Submit(
            "gone", tuple(ids(tokenizer, PROMPTS[1])), SamplingParams(max_tokens=4000, ignore_eos=True)
        )
        async with served.client.generate(submit) as outputs:
            await anext(aiter(outputs))
        return before, await served.stats_until(lambda stats: stats.aborted == before.aborted + 1)

    before, after = served.run(leave())
    assert after.running == 0
    assert after.generation_tokens - before.generation_tokens < 100


@pytest.mark.parametrize(
    ("prompt", "text"), [((), "no tokens"), ((10**6,), "outside 0..49151"), ((1,) * 9000, "9000 tokens")]
)
def test_an_impossible_prompt_is_answered_with_the_reason(served, prompt, text):
    _, last = served.run(served.answer("bad", prompt))
    assert last.finish_reason == "error"
    assert text in last.message


def test_a_smaller_budget_shrinks_the_cache_and_serving_goes_on(bench, chat_model, tokenizer):
    status = bench.load(chat_model, memory_limit_bytes=PLENTY, fresh=True)
    before = status.info.kv_blocks
    bench.client.set_budget(status.memory.base_bytes + (600 << 20))
    stats = bench.run(bench.stats_until(lambda stats: 0 < stats.kv_blocks_total < before))
    assert stats.memory.limit_bytes == status.memory.base_bytes + (600 << 20)
    assert bench.run(bench.answer("small", ids(tokenizer, PROMPTS[0])))[0]
    bench.loaded = None


@pytest.mark.timeout(900)  # 9,000 tokens of prompts
def test_a_smaller_budget_gives_memory_back_to_the_machine(bench, chat_model, tokenizer):
    status = bench.load(chat_model, memory_limit_bytes=PLENTY, max_model_len=2048, fresh=True)
    for number in range(6):  # their caches stay behind as prefixes
        prompt = [3 + (number * 997 + place * 13) % 40_000 for place in range(1500)]
        assert bench.run(bench.answer(f"fill-{number}", prompt, max_tokens=1))[0]
    limit = status.memory.base_bytes + status.memory.weights_bytes + (110 << 20)
    bench.client.set_budget(PLENTY)  # measures
    full = bench.run(
        bench.stats_until(lambda stats: stats.memory.measured_bytes != status.memory.measured_bytes)
    )
    bench.client.set_budget(limit)
    after = bench.run(bench.stats_until(lambda stats: stats.memory.limit_bytes == limit))
    per_token = 2 * 30 * 3 * 64 * 2
    given_back = full.memory.measured_bytes - after.memory.measured_bytes
    assert given_back > 3 * 1500 * per_token, f"{given_back >> 20} MiB came back"
    assert after.memory.kv_bytes < full.memory.kv_bytes
    assert bench.run(bench.answer("small", ids(tokenizer, PROMPTS[0])))[0]
    bench.loaded = None


def test_a_budget_that_cannot_be_kept_is_refused_and_the_former_one_stays(bench, chat_model, tokenizer):
    status = bench.load(chat_model, memory_limit_bytes=PLENTY, max_model_len=2048, fresh=True)
    bench.client.set_budget(status.memory.base_bytes)
    enough = status.memory.base_bytes + status.memory.weights_bytes + (400 << 20)
    bench.client.set_budget(enough)  # in their order: when this one shows, the other has been answered
    seen = bench.run(bench.stats_until(lambda stats: stats.memory.limit_bytes not in {0, PLENTY}))
    assert seen.memory.limit_bytes == enough
    assert seen.kv_blocks_total * 16 >= 2048
    assert bench.run(bench.answer("after", ids(tokenizer, PROMPTS[0])))[0]
    bench.loaded = None


def test_sleep_gives_memory_back_and_wake_serves_the_same_again(served, tokenizer):
    client = served.client
    before = served.run(served.answer("before", ids(tokenizer, PROMPTS[0])))[0]
    assert "Paris" in tokenizer.decode(before)

    async def nap(level):
        client.sleep(level)
        asleep = await client.wait(RuntimeState.ASLEEP)
        with pytest.raises(EngineUnavailable, match="Asleep"):
            await served.answer("asleep", [1])
        client.wake()
        return asleep, await client.wait(RuntimeState.READY)

    for level in (1, 2):
        awake = client.status().memory
        asleep, woken = served.run(nap(level))
        left = asleep.memory.measured_bytes
        assert left < awake.measured_bytes - awake.weights_bytes * 3 // 4, f"{left >> 20} MiB are left"
        assert asleep.memory.host_bytes == (awake.weights_bytes if level == 1 else 0)
        assert woken.memory.host_bytes == 0
        assert woken.memory.base_bytes == awake.base_bytes, "what a former load left behind is no base"
        assert woken.info.load_path == ("hot" if level == 1 else "warm")
        assert dict(woken.info.stage_seconds)["Warming"] > 0
        assert served.run(served.answer("awake", ids(tokenizer, PROMPTS[0])))[0] == before


def test_a_killed_engine_ends_its_streams_and_comes_back(served, tokenizer):
    client = served.client
    first = client.status().pid

    async def kill():
        submit = Submit(
            "doomed", tuple(ids(tokenizer, PROMPTS[1])), SamplingParams(max_tokens=4000, ignore_eos=True)
        )
        async with client.generate(submit) as outputs:
            await anext(aiter(outputs))
            client._child.kill(signal.SIGKILL)
            with pytest.raises(EngineLost):
                await last_of(outputs)
        while client.status().restarts == 0:
            await asyncio.sleep(0.05)
        assert "SIGKILL" in client.status().failure.message
        return await client.wait(RuntimeState.READY)

    status = served.run(kill())
    assert status.pid != first
    assert status.failure is None
    assert "Paris" in tokenizer.decode(served.run(served.answer("back", ids(tokenizer, PROMPTS[0])))[0])


async def last_of(outputs):
    return [output async for output in outputs][-1]


def test_sentences_of_like_meaning_are_near(bench):
    folder = packaged(SENTENCES)
    status = bench.load(folder)
    assert status.info.embedding_size == 384
    assert not status.info.generative
    vectors = embed(
        bench, folder, ["A cat sits on the mat.", "A cat is sitting on a rug.", "Interest rates rose again."]
    )
    assert all(math.isclose(dot(vector, vector), 1, abs_tol=1e-3) for vector in vectors)
    assert dot(vectors[0], vectors[1]) > 0.6
    assert dot(vectors[0], vectors[2]) < 0.3
    _, last = bench.run(bench.answer("no", [5]))
    assert "does not generate" in last.message


def test_a_request_to_an_encoder_that_nobody_waits_for_stops_between_two_parts(bench):
    parts = 300  # inputs of a part each
    assert bench.load(packaged(SENTENCES), fresh=True).state is RuntimeState.READY
    long = tuple((2000 + number, *range(3000, 3511)) for number in range(2 * parts))

    async def leave():
        before = await bench.stats_until(lambda stats: not (stats.finished or stats.aborted))
        asked = asyncio.create_task(bench.client.embed(Embed("gone", long)))
        await bench.stats_until(lambda stats: stats.steps > before.steps)
        asked.cancel()
        stopped = await bench.stats_until(lambda stats: stats.aborted == before.aborted + 1)
        await bench.client.embed(Embed("next", (long[0],)))
        end = await bench.stats_until(lambda stats: stats.finished == before.finished + 1)
        return before, stopped, end

    before, stopped, end = bench.run(leave())
    assert stopped.steps - before.steps < parts
    assert stopped.waiting == 0
    assert end.steps == stopped.steps + 1, "only the next request was computed since"


@pytest.mark.parametrize("level", [1, 2])
def test_requests_to_an_encoder_that_goes_to_sleep_are_told(bench, level):
    assert bench.load(packaged(SENTENCES)).state is RuntimeState.READY
    long = tuple((2000 + number, *range(3000, 3511)) for number in range(600))

    async def sleep():
        before = bench.client.status().stats
        asked = [asyncio.create_task(bench.client.embed(Embed(name, long))) for name in ("begun", "waits")]
        await bench.stats_until(lambda stats: stats.steps > before.steps)
        bench.client.sleep(level)
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(told) for told in bench.run(sleep())] == ["the model goes to sleep"] * 2


def test_an_encoder_keeps_its_meaning_at_int8(bench):
    status = bench.load(packaged(SENTENCES), format="int8")
    assert status.state is RuntimeState.READY, status.failure
    assert status.info.quality_loss_milli < 1000


def embed(bench, folder, texts):
    from tokenizers import Tokenizer  # noqa: PLC0415

    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.no_padding()
    inputs = tuple(tuple(encoding.ids) for encoding in encoder.encode_batch(texts))
    result = bench.run(bench.client.embed(Embed("e", inputs)))
    assert result.prompt_tokens == sum(map(len, inputs))
    count = result.dimensions
    numbers = struct.unpack(f"<{len(result.vectors) // 4}f", result.vectors)
    return [numbers[i * count : (i + 1) * count] for i in range(len(texts))]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))

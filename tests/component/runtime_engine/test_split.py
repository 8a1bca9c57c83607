"""A model that several ranks share, each a process with its part, in a real engine."""

import asyncio
import random

import pytest
import torch

from llmos_operator.api.runtime.messages import RuntimeState
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

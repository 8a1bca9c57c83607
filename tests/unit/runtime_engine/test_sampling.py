"""Tokens from logits: each rule by itself, and the distribution as a whole."""

from collections import Counter

import pytest
import torch

from llmos_operator.runtime.backends.sampling import Row, sample, uniform
from llmos_operator.runtime.ipc.messages import SamplingParams

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]))


def draws(count=4000, logits=LOGITS, **params):
    rows = [Row(SamplingParams(**{"temperature": 1.0, **params}), position, 7) for position in range(count)]
    tokens, _ = sample(logits.expand(count, -1).clone(), rows)
    return Counter(tokens)


def one(logits, tokens=(), prompt_length=0, blocked=(), **params):
    row = Row(
        SamplingParams(**{"temperature": 0.0, **params}), len(tokens), 7, tokens, prompt_length, blocked
    )
    chosen, logprobs = sample(logits[None].clone(), [row])
    return chosen[0], logprobs[0]


def test_temperature_zero_takes_the_most_likely():
    assert one(LOGITS)[0] == 0


def test_draws_follow_the_distribution():
    counts = draws()
    for token, share in enumerate([0.5, 0.25, 0.125, 0.0625, 0.0625]):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


def test_a_high_temperature_flattens_and_a_low_one_sharpens():
    assert draws(temperature=3.0)[0] < draws()[0] < draws(temperature=0.5)[0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-30, 1e-6])
@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 5e-324}, {"min_p": 0.3}])
def test_the_lowest_temperatures_take_the_most_likely(temperature, more):
    assert set(draws(20, temperature=temperature, **more)) == {0}
    flat = torch.zeros(300)
    assert draws(20, flat, temperature=temperature, **more).total() == 20


@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 1.0}])
@pytest.mark.parametrize("penalty", [5e-324, 1e-40, 10.0])
def test_no_penalty_and_no_bias_makes_a_row_that_cannot_be_drawn_from(penalty, more):
    logits = torch.tensor([0.0, 3.0, -3.0, 1e38])
    bias = ((0, 100.0), (1, -100.0))
    given = {"temperature": 5e-324, "repetition_penalty": penalty, "logit_bias": bias}
    token, _ = one(logits, tokens=(0, 1, 2, 3), prompt_length=2, **{**given, **more})
    assert 0 <= token < 4


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.0001}, {0}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.3}, {0, 1}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
    ],
)
def test_only_allowed_tokens_are_drawn(params, allowed):
    assert set(draws(1000, **params)) == allowed


def test_the_nucleus_of_a_flat_distribution_is_wider_than_the_first_candidates():
    counts = draws(8000, logits=torch.zeros(2000), top_p=0.9)
    assert 1600 < len(counts) <= 1800


def test_a_seed_and_a_position_decide_a_draw_and_nothing_else():
    assert uniform(1, 2) == uniform(1, 2) != uniform(1, 3)
    assert draws(50) == draws(50)


def test_logit_bias_forbids_and_forces():
    assert one(LOGITS, logit_bias=((0, -100.0),))[0] == 1
    assert one(LOGITS, logit_bias=((4, 100.0),))[0] == 4
    assert one(LOGITS, logit_bias=((999, 100.0),))[0] == 0  # outside the vocabulary: no effect


def test_frequency_and_presence_penalties_count_the_output_only():
    assert one(LOGITS, tokens=[0, 0, 0], prompt_length=3, presence_penalty=5.0)[0] == 0
    assert one(LOGITS, tokens=[0, 0, 0], prompt_length=2, presence_penalty=5.0)[0] == 1
    near = torch.tensor([1.0, 0.0, -9, -9, -9])
    assert one(near, tokens=[0], prompt_length=0, frequency_penalty=0.6)[0] == 0
    assert one(near, tokens=[0, 0], prompt_length=0, frequency_penalty=0.6)[0] == 1


def test_the_repetition_penalty_counts_the_prompt_too():
    logits = torch.tensor([2.0, 1.5, -1.0, -1.0, -1.0])
    assert one(logits, tokens=[0], prompt_length=1, repetition_penalty=1.5)[0] == 1
    assert one(-logits.abs(), tokens=[2], prompt_length=1, repetition_penalty=2.0)[0] in (3, 4)


def test_blocked_tokens_do_not_come():
    assert one(LOGITS, blocked=(0, 1))[0] == 2


def test_logprobs_are_the_models_own_whatever_the_rules():
    token, logprob = one(LOGITS, logit_bias=((1, 9.0),), logprobs=2)
    assert token == logprob.token == 1
    assert logprob.rank == 2
    assert logprob.logprob == pytest.approx(float(torch.log(torch.tensor(0.25))), abs=1e-4)
    assert [pair[0] for pair in logprob.top] == [0, 1]
    assert one(LOGITS)[1] is None
    assert one(LOGITS, logprobs=0)[1].top == ()


def test_rows_of_one_batch_do_not_touch_each_other():
    rows = [
        Row(SamplingParams(temperature=0.0, logit_bias=((0, -100.0),)), 0, 1),
        Row(SamplingParams(temperature=0.0), 0, 1),
        Row(SamplingParams(temperature=0.0, logprobs=1), 0, 1, blocked=(0,)),
    ]
    tokens, logprobs = sample(LOGITS.expand(3, -1).clone(), rows)
    assert tokens == [1, 0, 1]
    assert logprobs[2].rank == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_leaves_only_the_tokens_whose_bits_are_set_and_touches_no_other_row(temperature):
    params = SamplingParams(temperature=temperature, logprobs=2, top_k=4)
    rows = [Row(params, place, 7, allowed=bytes([0b10100])) for place in range(50)]
    free = [Row(params, place, 7) for place in range(50)]
    wide = torch.cat([LOGITS, torch.full((6,), 9.0)])  # tokens beyond the mask are not allowed
    logits = wide.expand(100, -1).clone()
    tokens, logprobs = sample(logits, rows + free)
    assert set(tokens[:50]) == ({2} if temperature == 0 else {2, 4})
    assert min(tokens[50:]) > 4
    assert logprobs[0].top == logprobs[50].top  # the model's own view, not the mask's

"""What a model of two texts makes of a packed batch is what transformers makes of each pair alone."""

import random

import pytest
import torch

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.encoder import packs
from llmos_operator.runtime.engine.embedding import Embeds
from llmos_operator.runtime.formats.config import read_config
from llmos_operator.runtime.ipc.messages import Embed, EngineInfo
from tests.support.models import write_classifier

LENGTHS = ((3, 4), (20, 40), (1, 1), (9, 60), (30, 2), (5, 5))


def pairs():
    rng = random.Random(3)
    return [([rng.randrange(2, 300) for _ in range(first + second)], first) for first, second in LENGTHS]


def plain(reference, tokens, second_from, *, types):
    kinds = torch.zeros(1, len(tokens), dtype=torch.long)
    if types:
        kinds[0, second_from:] = 1
    with torch.no_grad():
        return reference(torch.tensor([tokens]), token_type_ids=kinds).logits[0]


@pytest.mark.parametrize(
    ("model_type", "types"), [("bert", 2), ("roberta", 1), ("xlm-roberta", 1), ("roberta", 2)]
)
def test_scores_of_a_batch_are_those_of_each_pair_alone(driver, tmp_path, model_type, types):
    reference = write_classifier(tmp_path / "m", model_type, ("score",), type_vocab_size=types)
    encoder = driver(tmp_path / "m").built.encoder
    inputs, places = [tokens for tokens, _ in pairs()], [place for _, place in pairs()]
    found = encoder.classify(inputs, places)
    expected = torch.stack([plain(reference, *pair, types=types > 1).sigmoid() for pair in pairs()])
    assert torch.allclose(found, expected, atol=1e-5)
    assert (not torch.allclose(found, encoder.classify(inputs), atol=1e-5)) is (types > 1)


def test_many_pairs_are_read_in_several_passes(driver, tmp_path, monkeypatch):
    write_classifier(tmp_path / "m", "bert", ("score",))
    encoder = driver(tmp_path / "m").built.encoder
    inputs, places = [tokens for tokens, _ in pairs()], [place for _, place in pairs()]
    whole = encoder.classify(inputs, places)
    monkeypatch.setattr("llmos_operator.runtime.backends.encoder.PACK_TOKENS", 40)
    assert torch.allclose(encoder.classify(inputs, places), whole, atol=1e-5)


def test_a_large_request_is_computed_in_parts_and_a_small_one_has_its_turn_between(
    driver, tmp_path, monkeypatch
):
    write_classifier(tmp_path / "m", "bert", ("score",))
    encoder = driver(tmp_path / "m").built.encoder
    inputs, places = tuple(tuple(tokens) for tokens, _ in pairs()), tuple(place for _, place in pairs())
    whole = encoder.classify(inputs, places)
    monkeypatch.setattr("llmos_operator.runtime.backends.encoder.PACK_TOKENS", 40)
    info = EngineInfo(str(tmp_path), "B", "", "", "fp32", "cpu", 128, 320, labels=("score",))
    embeds = Embeds(encoder, info)
    embeds.add(Embed("large", inputs, classify=True, second_from=places))
    embeds.add(Embed("small", (inputs[0],), classify=True, second_from=(places[0],)))
    assert embeds.step() is None
    small = embeds.step()
    assert small.request_id == "small"
    steps = 2
    while (large := embeds.step()) is None:
        steps += 1
    assert steps > 3, "it was cut into several parts"
    assert (large.request_id, large.prompt_tokens, embeds.pending) == ("large", sum(map(len, inputs)), 0)
    assert torch.allclose(
        torch.frombuffer(bytearray(large.vectors), dtype=torch.float32).view(-1, 1), whole, atol=1e-5
    )
    assert torch.allclose(
        torch.frombuffer(bytearray(small.vectors), dtype=torch.float32), whole[0], atol=1e-5
    )


def test_a_cancelled_request_is_computed_no_further(driver, tmp_path, monkeypatch):
    write_classifier(tmp_path / "m", "bert", ("score",))
    encoder = driver(tmp_path / "m").built.encoder
    inputs = tuple(tuple(tokens) for tokens, _ in pairs())
    monkeypatch.setattr("llmos_operator.runtime.backends.encoder.PACK_TOKENS", 40)
    embeds = Embeds(
        encoder, EngineInfo(str(tmp_path), "B", "", "", "fp32", "cpu", 128, 320, labels=("score",))
    )
    for name in ("begun", "waits", "stays"):
        embeds.add(Embed(name, inputs, classify=True))
    assert embeds.step() is None, "its first part"
    assert embeds.cancel("begun")
    assert embeds.cancel("waits")
    assert not embeds.cancel("begun"), "it is over"
    seen = []
    while embeds.pending:
        seen.append(embeds.step())
    assert [one.request_id for one in seen if one is not None] == ["stays"]
    assert len(seen) == len(packs(inputs)), "no part of another one was computed"


def test_places_that_do_not_fit_the_inputs_are_refused(driver, tmp_path):
    write_classifier(tmp_path / "m", "bert", ("score",))
    info = EngineInfo(
        str(tmp_path), "BertForSequenceClassification", "", "", "fp32", "cpu", 128, 320, labels=("score",)
    )
    embeds = Embeds(driver(tmp_path / "m").built.encoder, info)
    embeds.add(Embed("a", ((5, 6), (7,)), classify=True, second_from=(1,)))
    assert "second_from" in embeds.step().error
    embeds.add(Embed("b", ((5, 6), (7,)), classify=True, second_from=(1, 1)))
    assert not embeds.step().error


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "regression"),
        (
            {
                "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
                "problem_type": "regression",
            },
            "multi_label_classification",
        ),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            "regression",
        ),
        ({"problem_type": "regression"}, "regression"),
        ({}, None),
    ],
)
def test_the_config_says_what_a_score_is(tmp_path, changes, problem):
    write_classifier(tmp_path, "bert", ("score",), **changes)
    config = read_config(tmp_path)
    assert config.values.get("problem_type") == problem
    assert config.apis == ("classify", "score")


def test_another_activation_is_refused_by_name(tmp_path):
    named = {"activation_fn": "torch.nn.modules.activation.Tanh"}
    write_classifier(tmp_path, "bert", ("score",), sentence_transformers=named)
    with pytest.raises(Permanent, match=r"Tanh.*Identity and Sigmoid"):
        read_config(tmp_path)

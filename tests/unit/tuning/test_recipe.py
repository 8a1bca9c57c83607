"""The order of a run, read from spec.fineTune."""

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.tuning.recipe import Recipe, read_order

BLOCK = {"dataset": {"uri": "file:///d.jsonl"}, "output": {"uri": "pvc://c/out"}}


def test_what_is_left_open_has_defaults():
    order = read_order(BLOCK)
    assert order.recipe == Recipe()
    assert (order.dataset, order.output, order.checkpoint) == ("file:///d.jsonl", "pvc://c/out", "")


def test_everything_that_is_given_counts():
    block = BLOCK | {
        "method": "qlora",
        "checkpoint": {"uri": "pvc://c/saved", "every": "90s"},
        "lora": {"rank": 4, "alpha": 8, "dropout": "5%", "targets": ["v_proj", "q_proj"]},
        "training": {
            "steps": 7,
            "batchSize": 2,
            "maxLength": 128,
            "learningRate": "2e-3",
            "schedule": "Linear",
            "warmup": "10%",
            "weightDecay": "0.01",
            "maxGradientNorm": "0",
            "seed": 5,
            "validation": "20%",
        },
    }
    order = read_order(block)
    recipe = order.recipe
    assert (order.checkpoint, order.checkpoint_every) == ("pvc://c/saved", 90.0)
    assert (recipe.method, recipe.steps, recipe.batch_size, recipe.max_length) == ("qlora", 7, 2, 128)
    assert (recipe.lora.rank, recipe.lora.scale, recipe.lora.dropout) == (4, 2.0, 0.05)
    assert recipe.lora.targets == ("q_proj", "v_proj")
    assert (recipe.learning_rate, recipe.schedule, recipe.warmup) == (2e-3, "Linear", 0.1)
    assert (recipe.weight_decay, recipe.max_gradient_norm, recipe.seed) == (0.01, 0.0, 5)
    assert recipe.validation == 0.2


def test_all_weights_learn_more_slowly_than_an_adapter():
    assert read_order(BLOCK | {"method": "full"}).recipe.learning_rate < Recipe().learning_rate


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"training": {"learningRate": "fast"}}, "fineTune.training.learningRate = 'fast'"),
        ({"training": {"learningRate": "0"}}, "fineTune.training.learningRate"),
        ({"training": {"validation": "60%"}}, "fineTune.training.validation = '60%'"),
        ({"training": {"batchSize": 0}}, "fineTune.training.batchSize = '0'"),
        ({"lora": {"rank": 1000}}, "fineTune.lora.rank = '1000'"),
        ({"lora": {"dropout": "a lot"}}, "fineTune.lora.dropout"),
        ({"method": "magic"}, "fineTune.method = 'magic'"),
        ({"dataset": None}, "fineTune.dataset"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(block, field):
    with pytest.raises(Permanent) as caught:
        read_order(BLOCK | block)
    assert caught.value.reason == "InvalidSpec"
    assert field in str(caught.value)


def test_the_learning_rate_rises_and_falls():
    recipe = Recipe(learning_rate=1.0, warmup=0.1)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_only_runs_of_the_same_recipe_model_and_data_are_one_run():
    recipe = Recipe()
    assert recipe.fingerprint(model="a", data="b") == Recipe().fingerprint(data="b", model="a")
    assert recipe.fingerprint(model="a", data="b") != recipe.fingerprint(model="a", data="c")
    assert recipe.fingerprint(model="a") != Recipe(seed=1).fingerprint(model="a")

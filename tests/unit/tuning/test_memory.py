"""The memory model of a run: against what autograd really keeps, and the plan that is made with it."""

import pytest
import torch

from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.api.runtime.training_memory import (
    TrainingSize,
    adapter_parameters,
    estimate_training,
    kept_bytes,
)
from llmos_operator.errors import Permanent
from llmos_operator.tuning.dataset import Sample
from llmos_operator.tuning.memory import Meter, ShortOfMemory, plan_parts
from llmos_operator.tuning.recipe import Lora
from tests.support.learning import CPU, learner_of, one_thread, recipe, tiny

MIB = 1 << 20
# A model of the proportions of a small Llama: hidden and intermediate as published ones have them.
SHAPES = {"hidden_size": 192, "intermediate_size": 512, "head_dim": 48, "num_hidden_layers": 6}
SMOL = ModelShape("LlamaForCausalLM", 106_168_320, 28_311_552, 35_136, 30, 576, 1536, 9, 3, 64, 49152, 8192)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    one_thread()
    return tiny(tmp_path_factory.mktemp("model"), **SHAPES)


def saved_bytes(learner, samples):
    """Bytes of everything that is kept for the way back, weights not counted."""
    known = {one.untyped_storage().data_ptr() for one in learner.model.state_dict().values()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learner.summed_loss(samples)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("fmt", ["bf16", "fp32"])
def test_what_a_part_keeps_is_predicted_within_a_tenth(folder, fmt):
    wanted = recipe(lora=Lora(rank=8))
    learner = learner_of(folder, wanted, fmt)
    samples = [Sample((5,) * 256, (False,) * 200 + (True,) * 56)] * 2
    size = TrainingSize(fmt, rank=8, part_tokens=512)
    assert kept_bytes(learner.shape, size) == pytest.approx(saved_bytes(learner, samples), rel=0.1)


def test_an_adapters_parameters_are_counted_exactly(folder):
    for lora in (Lora(rank=8), Lora(rank=3, targets=("q_proj", "down_proj"))):
        learner = learner_of(folder, recipe(lora=lora))
        counted = sum(one.numel() for one in learner.parameters.values())
        assert adapter_parameters(learner.shape, lora.rank, lora.targets) == counted


def test_recomputing_needs_less_and_all_weights_need_more():
    plain = estimate_training(SMOL, TrainingSize("bf16", rank=16), base_bytes=0)
    again = estimate_training(SMOL, TrainingSize("bf16", rank=16, recompute=True), base_bytes=0)
    full = estimate_training(SMOL, TrainingSize("fp32"), base_bytes=0)
    assert again.activation_bytes < plain.activation_bytes / 4
    assert full.weights_bytes + full.learned_bytes == SMOL.parameters * 16


def planned(limit_mib, *, longest=100, most=2048):
    size = TrainingSize("bf16", rank=16)
    return plan_parts(
        SMOL, size, base_bytes=400 * MIB, limit_bytes=limit_mib * MIB, longest=longest, most=most
    )


def test_a_plan_takes_the_largest_parts_that_fit_and_recomputes_only_where_they_would_be_small():
    roomy, tight, tightest = planned(1 << 20), planned(1600), planned(1000)
    assert (roomy.tokens, roomy.recompute) == (2048, False)
    assert tight.tokens < 2048
    assert not tight.recompute
    assert tightest.recompute
    for plan, limit in ((tight, 1600), (tightest, 1000)):
        assert plan.estimate.total_bytes <= limit * MIB


def test_what_cannot_fit_is_refused_with_the_parts_of_the_sum():
    with pytest.raises(
        Permanent, match=r"needs \d+ MiB \(base 400, weights 2\d\d, .* but may use 500 MiB"
    ) as caught:
        planned(500)
    assert caught.value.reason == "OutOfMemory"


def test_a_limit_that_is_passed_is_noticed():
    meter = Meter(1, CPU)
    with pytest.raises(ShortOfMemory, match="0 MiB allowed"):
        meter.check()
    assert meter.peak > 0
    roomy = Meter(1 << 50, CPU)
    roomy.check()
    assert roomy.used > MIB

"""What learns, what does not, and that gradients are those that autograd would find."""

import pytest
import torch
from torch.nn import functional

from llmos_operator.api.v1alpha1.workload_jobs import FineTuneMethod
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.quantized import Int4Linear, Int8Linear
from llmos_operator.tuning import frozen
from llmos_operator.tuning.lora import LoraLinear
from llmos_operator.tuning.loss import summed_loss
from llmos_operator.tuning.recipe import Lora
from tests.support.learning import SAMPLES, learner_of, one_thread, recipe, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    one_thread()
    return tiny(tmp_path_factory.mktemp("model"))


def plain_loss(model, samples):
    """The same loss by transformers' own forward, one sample at a time."""
    total = 0.0
    for sample in samples:
        ids = torch.tensor([sample.tokens])
        wanted = torch.tensor(sample.learned[1:])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total = total + functional.cross_entropy(logits[wanted], ids[0, 1:][wanted], reduction="sum")
    return total


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text"])
def test_the_loss_of_padded_rows_is_that_of_each_sample_alone(tmp_path, family):
    learner = learner_of(tiny(tmp_path / family, family), recipe())
    with torch.no_grad():
        assert float(learner.summed_loss(SAMPLES)) == pytest.approx(
            float(plain_loss(learner.model, SAMPLES)), rel=1e-4
        )


def test_gradients_are_those_of_the_plain_loss_and_reach_the_adapter_alone(folder):
    learner = learner_of(folder, recipe())
    for name, parameter in learner.parameters.items():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.05)
    learner.summed_loss(SAMPLES).backward()
    found = {name: one.grad.clone() for name, one in learner.parameters.items()}
    outside = [
        name
        for name, one in learner.model.named_parameters()
        if one.grad is not None and ".lora_" not in name
    ]
    assert not outside
    learner.model.zero_grad()
    plain_loss(learner.model, SAMPLES).backward()
    for name, one in learner.parameters.items():
        torch.testing.assert_close(found[name], one.grad, rtol=2e-3, atol=2e-3)
        assert found[name].abs().sum() > 0


def test_recomputing_layers_changes_no_gradient(folder):
    found = []
    for on in (False, True):
        learner = learner_of(folder, recipe())
        learner.recompute(on=on)
        learner.summed_loss(SAMPLES).backward()
        found.append([one.grad for one in learner.parameters.values()])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again)


def test_a_new_adapter_changes_nothing_and_a_merged_one_is_base_plus_its_product(folder):
    learner = learner_of(folder, recipe())
    before = learner_of(folder, recipe(method=FineTuneMethod.FULL))
    ids = torch.tensor([SAMPLES[0].tokens])
    with torch.no_grad():
        base = before.model(input_ids=ids).logits
        torch.testing.assert_close(learner.model(input_ids=ids).logits, base, rtol=0, atol=0)
        for name, one in learner.parameters.items():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(one, std=0.05)
        changed = learner.model(input_ids=ids).logits
        assert (changed - base).abs().max() > 0.1
        for name in learner.layers:
            layer = learner.model.get_submodule(name)
            weight = before.model.get_parameter(f"{name}.weight")
            torch.testing.assert_close(
                layer.merged(), weight + 2.0 * (layer.lora_b @ layer.lora_a), rtol=1e-5, atol=1e-6
            )
            weight.copy_(layer.merged())
        torch.testing.assert_close(before.model(input_ids=ids).logits, changed, rtol=1e-4, atol=1e-3)


def test_targets_choose_layers_and_unknown_ones_are_refused(folder):
    learner = learner_of(folder, recipe(lora=Lora(rank=2, targets=("q_proj", "down_proj"))))
    assert len(learner.layers) == 2 * 3
    assert {name.rpartition(".")[2] for name in learner.layers} == {"q_proj", "down_proj"}
    with pytest.raises(Permanent, match="names 'c_attn', which this model has not; it has down_proj, "):
        learner_of(folder, recipe(lora=Lora(targets=("c_attn",))))


def test_the_chunked_loss_and_its_gradients_are_those_of_the_whole():
    torch.manual_seed(0)
    hidden = torch.randn(300, 16, requires_grad=True)
    targets = torch.randint(0, 50, (300,))
    weight = torch.randn(50, 16, requires_grad=True)
    loss = summed_loss(hidden, targets, lambda x: functional.linear(x, weight), [weight]) / 7
    loss.backward()
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    whole = functional.cross_entropy(functional.linear(hidden, weight), targets, reduction="sum") / 7
    whole.backward()
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.testing.assert_close(found, (hidden.grad, weight.grad), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert float(summed_loss(hidden, targets, lambda x: functional.linear(x, weight))) == pytest.approx(
            float(whole.detach()) * 7, rel=1e-5
        )


@pytest.mark.parametrize(("fmt", "kind"), [("int8", Int8Linear), ("int4", Int4Linear), ("bf16", None)])
def test_gradients_pass_through_frozen_layers_of_every_format(folder, fmt, kind):
    method = FineTuneMethod.LORA if fmt == "bf16" else FineTuneMethod.QLORA
    learner = learner_of(folder, recipe(method=method), fmt)
    layer = learner.model.get_submodule("model.layers.0.mlp.up_proj").base
    assert kind is None or type(layer) is kind
    unit = torch.eye(layer.in_features, dtype=torch.bfloat16)
    with torch.no_grad():
        weights = layer(unit).float().t()  # [out, in], as the layer itself has them
    x = torch.randn(24, layer.in_features).to(torch.bfloat16).requires_grad_()
    grad = torch.randn(24, layer.out_features).to(torch.bfloat16)
    out = frozen.apply(layer, x)
    out.backward(grad)
    torch.testing.assert_close(out.float(), x.float() @ weights.t(), rtol=3e-2, atol=5e-2)
    torch.testing.assert_close(x.grad.float(), grad.float() @ weights, rtol=3e-2, atol=8e-2)


def test_an_adapter_keeps_no_wide_copy_of_its_input():
    base = torch.nn.Linear(64, 32, bias=False).to(torch.bfloat16).requires_grad_(requires_grad=False)
    layer = LoraLinear(base, Lora(rank=4), torch.Generator(), torch.device("cpu"))
    x = torch.randn(128, 64).to(torch.bfloat16).requires_grad_()
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    wide = [size for pointer, size in kept.items() if size >= x.nbytes and pointer != x.data_ptr()]
    assert wide == []


def test_a_format_that_a_method_does_not_train_on_is_refused(folder):
    with pytest.raises(Permanent, match=r"fineTune\.method lora trains on bf16 or fp32 weights, not on int8"):
        learner_of(folder, recipe(), "int8")
    with pytest.raises(Permanent, match=r"fineTune\.method qlora trains on int4 or int8"):
        learner_of(folder, recipe(method=FineTuneMethod.QLORA), "bf16")


def test_weights_are_widened_by_slices_on_the_way_back(monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(48, 32).to(torch.bfloat16)
    grad = torch.randn(20, 48).to(torch.bfloat16)
    monkeypatch.setattr(frozen, "widens", lambda _: True)
    monkeypatch.setattr(frozen, "_SLICE", 32 * 7)  # seven rows at a time, and a rest
    expected = (grad.float() @ weight.float()).to(torch.bfloat16)
    torch.testing.assert_close(frozen.backwards(grad, weight), expected, rtol=1e-2, atol=1e-2)

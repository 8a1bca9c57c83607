"""Packed, chunked, preempted, drafted: whatever the batch does, each answer is the one transformers gives alone."""

import random

import pytest
import torch

from llmos_operator.runtime.formats.grids import quantize_int4, quantize_int8
from llmos_operator.runtime.ipc.messages import SamplingParams
from tests.support.models import FAMILIES, save_tensors, write_random

LENGTHS = (5, 37, 1, 18, 64, 2, 29)


def prompts(count):
    rng = random.Random(count)
    return [[rng.randrange(2, 300) for _ in range(length)] for length in LENGTHS[:count]]


def alone(model, prompt, count):
    """Greedy tokens of transformers' own generate; the longest answer so far is kept on the model."""
    known = vars(model).setdefault("answers", {})
    if len(known.get(tuple(prompt), ())) < count:
        known[tuple(prompt)] = generated(model, prompt, max(count, 30))
    return known[tuple(prompt)][:count]


def generated(model, prompt, count):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_random(folder, request.param)


@pytest.mark.parametrize(
    "options", [{}, {"prefill_tokens": 7}, {"max_rows": 2}], ids=["packed", "chunked", "queued"]
)
def test_a_ragged_batch_answers_as_each_prompt_alone(family, driver, options):
    folder, reference = family
    outputs, _ = driver(folder).run(prompts(7), **options)
    assert outputs == [alone(reference, prompt, 20) for prompt in prompts(7)]


def test_preemption_by_recompute_changes_no_answer(family, driver):
    folder, reference = family
    outputs, batcher = driver(folder).run(prompts(7), 30, blocks=9)
    assert batcher.preemptions > 0
    assert outputs == [alone(reference, prompt, 30) for prompt in prompts(7)]


def test_the_prefix_cache_changes_no_answer(family, driver):
    folder, reference = family
    model = driver(folder)
    stem = prompts(5)[4]
    asked = [stem, [*stem, 7, 8], stem[:40] + [9] * 9, stem]
    outputs, batcher = model.run(asked, prefill_tokens=40, max_rows=2)
    assert batcher.cache.hit_tokens > 0
    assert outputs == [alone(reference, prompt, 20) for prompt in asked]


def test_drafts_change_no_answer(family, driver):
    folder, reference = family
    prompt = [5, 6, 7, 8, 9] * 8
    outputs, batcher = driver(folder).run([prompt], 40, draft_tokens=4)
    assert outputs == [alone(reference, prompt, 40)]
    assert batcher.preemptions == 0


def test_sampling_with_a_seed_is_the_same_in_any_company(driver, tmp_path):
    write_random(tmp_path / "m")
    model = driver(tmp_path / "m")
    sampling = SamplingParams(max_tokens=15, temperature=0.9, top_p=0.95, seed=11)
    lonely = [model.run([prompt], sampling=sampling)[0][0] for prompt in prompts(4)]
    together, _ = model.run(prompts(4), sampling=sampling)
    assert together == lonely


def test_projections_that_lie_side_by_side_are_fused_without_a_copy(driver, tmp_path):
    folder = tmp_path / "m"
    reference = write_random(folder)
    model = driver(folder)
    layer = model.empty.model.model.layers[0]
    # safetensors sorts names: down, gate, up of the MLP are neighbours, q, k and v are not.
    assert type(layer.mlp).__name__ == "FusedMlp"
    assert type(layer.self_attn).__name__ == "LlamaAttention"
    gate, up = (getattr(reference.model.layers[0].mlp, name).weight for name in ("gate_proj", "up_proj"))
    assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat((gate, up)))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_packed_sentences_embed_as_each_alone(driver, tmp_path, model_type):
    folder = tmp_path / "m"
    reference = write_random(folder, model_type)
    vectors = driver(folder).built.encoder.embed(prompts(7), normalize=False, dimensions=0)
    for prompt, vector in zip(prompts(7), vectors, strict=True):
        expected = reference(torch.tensor([prompt])).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, expected, atol=1e-4)


def test_embeddings_are_cut_then_normalised(driver, tmp_path):
    write_random(tmp_path / "m", "bert")
    encoder = driver(tmp_path / "m").built.encoder
    whole = encoder.embed(prompts(3), normalize=False, dimensions=0)
    short = encoder.embed(prompts(3), normalize=True, dimensions=8)
    assert short.shape == (3, 8)
    assert torch.allclose(short, torch.nn.functional.normalize(whole[:, :8]), atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "phi3", "gemma3_text"])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_a_converted_model_computes_what_its_dequantised_weights_compute(driver, tmp_path, model_type, fmt):
    reference = write_random(tmp_path / "m", model_type)
    converted = driver(tmp_path / "m", fmt, tmp=tmp_path)
    round_to_grid(reference, fmt)
    (tmp_path / "rounded").mkdir()
    save_tensors(tmp_path / "rounded" / "model.safetensors", reference.state_dict())
    (tmp_path / "rounded" / "config.json").write_text((tmp_path / "m" / "config.json").read_text())
    exact = driver(tmp_path / "rounded", "fp32")
    for prompt in prompts(5):
        got, expected = (model.built.causal.hidden(prompt).float() for model in (converted, exact))
        likeness = torch.nn.functional.cosine_similarity(got, expected, dim=-1)
        assert likeness.mean() > 0.99  # the rest is bf16 arithmetic in a model of random weights
        assert likeness.min() > 0.9
    assert all(len(output) == 8 for output in converted.run(prompts(5), 8)[0])


def round_to_grid(model, fmt):
    """Replace the weights of a model by what the format can hold of them."""
    table = model.get_input_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        weight = module.weight.data
        if fmt == "int4" and module is not table and name != "lm_head":
            values, grid = quantize_int4(weight)
            groups = (values.view(len(weight), -1, 32) - 8) * grid[..., :1].float() + grid[..., 1:].float()
            module.weight.data = groups.view_as(weight)
        elif name != "lm_head" or weight is not table.weight.data:
            values, scale = quantize_int8(weight)
            module.weight.data = values.float() * scale.float()[:, None]
    if model.all_tied_weights_keys:
        model.lm_head.weight = table.weight

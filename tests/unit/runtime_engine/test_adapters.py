"""LoRA adapters: each row answers as the base model with its own adapter merged into the weights would alone."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.adapter import WEIGHTS, read_adapter
from tests.support.loras import write_adapter
from tests.support.models import FAMILIES, write_random
from tests.unit.runtime_engine.test_backends import alone, prompts

RANK = 16
MIX = ["one", "", "two", "one", "three", "", "two"]


def load(model, name, folder):
    adapters = model.built.causal.adapters
    adapters.add(name, adapters.read(read_adapter(folder, adapters.layers, max_rank=RANK)))


class Mixed:
    """A base model, three adapters beside it, and the merged models they are held to."""

    def __init__(self, folder, model_type):
        self.folder = folder / "base"
        base = write_random(self.folder, model_type)
        self.merged = {"": base}
        targets = {"two": [name for name in ("q_proj", "v_proj", "up_proj") if model_type != "phi3"]}
        for seed, name in enumerate(("one", "two", "three"), 1):
            self.merged[name] = write_adapter(
                folder / name,
                base,
                seed=seed,
                rank=2 * seed,
                targets=targets.get(name, ()),
                use_rslora=name == "three",
            )
        self.made = {}
        self.adapters = {name: folder / name for name in ("one", "two", "three")}

    def model(self, driver, fmt="fp32", **options):
        """Return the base model with the adapters loaded; the same one for all tests that change nothing of it."""
        if fmt not in self.made:
            self.made[fmt] = self._load(driver, fmt, **options)
        return self.made[fmt]

    def _load(self, driver, fmt, **options):
        made = driver(self.folder, fmt, **options)
        for name, folder in self.adapters.items():
            load(made, name, folder)
        return made

    def expected(self, asked, names, count):
        return [alone(self.merged[name], prompt, count) for name, prompt in zip(names, asked, strict=True)]


@pytest.fixture(
    scope="module", params=sorted(FAMILIES.keys() - {"mistral"})
)  # whose layers are those of llama
def mixed(request, tmp_path_factory):
    return Mixed(tmp_path_factory.mktemp(f"lora-{request.param}"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Mixed(tmp_path_factory.mktemp("lora"), "llama")


def test_adapters_answer_differently_from_one_another(llama):
    asked = prompts(1)[0]
    answers = {name: tuple(alone(merged, asked, 20)) for name, merged in llama.merged.items()}
    assert len(set(answers.values())) == 4, "or else the other tests would show nothing"


@pytest.mark.parametrize(
    "options", [{}, {"prefill_tokens": 7}, {"max_rows": 2}], ids=["packed", "chunked", "queued"]
)
def test_a_ragged_batch_of_adapters_answers_as_merged_weights(mixed, driver, options):
    for rows in (1, 2, 7):
        outputs, _ = mixed.model(driver).run(prompts(rows), adapters=MIX[:rows], **options)
        assert outputs == mixed.expected(prompts(rows), MIX[:rows], 20)


def test_preemption_by_recompute_keeps_the_adapter(mixed, driver):
    outputs, batcher = mixed.model(driver).run(prompts(7), 30, blocks=9, adapters=MIX)
    assert batcher.preemptions > 0
    assert outputs == mixed.expected(prompts(7), MIX, 30)


def test_a_prefix_is_shared_within_an_adapter_and_not_between_adapters(llama, driver):
    stem = prompts(5)[4]
    asked, names = [stem] * 5, ["one", "two", "", "one", ""]
    outputs, batcher = llama.model(driver).run(asked, adapters=names, max_rows=1)
    assert outputs == llama.expected(asked, names, 20)
    assert batcher.cache.hit_tokens == 2 * 48, "the fourth and the fifth prompt alone"


def test_drafts_are_judged_by_the_adapter(llama, driver):
    prompt = [5, 6, 7, 8, 9] * 8
    for name in ("one", ""):
        outputs, _ = llama.model(driver).run([prompt], 40, adapters=[name], draft_tokens=4)
        assert outputs == [alone(llama.merged[name], prompt, 40)]


@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
def test_rows_without_an_adapter_are_bit_for_bit_what_they_were(llama, driver, tmp_path, fmt):
    model = driver(llama.folder, fmt, tmp=tmp_path)
    asked = prompts(4)
    causal, seen = model.built.causal, []
    causal.bounded, plain = lambda logits: seen.append(logits.clone()) or plain(logits), causal.bounded
    model.run(asked, 6)
    before, seen[:] = list(seen), []
    for name, folder in llama.adapters.items():
        load(model, name, folder)
    model.run(asked, 6, adapters=["", "", "", "one"])  # the last row alone has an adapter, and comes last
    assert len(before) == len(seen)
    assert all(torch.equal(a[:3], b[:3]) for a, b in zip(before, seen, strict=True))
    assert not all(torch.equal(a[3:], b[3:]) for a, b in zip(before, seen, strict=True))


@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3", "gemma3_text"])
def test_every_fused_and_quantised_layer_gets_the_adapters_part_in_its_place(
    driver, tmp_path, model_type, fmt
):
    mixed = Mixed(tmp_path, model_type)
    model = mixed.model(driver, fmt, tmp=tmp_path)
    for name, place in model.built.places.items():
        module = model.empty.model.get_submodule(place.module)
        x = torch.randn(3, place.inputs, dtype=torch.bfloat16)
        files = read_adapter(mixed.adapters["one"], model.built.causal.adapters.layers, max_rank=RANK)
        tensors = load_file(mixed.adapters["one"] / WEIGHTS)
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        delta = model.built.causal.adapters._weights["one"].deltas[place.module]
        out = torch.zeros(3, module.out_features, dtype=torch.bfloat16)
        delta.add(x, out)
        wanted = files.scale * x.float() @ a.T @ b.T
        got = out[:, place.begin : place.begin + place.outputs].float()
        assert torch.nn.functional.cosine_similarity(got, wanted).min() > 0.999
    names = ["one", "", "two", "one", "three"]
    assert all(len(output) == 8 for output in model.run(prompts(5), 8, adapters=names)[0])


def test_adapters_that_come_and_go_between_steps_disturb_no_running_row(llama, driver):
    model = llama._load(driver, "fp32")
    adapters, steps = model.built.causal.adapters, []

    def swap():
        steps.append(1)
        if len(steps) % 2:
            load(model, "guest", llama.adapters["three"])
        else:
            adapters.remove("guest")

    outputs, _ = model.run(prompts(7), adapters=MIX, watch=swap)
    assert outputs == llama.expected(prompts(7), MIX, 20)
    for name in ("guest", *llama.adapters):
        adapters.remove(name)
    assert not adapters._hooks, "no adapter, no cost"
    assert model.run(prompts(2))[0] == llama.expected(prompts(2), ["", ""], 20)


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def written(tmp_path):
    """Give a good adapter's folder and the layers it is for."""
    model = write_random(tmp_path / "base")
    write_adapter(tmp_path / "lora", model)
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert read_adapter(tmp_path / "lora", layers, max_rank=RANK).rank == 4
    return tmp_path / "lora", layers


def refused(written):
    folder, layers = written
    with pytest.raises(Permanent) as caught:
        read_adapter(folder, layers, max_rank=RANK)
    return caught.value


def with_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.weight"), "Corrupted", f"{FIRST}.lora_B.weight is missing"),
        (
            lambda t: (t.pop(f"{FIRST}.lora_A.weight"), t.pop(f"{FIRST}.lora_B.weight")),
            "Corrupted",
            "target_modules has it",
        ),
        (
            lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(4, 63)}),
            "Corrupted",
            "has shape [4, 63], this base model needs [4, 64]",
        ),
        (
            lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int8)}),
            "Unsupported",
            "is I8; served: F32, F16, BF16",
        ),
        (
            lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.zeros(64)}),
            "Unsupported",
            "lora_magnitude_vector",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}),
            "Corrupted",
            "belongs to no linear layer",
        ),
        (lambda t: t.clear(), "Corrupted", "no tensors"),
    ],
)
def test_weights_that_are_not_this_models_adapter_are_refused(written, change, reason, words):
    with_tensors(written[0], change)
    error = refused(written)
    assert error.reason == reason
    assert WEIGHTS in str(error)
    assert words in str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "embeddings"),
        ({"target_modules": ["embed_tokens"]}, "'embed_tokens', which is no linear layer"),
        ({"peft_type": "IA3"}, "served: LORA"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"r": 64}, "memory is reserved for 16"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": -1}, "r is -1"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
    ],
)
def test_settings_that_are_not_served_are_refused_with_their_reason(written, change, words):
    path = written[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    error = refused(written)
    assert error.reason in {"Unsupported", "Corrupted"}
    assert words in str(error)


def test_pickle_is_refused_by_name_and_by_content(written):
    folder, _ = written
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert refused(written).reason == "UnsafeFormat"
    (folder / WEIGHTS).write_bytes(b"\x80\x04}\x94\x8c\x01a\x94K\x01s.")
    assert refused(written).reason == "UnsafeFormat"


def test_a_header_that_is_too_large_is_not_read(written):
    folder, _ = written
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 50 << 20))
        file.truncate(64 << 20)  # sparse
    error = refused(written)
    assert error.reason == "Corrupted"
    assert "header claims" in str(error)


def test_a_pattern_of_the_author_is_not_run(written):
    path = written[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "(a+)+$"}))
    folder, layers = written
    assert len(read_adapter(folder, layers, max_rank=RANK).pairs) == 21

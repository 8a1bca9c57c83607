"""What a run leaves behind, as others read it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llmos_operator.api.v1alpha1.workload_jobs import FineTuneMethod
from llmos_operator.runtime.formats.checkpoint import open_checkpoint
from llmos_operator.runtime.formats.config import read_config
from llmos_operator.tuning import result
from llmos_operator.tuning.checkpoints import Point
from llmos_operator.tuning.dataset import Dataset
from llmos_operator.tuning.recipe import Lora
from tests.support.learning import SAMPLES, learner_of, one_thread, recipe, tiny

ORIGIN = result.Origin("hf://org/name", "main", "sha256:aa", "fp32", "pvc://c/d.jsonl", "sha256:bb", "ff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    one_thread()
    return tiny(tmp_path_factory.mktemp("model"))


def test_an_adapter_has_the_names_shapes_and_config_that_peft_publishes(folder, tmp_path):
    wanted = recipe(lora=Lora(rank=4, alpha=8, targets=("q_proj", "down_proj")))
    learner = learner_of(folder, wanted)
    result.write_adapter(tmp_path, learner, wanted, ORIGIN)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        assert file.metadata() == {"format": "pt"}
    # As in https://huggingface.co/docs/peft/developer_guides/checkpoint: base_model.model. and the layer's own name.
    expected = {}
    for layer in range(3):
        for name, width, size in (("self_attn.q_proj", 64, 64), ("mlp.down_proj", 128, 64)):
            key = f"base_model.model.model.layers.{layer}.{name}"
            expected |= {f"{key}.lora_A.weight": (4, width), f"{key}.lora_B.weight": (size, 4)}
    assert shapes == expected
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] == "org/name"
    assert not any(config[name] for name in ("use_dora", "use_rslora", "fan_in_fan_out"))


def test_an_adapters_weights_are_those_that_have_learned(folder, tmp_path):
    learner = learner_of(folder, recipe())
    result.write_adapter(tmp_path, learner, recipe(), ORIGIN)
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert len(found) == len(learner.parameters)
    for name, one in learner.parameters.items():
        assert torch.equal(found[result.peft_name(name)], one.data)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_whole_model_can_be_served_and_trained_again(tmp_path, family):
    folder = tiny(tmp_path / "base", family)
    wanted = recipe(method=FineTuneMethod.FULL)
    learner = learner_of(folder, wanted)
    out = tmp_path / "out"
    out.mkdir()
    with torch.no_grad():
        learner.model.get_parameter("model.embed_tokens.weight").mul_(0.5)
    result.write_model(out, learner, folder)
    again = learner_of(out, wanted)
    assert read_config(out).source_bits == 16
    assert open_checkpoint(out).total_bytes == sum(2 * one.numel() for one in learner.parameters.values())
    assert (out / "tokenizer.json").is_file()
    with torch.no_grad():
        torch.testing.assert_close(
            again.summed_loss(SAMPLES), learner.summed_loss(SAMPLES), rtol=0.02, atol=0.1
        )


def test_the_card_states_the_facts_and_a_finished_run_is_known_again(tmp_path):
    data = Dataset(list(SAMPLES), lines=7, cut=1, dropped=1)
    point = Point(
        8, 64, recompute=False, tokens=500, seconds=2.0, loss=0.5, first_loss=4.0, validation_loss=1.5
    )
    assert not result.is_done(tmp_path, "ff")
    result.write_facts(tmp_path, recipe(), ORIGIN, data, point)
    text = (tmp_path / "README.md").read_text()
    for fact in ("sha256:aa", "sha256:bb", "4.0000 at first, 0.5000 at last", "| rank | 4 |", "1.5000"):
        assert fact in text
    assert result.is_done(tmp_path, "ff")
    assert not result.is_done(tmp_path, "another run")

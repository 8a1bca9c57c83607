"""Checkpoints that are published quantised: what is read is what they mean, and serving them loses nothing more."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos_operator.clock import FakeClock
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends import build
from llmos_operator.runtime.backends.quantized import Int4Linear, Int8Linear
from llmos_operator.runtime.formats.checkpoint import open_checkpoint
from llmos_operator.runtime.formats.config import read_config
from llmos_operator.runtime.formats.grids import quantize_int4
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.runtime.loader.pipeline import load_model
from llmos_operator.runtime.loader.progress import Stages
from tests.support.learning import tiny
from tests.support.prequantized import LAYOUTS, publish

AT_INT4 = ("gptq", "gptq_v2", "awq", "packed", "packed_asymmetric")
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPTS = [[1, 5, 9, 30], [7] * 20, list(range(40, 75))]


@pytest.fixture
def plain(tmp_path):
    return tiny(tmp_path / "plain", **SIZES)


def prepared(folder):
    return build.prepare(read_config(folder), open_checkpoint(folder))


def loaded(folder, cache, fmt):
    load = Load(
        f"file://{folder}",
        format=fmt,
        allow_file=True,
        cache_dir=str(cache),
        max_model_len=128,
        max_num_seqs=2,
        device="cpu",
    )
    return load_model(load, Stages(FakeClock(), lambda _: None))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_as_what_it_means(tmp_path, plain, layout):
    folder = publish(plain, tmp_path / layout, layout)
    meant = load_file(folder / "meant" / "model.safetensors")
    empty = prepared(folder)
    assert empty.shape.quantized == ("int4" if layout in AT_INT4 else "int8")
    assert empty.shape.parameters == prepared(plain).shape.parameters
    with empty.reader() as reader:
        for name in empty.names.values():
            torch.testing.assert_close(reader.whole(name).float(), meant[name].float(), rtol=0, atol=1e-6)
            if meant[name].dim() > 1:
                torch.testing.assert_close(
                    reader.rows(name, 3, 7).float(), meant[name][3:7].float(), rtol=0, atol=1e-6
                )


@pytest.mark.parametrize("layout", ["gptq_v2", "packed_asymmetric", "blocks"])
def test_what_is_served_answers_as_what_is_meant(tmp_path, plain, layout):
    folder = publish(plain, tmp_path / layout, layout)
    fmt = prepared(folder).shape.quantized
    served = loaded(folder, tmp_path / "cache", fmt)
    assert served.shape == prepared(folder).shape
    kinds = {
        type(module)
        for name, module in served.built.model.named_modules()
        if ".layers." in name and hasattr(module, "in_features")
    }
    assert kinds == {Int4Linear if fmt == "int4" else Int8Linear}
    meant = loaded(folder / "meant", tmp_path / "cache", "bf16")
    assert divergence(meant, served) < 0.02, (
        "the head is int8 and activations are bf16; int4 made anew is beyond 1"
    )


def divergence(one, other):
    """Return the mean Kullback-Leibler divergence of a model's next tokens from another's, in nats."""
    found = []
    for prompt in PROMPTS:
        expected, actual = (torch.log_softmax(_logits(each, prompt), -1) for each in (one, other))
        found.append((expected.exp() * (expected - actual)).sum(-1).mean())
    return float(sum(found) / len(found))


def _logits(one, prompt):
    hidden = one.built.causal.hidden(prompt)
    one.built.causal.release([(0, 0)])
    return one.built.causal.logits_slice(hidden, 0, len(prompt)).float()


@pytest.mark.parametrize("layout", AT_INT4)
def test_int4_layers_get_the_publishers_levels(tmp_path, plain, layout):
    folder = publish(plain, tmp_path / layout, layout)
    meant = load_file(folder / "meant" / "model.safetensors")
    empty = prepared(folder)
    with empty.reader() as reader:
        for name in filter(reader.holds, empty.names.values()):
            values, grid = reader.levels4(name, 0, meant[name].shape[0])
            assert off(values, grid, meant[name]) < 0.07, "of a step: scale and zero are bf16"


def test_levels_made_anew_would_be_others(tmp_path, plain):
    folder = publish(plain, tmp_path / "own", "packed_asymmetric")
    weight = load_file(folder / "meant" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert off(*quantize_int4(weight), weight) > 0.3


def off(values, grid, meant):
    """Return how far the levels on a grid are from what is meant at most, in steps."""
    scale, zero = (grid[..., i].float().repeat_interleave(32, 1) for i in (0, 1))
    return float((((values.float() - 8) * scale + zero - meant) / scale.clamp(min=1e-9)).abs().max())


def test_layers_that_the_publisher_kept_are_kept_at_int8(tmp_path, plain):
    folder = publish(
        plain, tmp_path / "kept", "gptq", keep=("layers.0.mlp.down_proj", "layers.1.self_attn.k_proj")
    )
    served = loaded(folder, tmp_path / "cache", "int4").built.model
    assert isinstance(served.model.layers[0].mlp.down_proj, Int8Linear)
    assert isinstance(served.model.layers[1].mlp.down_proj, Int4Linear)
    kinds = {type(m) for m in served.model.layers[1].self_attn.modules() if getattr(m, "in_features", 0)}
    assert kinds == {Int4Linear, Int8Linear}, "what is fused with a kept part is kept, the rest is not"


@pytest.mark.parametrize(
    ("layout", "fmt", "own"),
    [
        ("gptq", "bf16", "int4"),
        ("awq", "int8", "int4"),
        ("integers", "int4", "int8"),
        ("blocks", "fp32", "int8"),
    ],
)
def test_another_format_is_refused_with_the_one_to_ask_for(tmp_path, plain, layout, fmt, own):
    folder = publish(plain, tmp_path / layout, layout)
    with pytest.raises(
        Permanent, match=rf"quantised already .* served at {own} alone, not at {fmt}; ask for {own}"
    ) as caught:
        loaded(folder, tmp_path / "cache", fmt)
    assert caught.value.reason == "Unsupported"


@pytest.mark.parametrize(
    ("layout", "part", "value"),
    [
        ("gptq", "scales", torch.ones(3, 128).half()),
        ("gptq", "scales", None),
        ("gptq", "qzeros", torch.zeros(4, 5, dtype=torch.int32)),
        ("gptq_ordered", "g_idx", torch.full((128,), 99, dtype=torch.int32)),
        ("gptq_ordered", "g_idx", torch.full((128,), -1, dtype=torch.int32)),
        ("gptq_ordered", "g_idx", None),
        ("awq", "qzeros", torch.zeros(4, dtype=torch.int32)),
        ("packed", "weight_scale", torch.ones(0, 0).half()),
        ("packed", "weight_scale", torch.ones(128, 128).half()),
        ("integers", "weight_scale", torch.ones(7, 1)),
        ("blocks", "weight_scale_inv", torch.ones(1, 1)),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path, plain, layout, part, value):
    folder = publish(plain, tmp_path / layout, layout)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.0.self_attn.q_proj.{part}"
    assert name in tensors
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, file)
    with pytest.raises(Permanent, match=r"self_attn\.q_proj") as caught:
        loaded(folder, tmp_path / "cache", prepared(folder).shape.quantized)
    assert caught.value.reason == "Corrupted"


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "method bitsandbytes.*gptq, awq, compressed-tensors, fp8",
            "Unsupported",
        ),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "3 bits.*4 and 8 bits", "Unsupported"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size is '0'", "Corrupted"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "all"}, "group_size is 'all'", "Corrupted"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
            "marlin",
            "Unsupported",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"a": {}}},
            "dynamic",
            "Unsupported",
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
            "version gemv",
            "Unsupported",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
            "config_groups",
            "Unsupported",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "marlin-24",
                "config_groups": {"a": {"weights": {"num_bits": 4}}},
            },
            "marlin-24",
            "Unsupported",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size", "Corrupted"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size", "Corrupted"),
        (["gptq"], "not an object", "Corrupted"),
        ("gptq", "not an object", "Corrupted"),
    ],
)
def test_schemes_that_are_not_read_are_named(plain, settings, text, reason):
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(Permanent, match=text) as caught:
        read_config(plain)
    assert caught.value.reason == reason


def test_what_conversion_costs_is_measured_against_what_is_meant(tmp_path, plain):
    folder = publish(plain, tmp_path / "awq", "awq")
    info = loaded(folder, tmp_path / "cache", "int4").info
    assert info.quality_loss_milli is not None
    assert abs(info.quality_loss_milli) < 1000
    assert info.quality_kl_micro < 50_000

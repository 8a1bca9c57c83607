"""Checkpoints as quantisers publish them, made of a plain one by this file's own packing, number by number."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

GROUP = 32
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, from the lowest
LAYOUTS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"},
    "gptq_ordered": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    "gptq8": {"quant_method": "gptq", "bits": 8, "group_size": GROUP},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "packed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                },
            }
        },
        "ignore": ["lm_head"],
    },
    "packed_asymmetric": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "channel"},
            }
        },
    },
    "integers": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {"num_bits": 8},
            }
        },
    },
    "floats": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {"weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}}
        },
    },
    "blocks": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [16, 48],
        "activation_scheme": "dynamic",
    },
}


def publish(plain: Path, out: Path, layout: str, keep: tuple[str, ...] = ()) -> Path:
    """Write ``plain`` as ``layout`` into ``out``, and into out/"meant" the plain checkpoint that it then means.

    ``keep`` are parts of layers' names that stay plain.
    """
    settings = LAYOUTS[layout]
    shutil.copytree(plain, out)
    shutil.copytree(plain, out / "meant")
    config = json.loads((plain / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if ".layers." not in name or weight.dim() != 2 or any(part in name for part in keep):
            stored[name] = meant[name] = weight
            continue
        parts, value = _WRITERS[layout.split("_", maxsplit=1)[0].rstrip("8")](weight.float(), settings)
        owner = name.removesuffix(".weight")
        stored |= {f"{owner}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        meant[name] = value
    save_file(stored, out / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in meant.items()}, out / "meant" / "model.safetensors")
    return out


def _levels(
    weight: torch.Tensor, bits: int, group: int, *, symmetric: bool = False, order: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return unsigned levels [out, in], fp16 scales and zero points [out, groups], and what they mean."""
    rows, width = weight.shape
    group = width if group < 0 else group
    groups = torch.arange(width) // group if order is None else order
    count, top = width // group, (1 << bits) - 1
    scales, zeros = torch.zeros(rows, count), torch.zeros(rows, count)
    for one in range(count):
        part = weight[:, groups == one]
        if symmetric:
            scales[:, one] = part.abs().amax(1) / (top // 2)
            zeros[:, one] = (top + 1) // 2
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales[:, one] = (high - low) / top
            # As GPTQ writes zero points, one less than they are, none of 0 can be told.
            zeros[:, one] = (-low / scales[:, one]).round().clamp(1, top)
    scales = scales.half().float()
    levels = (weight / scales[:, groups] + zeros[:, groups]).round().clamp(0, top)
    return levels, scales, zeros, (levels - zeros[:, groups]) * scales[:, groups]


def _pack(values: torch.Tensor, bits: int, axis: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """Return int32 words along an axis; ``places`` are the neighbours that a word's numbers are, from the lowest bits."""
    numbers = np.moveaxis(values.numpy().astype(np.uint32), axis, 0)
    count = 32 // bits
    words = np.zeros((numbers.shape[0] // count, *numbers.shape[1:]), np.uint32)
    for word in range(words.shape[0]):
        for at, place in enumerate(places or range(count)):
            words[word] |= numbers[word * count + place] << np.uint32(at * bits)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words, 0, axis)).view(np.int32))


def _gptq(weight: torch.Tensor, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    bits, group, width = settings["bits"], settings["group_size"], weight.shape[1]
    order = torch.arange(width) // group
    if settings.get("desc_act"):
        order = order[torch.randperm(width, generator=torch.Generator().manual_seed(width))]
    levels, scales, zeros, meant = _levels(weight, bits, group, order=order)
    told = zeros if settings.get("checkpoint_format") == "gptq_v2" else zeros - 1
    parts = {
        "qweight": _pack(levels.T, bits, 0),
        "qzeros": _pack(told.T, bits, 1),
        "scales": scales.T.half(),
        "g_idx": order.int(),
    }
    return parts, meant


def _awq(weight: torch.Tensor, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    levels, scales, zeros, meant = _levels(weight, 4, settings["group_size"])
    parts = {
        "qweight": _pack(levels.T, 4, 1, AWQ_COLUMNS),
        "qzeros": _pack(zeros.T, 4, 1, AWQ_COLUMNS),
        "scales": scales.T.half(),
    }
    return parts, meant


def _packed(weight: torch.Tensor, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    how = settings["config_groups"]["group_0"]["weights"]
    levels, scales, zeros, meant = _levels(weight, 4, how.get("group_size", -1), symmetric=how["symmetric"])
    parts = {
        "weight_packed": _pack(levels, 4, 1),
        "weight_scale": scales.half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not how["symmetric"]:
        parts["weight_zero_point"] = _pack(zeros, 4, 0)
    return parts, meant


def _integers(
    weight: torch.Tensor, _settings: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    levels = (weight / scales.float()).round().clamp(-128, 127)
    return {"weight": levels.to(torch.int8), "weight_scale": scales}, levels * scales.float()


def _floats(weight: torch.Tensor, _settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    scale = (weight.abs().amax() / 448).bfloat16()
    levels = (weight / scale.float()).to(torch.float8_e4m3fn)
    return {
        "weight": levels,
        "weight_scale": scale.view(1),
        "input_scale": torch.ones(1),
    }, levels.float() * scale.float()


def _blocks(weight: torch.Tensor, settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    (high, wide), (rows, width) = settings["weight_block_size"], weight.shape
    scales = torch.zeros(-(-rows // high), -(-width // wide))
    levels, meant = torch.zeros_like(weight).to(torch.float8_e4m3fn), torch.zeros_like(weight)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            at = (slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide))
            scales[row, column] = weight[at].abs().amax() / 448
            levels[at] = (weight[at] / scales[row, column]).to(torch.float8_e4m3fn)
            meant[at] = levels[at].float() * scales[row, column]
    return {"weight": levels, "weight_scale_inv": scales}, meant


_WRITERS = {
    "gptq": _gptq,
    "awq": _awq,
    "packed": _packed,
    "integers": _integers,
    "floats": _floats,
    "blocks": _blocks,
}

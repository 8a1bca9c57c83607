"""LoRA adapters as PEFT writes them, with random weights, and what they make of a model when they are merged into it."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The projections of `models.CHAT`, SmolLM2: [out, in], and its layers.
CHAT_SHAPES = {
    "q_proj": (576, 576),
    "k_proj": (192, 576),
    "v_proj": (192, 576),
    "o_proj": (576, 576),
    "gate_proj": (1536, 576),
    "up_proj": (1536, 576),
    "down_proj": (576, 1536),
}
CHAT_LAYERS = 30
FUSED_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")  # Phi-3 publishes them so


def targets_of(model: Any) -> tuple[str, ...]:
    """Return the projections of a model's layers."""
    fused = any(name.endswith("qkv_proj") for name, _ in model.named_modules())
    return FUSED_TARGETS if fused else TARGETS


def adapter_config(rank: int, targets: Sequence[str], **changes: Any) -> dict[str, Any]:
    """Return an adapter_config.json as PEFT 0.17 saves it, shortened."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(targets),
        "use_dora": False,
        "use_rslora": False,
    } | changes


def adapter_tensors(
    model: Any, rank: int, targets: Sequence[str], *, seed: int, width: float = 0.1
) -> dict[str, torch.Tensor]:
    """Return random A and B for every target of ``model``, by PEFT's names."""
    import torch  # noqa: PLC0415 - tests without a model need not wait for it

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            size, inputs = module.weight.shape
            for side, shape in (("A", (rank, inputs)), ("B", (size, rank))):
                found[f"base_model.model.{name}.lora_{side}.weight"] = width * torch.randn(
                    shape, generator=generator
                )
    return found


def write_adapter(
    folder: Path,
    model: Any,
    *,
    rank: int = 4,
    seed: int = 1,
    targets: Sequence[str] = (),
    width: float = 0.1,
    **changes: Any,
) -> Any:
    """Write an adapter of ``model`` and return a copy of the model with it merged: W + scale * B A."""
    from safetensors.torch import save_file  # noqa: PLC0415

    targets = targets or targets_of(model)
    config = adapter_config(rank, targets, **changes)
    tensors = adapter_tensors(model, rank, targets, seed=seed, width=width)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    merged = copy.deepcopy(model)
    vars(merged).pop("answers", None)  # of the base model, kept by a test
    for name in [one.removesuffix(".lora_A.weight") for one in tensors if one.endswith("lora_A.weight")]:
        layer = merged.get_submodule(name.removeprefix("base_model.model."))
        layer.weight.data += scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    return merged


def write_random_adapter(
    folder: Path,
    shapes: dict[str, tuple[int, int]],
    layers: int,
    *,
    rank: int,
    seed: int,
    width: float = 0.1,
    dtype: str = "float32",
) -> None:
    """Write an adapter of a Llama whose projections have these ``shapes`` [out, in], without the model at hand."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for target, (size, inputs) in shapes.items():
            block = "self_attn" if target in TARGETS[:4] else "mlp"
            name = f"base_model.model.model.layers.{layer}.{block}.{target}"
            for side, shape in (("A", (rank, inputs)), ("B", (size, rank))):
                values = width * torch.randn(shape, generator=generator)
                tensors[f"{name}.lora_{side}.weight"] = values.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(rank, tuple(shapes))))
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})

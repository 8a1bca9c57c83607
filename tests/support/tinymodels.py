"""Model repositories of a few kilobytes for a hub: real file formats, sizes as the test wants them."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def config(**changes: Any) -> dict[str, Any]:
    """Return a small Llama's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 2048,
        "torch_dtype": "bfloat16",
    } | changes


def safetensors(tensors: dict[str, tuple[int, ...]], *, dtype: str = "BF16", cut: int = 0) -> bytes:
    """Return a safetensors file of zeros; ``cut`` bytes are missing at its end."""
    at, header = 0, {}
    for name, shape in tensors.items():
        size = 2
        for number in shape:
            size *= number
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return (struct.pack("<Q", len(text)) + text + bytes(at))[: -cut or None]


def write_model(hub: Path, name: str, *, cut: int = 0, pickle_only: bool = False, **changes: Any) -> str:
    """Write a repository below ``hub`` and return its URI. ``changes`` go into its config."""
    folder = hub / name
    folder.mkdir(parents=True, exist_ok=True)
    values = config(**changes)
    (folder / "config.json").write_text(json.dumps(values))
    hidden, vocab, inner = values["hidden_size"], values["vocab_size"], values["intermediate_size"]
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(values["num_hidden_layers"]):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = (inner, hidden)
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
    if pickle_only:
        (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    else:
        (folder / "model.safetensors").write_bytes(safetensors(tensors, cut=cut))
    return f"hf://{name}"

"""GGUF to a standard Hugging Face directory, tensor by tensor, in seconds.

Opening a GGUF through transformers takes 20 to 50 s each time; converted once, the result is memory-mapped like any
other model. Values are dequantised to bf16, which keeps every level of a 4-bit block apart, so that int4 with the same
group of 32 finds the file's own grid again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.gguf_file import GgufFile, GgufTensor, read_gguf
from llmos_operator.runtime.formats.gguf_tokenizer import special_ids, write_tokenizer
from llmos_operator.runtime.formats.safetensors_file import StreamWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Progress = Callable[[int, int], None]  # bytes done, bytes total of the output


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How one GGUF architecture is called and laid out in transformers."""

    model_type: str
    class_name: str
    permuted: bool  # q and k rows are interleaved for llama.cpp's rotary layout
    extra: Mapping[str, Any]


_ARCHITECTURES = {
    "llama": _Architecture(
        "llama", "LlamaForCausalLM", permuted=True, extra={"attention_bias": False, "mlp_bias": False}
    ),
    "qwen2": _Architecture("qwen2", "Qwen2ForCausalLM", permuted=False, extra={}),
    "qwen3": _Architecture("qwen3", "Qwen3ForCausalLM", permuted=False, extra={"attention_bias": False}),
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SKIPPED = {"rope_freqs.weight"}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")


def convert_gguf(source: Path, out: Path, progress: Progress) -> str:
    """Write config.json, the tokenizer's files and model.safetensors (bf16) of ``source`` into the folder ``out``.

    Returns the sha256 of model.safetensors. Raises Permanent(reason=Corrupted | Unsupported).
    """
    file = read_gguf(source)
    architecture = _architecture(file)
    names = {
        tensor.name: _renamed(file, tensor.name) for tensor in file.tensors if tensor.name not in _SKIPPED
    }
    config = _config(file, architecture, tied="lm_head.weight" not in names.values())
    write_tokenizer(file.metadata, out)
    _write_json(out / "config.json", config)
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    _write_json(out / "generation_config.json", tokens)
    return _write_weights(file, architecture, names, config, out / "model.safetensors", progress)


def _write_weights(
    file: GgufFile,
    architecture: _Architecture,
    names: Mapping[str, str],
    config: Mapping[str, Any],
    path: Path,
    progress: Progress,
) -> str:
    tensors = sorted((tensor for tensor in file.tensors if tensor.name in names), key=_place)
    announced = [(names[tensor.name], "BF16", tensor.shape) for tensor in tensors]
    done = 0
    with StreamWriter(path, announced, {"format": "pt"}) as writer:
        for tensor in tensors:
            name = names[tensor.name]
            values = _unpermuted(file.array(tensor), name, architecture, config)
            data = to_bf16(values)
            writer.write(name, data.data.cast("B"))
            done += data.nbytes
            progress(done, writer.total_bytes)
    return writer.sha256


def _place(tensor: GgufTensor) -> tuple[int, int]:
    """Return the sort key that puts projections of the same input side by side: serving can then map them as one."""
    match = _NAME.fullmatch(tensor.name)
    block, part, _ = match.groups() if match else (None, "", "")
    return (-1, 0) if block is None else (int(block), list(_BLOCK).index(part))


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return float32 values rounded to nearest even bfloat16, as their upper 16 bits."""
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _unpermuted(
    values: NDArray[np.float32], name: str, architecture: _Architecture, config: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of the two rotary halves in q and k (its convert script, function permute)."""
    if not architecture.permuted or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _architecture(file: GgufFile) -> _Architecture:
    name = file.metadata.get("general.architecture")
    if name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise Permanent(f"GGUF architecture {name!r} is not served (served: {known})", reason="Unsupported")
    return _ARCHITECTURES[name]


def _renamed(file: GgufFile, name: str) -> str:
    match = _NAME.fullmatch(name)
    block, part, kind = match.groups() if match else (None, "", "")
    known = _TOP if block is None else _BLOCK
    if part not in known:
        raise Permanent(
            f"{file.path.name}: tensor {name!r} has no place in this architecture", reason="Unsupported"
        )
    prefix = "" if block is None else f"model.layers.{block}."
    return f"{prefix}{known[part]}.{kind}"


def _config(file: GgufFile, architecture: _Architecture, *, tied: bool) -> dict[str, Any]:
    meta = file.metadata
    prefix = meta["general.architecture"]
    try:
        heads = int(meta[f"{prefix}.attention.head_count"])
        hidden = int(meta[f"{prefix}.embedding_length"])
        config: dict[str, Any] = {
            "architectures": [architecture.class_name],
            "model_type": architecture.model_type,
            "hidden_size": hidden,
            "intermediate_size": int(meta[f"{prefix}.feed_forward_length"]),
            "num_hidden_layers": int(meta[f"{prefix}.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(meta.get(f"{prefix}.attention.head_count_kv", heads)),
            "head_dim": int(meta.get(f"{prefix}.attention.key_length", hidden // heads)),
            "hidden_act": "silu",
            "max_position_embeddings": int(meta[f"{prefix}.context_length"]),
            "rms_norm_eps": _shortest(meta[f"{prefix}.attention.layer_norm_rms_epsilon"]),
            "rope_theta": _shortest(meta.get(f"{prefix}.rope.freq_base", 10_000.0)),
            "vocab_size": _rows(file, "token_embd.weight"),
            "tie_word_embeddings": tied,
            "torch_dtype": "bfloat16",
            **architecture.extra,
        }
    except KeyError as error:
        raise Permanent(f"{file.path.name} lacks the key {error.args[0]!r}", reason="Corrupted") from error
    for role, key in special_ids(meta).items():
        if role != "unk":
            config[f"{role}_token_id"] = int(meta[key])
    return config


def _rows(file: GgufFile, name: str) -> int:
    found: GgufTensor | None = next((tensor for tensor in file.tensors if tensor.name == name), None)
    if found is None:
        raise Permanent(f"{file.path.name} lacks the tensor {name!r}", reason="Corrupted")
    return found.shape[0]


def _shortest(value: float) -> float:
    """Return a float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

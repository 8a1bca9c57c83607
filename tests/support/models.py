"""Models for tests of the engine: the packaged ones, prepared once, and tiny random ones of each family."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.formats.prepare import MODELS, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"
SENTENCES = "sentence-transformers/all-MiniLM-L6-v2"

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 319,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
# What makes each family different from the first: biases, norms on heads, windows, another activation.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "phi3": {"hidden_act": "silu"},
    "gemma3_text": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 20,
        "query_pre_attn_scalar": 16,
        "tie_word_embeddings": True,
    },
}
_ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
    "type_vocab_size": 2,
}


def store_dir() -> Path:
    """Return the model store the tests share with the local cluster."""
    return Path(os.environ.get("LLMOS_MODEL_STORE") or Path.home() / ".cache" / "llmos" / "hub")


def packaged(repository: str) -> Path:
    """Return the folder of a packaged model, converting it on the first call of a machine."""
    model = next(one for one in MODELS if one.repository == repository)
    return prepare(model, store_dir(), say=lambda _: None)


def write_random(folder: Path, model_type: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """Write a random model of ``model_type`` as a publisher would; return transformers' own model of it (fp32)."""
    import torch  # noqa: PLC0415 - tests without a model need not wait for it

    from llmos_operator.runtime.backends.families import FAMILIES as CLASSES  # noqa: PLC0415

    family = CLASSES[model_type]
    package = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    settings = importlib.import_module(f"transformers.models.{family.module}.configuration_{family.module}")
    values = (_SMALL | FAMILIES.get(model_type, {}) if family.backbone else _ENCODER) | changes
    config = getattr(settings, family.config_class)(**values)
    torch.manual_seed(seed)
    model = getattr(package, family.model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():  # wide enough that greedy choices are far apart, at any position
            parameter.normal_(0.0, 0.25) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_type": model_type, "architectures": [family.model_class], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(values | written))
    save_tensors(folder / "model.safetensors", model.state_dict())
    return model.eval()


def write_classifier(folder: Path, model_type: str, labels: Sequence[str], **changes: Any) -> Any:
    """Write a random classifier of encoder ``model_type``; return transformers' own model of it (fp32)."""
    import torch  # noqa: PLC0415 - as above

    from llmos_operator.runtime.backends.families import FAMILIES as CLASSES  # noqa: PLC0415

    family = CLASSES[model_type]
    package = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    settings = importlib.import_module(f"transformers.models.{family.module}.configuration_{family.module}")
    named = {"id2label": {str(index): label for index, label in enumerate(labels)}}
    values = _ENCODER | named | changes
    torch.manual_seed(0)
    model = getattr(package, family.classifier)(getattr(settings, family.config_class)(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_type": model_type, "architectures": [family.classifier], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(values | written))
    save_tensors(folder / "model.safetensors", model.state_dict())
    return model.eval()


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as safetensors; of tensors that share memory only the first is kept."""
    from safetensors.torch import save_file  # noqa: PLC0415

    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach().contiguous()
    save_file(kept, str(path), metadata={"format": "pt"})

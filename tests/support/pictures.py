"""Random image classifiers, their preprocessor_config.json, and pictures."""

from __future__ import annotations

import importlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.support.models import save_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LABELS = ("cat", "dog", "tree")
_CONVOLUTIONS = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_channels": 3}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": (
        "ViT",
        "ViTImageProcessor",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
    "resnet": ("ResNet", "ConvNextFeatureExtractor", _CONVOLUTIONS | {"embedding_size": 8}),
    "convnext": ("ConvNext", "ConvNextImageProcessor", _CONVOLUTIONS | {"num_stages": 2}),
    "convnextv2": ("ConvNextV2", "ConvNextImageProcessorFast", _CONVOLUTIONS | {"num_stages": 2}),
}


def write_picture_model(
    folder: Path, model_type: str, labels: Sequence[str] = LABELS, *, size: int = 32, **changes: Any
) -> Any:
    """Write a random image classifier as a publisher would; return transformers' own model of it (fp32)."""
    import torch  # noqa: PLC0415 - tests without a model need not wait for it

    name, processor, values = MODELS[model_type]
    package = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    settings = importlib.import_module(f"transformers.models.{model_type}.configuration_{model_type}")
    values = values | {"id2label": {str(index): label for index, label in enumerate(labels)}} | changes
    torch.manual_seed(0)
    wanted = getattr(settings, f"{name}Config")(**values)
    model = getattr(package, f"{name}ForImageClassification")(wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif key.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_type": model_type, "architectures": [f"{name}ForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(values | written | {"torch_dtype": "float32"}))
    write_processor(folder, model_type, processor, size)
    save_tensors(folder / "model.safetensors", model.state_dict())
    return model.eval()


def write_processor(folder: Path, model_type: str, name: str, size: int, **changes: Any) -> None:
    """Write preprocessor_config.json; ViT's size is a square, ConvNext's a shortest edge."""
    values = {
        "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type": name,
        "size": {"height": size, "width": size} if model_type == "vit" else {"shortest_edge": size},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of soft stains."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()

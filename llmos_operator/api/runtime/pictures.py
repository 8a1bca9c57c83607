"""Image classifiers, told from config.json: the sizes of their layers by the names that text models give theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping

AT_ONCE = 4  # pictures of one pass: their activations are what is sized
TYPES = ("vit", "resnet", "convnext", "convnextv2")
WIDEST = 384  # pixels of a side: what published convolutional models take, whatever image_size says
_MAX_SIDE = 2048
_MAX_STAGES = 16
_STRIDE = 4  # of the stem: pixels of a side that become one

# Values that are alive at once where a stage's layers are widest, in channels of its output.
_LIVE = {"resnet": 4, "convnext": 11, "convnextv2": 19}


def picture_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an image classifier's sizes, {} for other models. Raises Permanent(reason=Corrupted)."""
    kind = config.get("model_type")
    if kind not in TYPES:
        return {}
    side = _number(config, "image_size", 224, _MAX_SIDE)
    common = {"vocab_size": 1, "max_position_embeddings": 1}
    if kind == "vit":
        patch = _number(config, "patch_size", 16, side)
        hidden = _number(config, "hidden_size", 768, 1 << 16)
        inner = _number(config, "intermediate_size", 3072, 1 << 19)
        tokens = (side // patch) ** 2 + 1
        # Both sides of the widest product, the stream and what attention reads.
        return common | {"picture_floats": tokens * (2 * inner + 6 * hidden)}
    hidden_sizes = _numbers(config, "hidden_sizes", 1 << 16)
    depths = _numbers(config, "depths", 512)
    side = max(side, WIDEST)
    channels = _number(config, "embedding_size", hidden_sizes[0], 1 << 16)
    # A stage's first layers run at the size of the stage before.
    stages = [
        _LIVE[str(kind)] * width * (side // _STRIDE >> max(0, at - 1)) ** 2
        for at, width in enumerate(hidden_sizes)
    ]
    return common | {
        "hidden_size": hidden_sizes[-1],
        "num_hidden_layers": sum(depths),
        "num_attention_heads": 1,
        "picture_floats": max(3 * channels * (side // 2) ** 2, *stages),
    }


def side_of(config: Mapping[str, Any]) -> int:
    """Return the longest side of a picture that the sizes were made for, in pixels."""
    side = _number(config, "image_size", 224, _MAX_SIDE)
    return side if config.get("model_type") == "vit" else max(side, WIDEST)


def _number(config: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = config.get(key, default)
    if not (type(value) is int and 0 < value <= most):
        raise _corrupted(f"{key} is {str(value)[:40]!r}, not a number from 1 to {most}")
    return value


def _numbers(config: Mapping[str, Any], key: str, most: int) -> list[int]:
    values = config.get(key)
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_STAGES:
        raise _corrupted(f"{key} is no list of 1 to {_MAX_STAGES} numbers")
    return [_number({key: value}, key, 0, most) for value in values]


def _corrupted(message: str) -> Permanent:
    return Permanent(f"config.json: {message}; publish or download the model again", reason=Reason.CORRUPTED)

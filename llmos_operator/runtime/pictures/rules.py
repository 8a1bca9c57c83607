"""preprocessor_config.json of an image classifier: what happens to a picture before the model sees it.

The steps are those of transformers' ViT and ConvNext processors; another processor is refused by name. The file is data:
nothing it names is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.pictures import side_of
from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.config import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = "preprocessor_config.json"
CHANNELS = 3
_HALF = (0.5, 0.5, 0.5)
_BILINEAR, _BICUBIC = 2, 3
_RESAMPLINGS = frozenset(range(6))  # Pillow's numbers
_WARPED = 384  # from this size on ConvNext's pictures are stretched, not cut
_CROP_SHARE = 224 / 256
_SQUARE = ("vit", "convnext")
_NAMES = ("ImageProcessor", "FeatureExtractor")


@dataclass(frozen=True, slots=True)
class PictureRules:
    """What is done to a picture, in this order. Sizes in pixels."""

    height: int  # as the model sees it
    width: int
    short_side: int = 0  # > 0: shrunk or grown so that its shorter side has so many, then cut to the middle
    resampling: int = _BILINEAR
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0,) * CHANNELS
    deviation: tuple[float, ...] = (1.0,) * CHANNELS

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a picture of this size: red, green, blue."""
        return self.height * self.width * CHANNELS


def read_rules(folder: Path) -> PictureRules:
    """Return the rules of the model in ``folder``. Raises Permanent: Unsupported, Corrupted."""
    values = read_json(folder / FILE)
    kind = _kind(values)
    if kind is None or values.get("do_resize") is False or values.get("do_center_crop"):
        named = values.get("image_processor_type") or values.get("feature_extractor_type")
        raise _unsupported(
            f"{str(named)[:80]} is not served, or does not resize; ViT's and ConvNext's processors are"
        )
    height, width, short = _sizes(values, kind)
    most = side_of(read_json(folder / "config.json"))
    if max(height, width) > most:
        raise _unsupported(
            f"pictures of {height} x {width} are wanted; this model is sized for {most} pixels"
        )
    resampling = values.get("resample", _BILINEAR if kind == "vit" else _BICUBIC)
    if resampling not in _RESAMPLINGS:
        raise _corrupted(f"resample is {str(resampling)[:40]!r}, not a number from 0 to {max(_RESAMPLINGS)}")
    normal = values.get("do_normalize") is not False
    return PictureRules(
        height,
        width,
        short,
        int(resampling),
        _positive(values, "rescale_factor", 1 / 255) if values.get("do_rescale") is not False else 1.0,
        _channels(values, "image_mean") if normal else (0.0,) * CHANNELS,
        _channels(values, "image_std", positive=True) if normal else (1.0,) * CHANNELS,
    )


def _kind(values: Mapping[str, Any]) -> str | None:
    name = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    name = name.removesuffix("Fast").removesuffix("Pil")
    for suffix in _NAMES:
        name = name.removesuffix(suffix)
    return name.lower() if name.lower() in _SQUARE else None


def _sizes(values: Mapping[str, Any], kind: str) -> tuple[int, int, int]:
    """Return height, width and the shorter side before the cut, 0 where pictures are stretched."""
    size = values.get("size", 224 if kind == "vit" else _WARPED)
    if kind == "vit":
        sides = size if isinstance(size, dict) else {"height": size, "width": size}
        return _side(sides, "height"), _side(sides, "width"), 0
    side = _side(size if isinstance(size, dict) else {"shortest_edge": size}, "shortest_edge")
    if side >= _WARPED:
        return side, side, 0
    share = _positive(values, "crop_pct", _CROP_SHARE)
    if not 0 < share <= 1:
        raise _corrupted(f"crop_pct is {share}, not a number from 0 to 1")
    return side, side, min(int(side / share), 16 * side)


def _side(size: Mapping[str, Any], key: str) -> int:
    value = size.get(key)
    if type(value) is not int or value < 1:
        raise _corrupted(f"size.{key} is {str(value)[:40]!r}, not a number of pixels")
    return value


def _positive(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise _corrupted(f"{key} is {str(value)[:40]!r}, not a positive number")
    return float(value)


def _channels(values: Mapping[str, Any], key: str, *, positive: bool = False) -> tuple[float, ...]:
    value = values.get(key, list(_HALF))
    found = value if isinstance(value, list) else [value] * CHANNELS
    numbers = [one for one in found if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(found) != CHANNELS or len(numbers) != CHANNELS or (positive and min(numbers) <= 0):
        raise _corrupted(f"{key} is {str(value)[:40]!r}, not {CHANNELS} numbers")
    return tuple(float(one) for one in numbers)


def _corrupted(message: str) -> Permanent:
    return Permanent(f"{FILE}: {message}", reason="Corrupted")


def _unsupported(message: str) -> Permanent:
    return Permanent(f"{FILE}: {message}", reason="Unsupported")

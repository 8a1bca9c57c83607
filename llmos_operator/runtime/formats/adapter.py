"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors, read as data and checked whole.

An adapter adds ``scale * B(A(x))`` to the output of linear layers, A of [rank, in], B of [out, rank], scale
lora_alpha / rank (or / sqrt(rank) with use_rslora). Layout and names: https://huggingface.co/docs/peft/developer_guides/checkpoint
Whatever would change the base model in another way is refused with its reason, as is a tensor that is not expected, one
that lacks and one of another shape: an adapter that is served is exactly the one that was trained.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.checkpoint import PICKLE_NAMES, refuse_pickle
from llmos_operator.runtime.formats.config import read_json
from llmos_operator.runtime.formats.safetensors_file import TensorEntry, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
MAX_HEADER_BYTES = 8 << 20  # 512 layers of seven projections take a tenth of it
_PREFIX = "base_model.model."
_FLOATS = ("F32", "F16", "BF16")
_MOST_RANK = 4096
_MOST_ALPHA = 1e6
# Settings that change more than the products above; each is refused unless it is off.
_REFUSED = {
    "use_dora": "DoRA scales the base weights",
    "use_qalora": "QALoRA pools the inputs",
    "lora_bias": "biases of the adapter are not served",
    "fan_in_fan_out": "transposed weights are not served",
    "modules_to_save": "whole modules beside the adapter are not served",
    "rank_pattern": "ranks that differ by layer are not served",
    "alpha_pattern": "scales that differ by layer are not served",
    "layer_replication": "it repeats layers of the base model",
    "target_parameters": "adapters of bare parameters are not served",
    "trainable_token_indices": "changed token embeddings are not served",
    "alora_invocation_tokens": "activation by tokens is not served",
}
# Ways to begin a training that leave the base model as it is. PiSSA, OLoRA and others change it and need a conversion.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A checked adapter: ``pairs`` are its tensors (A, B) by the name of the layer in the base model."""

    folder: Path
    rank: int
    scale: float
    pairs: Mapping[str, tuple[TensorEntry, TensorEntry]]
    digest: str  # "sha256:…" over both files

    @property
    def elements(self) -> int:
        """Number of weights."""
        return sum(a.elements + b.elements for a, b in self.pairs.values())


def read_adapter(folder: Path, layers: Mapping[str, tuple[int, int]], *, max_rank: int) -> AdapterFiles:
    """Return the checked adapter in ``folder`` for a model whose linear ``layers`` have (in, out) features.

    Raises Permanent: ModelNotFound, UnsafeFormat (pickle), Corrupted (names file, tensor and shapes) or Unsupported.
    """
    _need_files(folder)
    config = read_json(folder / CONFIG)
    rank, scale = _settings(config, max_rank)
    weights = folder / WEIGHTS
    refuse_pickle(weights)
    header = read_header(weights, most=MAX_HEADER_BYTES)
    pairs = _pairs({tensor.name: tensor for tensor in header.tensors}, layers, rank)
    _check_targets(config, pairs, layers)
    return AdapterFiles(folder, rank, scale, pairs, _digest(folder))


def _need_files(folder: Path) -> None:
    if not folder.is_dir():
        raise Permanent(f"{folder.name} is no folder with {CONFIG} and {WEIGHTS}", reason="ModelNotFound")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not missing:
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_NAMES)
    if WEIGHTS in missing and pickles:
        raise Permanent(
            f"the adapter's only weights are {', '.join(pickles[:3])}: pickle can run code when opened; save it as {WEIGHTS}",
            reason="UnsafeFormat",
        )
    raise Permanent(f"the adapter lacks {' and '.join(missing)}", reason="ModelNotFound")


def _settings(config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    """Return rank and scale. Raises Permanent(reason=Unsupported or Corrupted)."""
    if config.get("peft_type") != "LORA":
        raise _unsupported(f"peft_type is {_shown(config.get('peft_type'))}; served: LORA")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise _unsupported(f"{key} is {_shown(config[key])}: {why}")
    if config.get("bias", "none") != "none":
        raise _unsupported(f"bias is {_shown(config['bias'])}; served: none")
    begun = config.get("init_lora_weights")
    if not any(begun is known or (isinstance(known, str) and begun == known) for known in _BEGINNINGS):
        raise _unsupported(
            f"init_lora_weights is {_shown(begun)}, which changes the base model; convert it to a plain LoRA with PEFT"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if type(rank) is not int or not 0 < rank <= _MOST_RANK:
        raise _corrupt(CONFIG, f"r is {_shown(rank)}, not a number from 1 to {_MOST_RANK}")
    if type(alpha) not in (int, float) or not 0 < abs(alpha) <= _MOST_ALPHA:
        raise _corrupt(CONFIG, f"lora_alpha is {_shown(alpha)}, not a number up to {_MOST_ALPHA:.0f}")
    if rank > max_rank:
        raise _unsupported(
            f"r is {rank}, memory is reserved for {max_rank}: raise spec.adapterLimits.maxRank"
        )
    return rank, float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(
    tensors: Mapping[str, TensorEntry], layers: Mapping[str, tuple[int, int]], rank: int
) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """Return (A, B) by layer, each tensor known, whole and of the right shape."""
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        layer, side = _named(name)
        if layer not in layers:
            raise _corrupt(WEIGHTS, f"tensor {_shown(name)} belongs to no linear layer of this base model")
        inputs, outputs = layers[layer]
        expected = (rank, inputs) if side == "A" else (outputs, rank)
        if entry.shape != expected:
            raise _corrupt(
                WEIGHTS,
                f"tensor {name} has shape {list(entry.shape)}, this base model needs {list(expected)}",
            )
        if entry.dtype not in _FLOATS:
            raise _unsupported(f"tensor {name} is {entry.dtype}; served: {', '.join(_FLOATS)}", WEIGHTS)
        found.setdefault(layer, {})[side] = entry
    if not found:
        raise _corrupt(WEIGHTS, "it has no tensors")
    for layer, sides in found.items():
        for side in ("A", "B"):
            if side not in sides:
                raise _corrupt(WEIGHTS, f"tensor {_PREFIX}{layer}.lora_{side}.weight is missing")
    return {layer: (sides["A"], sides["B"]) for layer, sides in found.items()}


def _named(name: str) -> tuple[str, str]:
    """Return the layer and the side of a tensor called ``base_model.model.<layer>.lora_<side>.weight``."""
    for side in ("A", "B"):
        end = f".lora_{side}.weight"
        if name.startswith(_PREFIX) and name.endswith(end):
            return name[len(_PREFIX) : -len(end)], side
    raise _unsupported(
        f"tensor {_shown(name)} is not {_PREFIX}<layer>.lora_A.weight or lora_B.weight of a linear layer",
        WEIGHTS,
    )


def _check_targets(
    config: Mapping[str, Any], pairs: Mapping[str, object], layers: Mapping[str, tuple[int, int]]
) -> None:
    """Raise Permanent if a layer that ``target_modules`` names has no weights: the file is not complete.

    Names only: a pattern (a string) would be a regular expression of the adapter's author run here.
    """
    targets = config.get("target_modules")
    if (
        not isinstance(targets, list)
        or config.get("layers_to_transform") is not None
        or config.get("exclude_modules")
    ):
        return
    for target in targets:
        hit = [layer for layer in layers if layer == target or layer.endswith(f".{target}")]
        if not hit:
            raise _unsupported(
                f"target_modules names {_shown(target)}, which is no linear layer of this base model "
                "(embeddings and the head are not served)"
            )
        missing = next((layer for layer in hit if layer not in pairs), None)
        if missing is not None:
            raise _corrupt(
                WEIGHTS, f"tensor {_PREFIX}{missing}.lora_A.weight is missing, target_modules has it"
            )


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"  # noqa: PLR2004 - a message, not a copy of the file


def _unsupported(what: str, file: str = CONFIG) -> Permanent:
    return Permanent(f"{file}: {what}", reason="Unsupported")


def _corrupt(file: str, what: str) -> Permanent:
    return Permanent(f"{file}: {what}", reason="Corrupted")

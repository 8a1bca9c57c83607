"""Weights from safetensors into a model, as views of the mapped file wherever dtype and device allow.

A bf16 file served at bf16 costs no private memory: parameters are the file's own pages, shared by every process that
maps it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.families import set_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from llmos_operator.runtime.formats.checkpoint import Checkpoint
    from llmos_operator.runtime.formats.safetensors_file import TensorEntry

    Progress = Callable[[int], None]  # bytes loaded since the last call

# Tensors some publishers keep that the model computes itself or that serve training only.
_IGNORED = ("position_ids", "rotary_emb.inv_freq", "masked_bias", "attn.bias")


def name_map(model: nn.Module, available: Mapping[str, object]) -> dict[str, str]:
    """Return for each parameter and persistent buffer of ``model`` the name it has in the checkpoint.

    Publishers save with or without the base model's prefix; a head tied to the embedding may be left out. Raises
    Permanent(reason=Corrupted) naming what is missing.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, str] = {}
    missing = []
    for name in model.state_dict():
        candidates = [name, prefix + name, name.removeprefix(prefix), tied.get(name, name)]
        match = next((candidate for candidate in candidates if candidate in available), None)
        if match is not None:
            found[name] = match
        elif not name.startswith("pooler."):  # sentence encoders are published without it, and it is not used
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""  # noqa: PLR2004 - three examples are enough
        raise Permanent(
            f"the weights lack {', '.join(missing[:3])}{more}: not the files of this config.json",
            reason="Corrupted",
        )
    return found


def read_tensors(
    entries: Mapping[str, tuple[Path, TensorEntry]], names: Iterator[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by checkpoint name, mapped, opening each file once. Raises Permanent(reason=Corrupted)."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(entries[name][0], []).append(name)
    for path, wanted in by_file.items():
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                for name in wanted:
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise Permanent(
                f"{path.name} cannot be read: {error}; download it again", reason="Corrupted"
            ) from error


def load_plain(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> None:
    """Load all weights at ``dtype`` (fp32 or bf16) onto ``device``."""
    entries = checkpoint.tensors()
    wanted = name_map(model, entries)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    targets: dict[str, list[str]] = {}
    for name, source in wanted.items():
        targets.setdefault(source, []).append(name)
    for source, tensor in read_tensors(entries, iter(targets)):
        ready = tensor.to(device=device, dtype=dtype) if tensor.is_floating_point() else tensor.to(device)
        for name in targets[source]:
            if tuple(tensor.shape) != shapes[name]:
                raise Permanent(
                    f"tensor {source} has shape {tuple(tensor.shape)}, the config.json asks for {shapes[name]}",
                    reason="Corrupted",
                )
            set_tensor(model, name, ready)
        progress(entries[source][1].nbytes)
    drop_unused(model)
    for buffer_name, buffer in list(model.named_buffers()):
        set_tensor(model, buffer_name, buffer.to(device))


def drop_unused(model: nn.Module) -> None:
    """Remove a pooler that has no weights: it would fail on meta tensors and nothing here asks for it."""
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(parameter.is_meta for parameter in pooler.parameters()):
        model.pooler = None  # type: ignore[assignment]


def adjacent(entries: Mapping[str, tuple[Path, TensorEntry]], names: list[str]) -> bool:
    """Return whether tensors lie one after the other in one file, so that together they are one tensor."""
    found = [entries.get(name) for name in names]
    if any(one is None for one in found):
        return False
    present = [one for one in found if one is not None]
    return all(
        a[0] == b[0]
        and a[1].end == b[1].begin
        and a[1].dtype == b[1].dtype
        and a[1].shape[1:] == b[1].shape[1:]
        for a, b in pairwise(present)
    )

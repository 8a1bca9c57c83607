"""Weights from safetensors into a model, as views of the mapped file wherever dtype and device allow.

A bf16 file served at bf16 costs no private memory: parameters are the file's own pages, shared by every process that
maps it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.families import set_tensor
from llmos_operator.runtime.backends.fused import FusedLinear
from llmos_operator.runtime.backends.sharding import part_of
from llmos_operator.runtime.formats.mapped import MappedTensors

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from llmos_operator.runtime.backends.sharding import Cut
    from llmos_operator.runtime.formats.safetensors_file import TensorEntry

    Progress = Callable[[int], None]  # bytes loaded since the last call
    Entries = Mapping[str, tuple[Path, TensorEntry]]

_EXAMPLES = 3


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
        # A tied head is the embedding even where a copy of it was saved.
        candidates = [tied.get(name, name), name, prefix + name, name.removeprefix(prefix)]
        match = next((candidate for candidate in candidates if candidate in available), None)
        if match is None:
            missing.append(name)
        else:
            found[name] = match
    if missing:
        more = f" and {len(missing) - _EXAMPLES} more" if len(missing) > _EXAMPLES else ""
        raise Permanent(
            f"the weights lack {', '.join(missing[:_EXAMPLES])}{more}: not the files of this config.json",
            reason="Corrupted",
        )
    return found


def check_shapes(model: nn.Module, names: Mapping[str, str], entries: Entries) -> None:
    """Raise Permanent(reason=Corrupted) if a tensor's shape is not what the config asks for."""
    for name, tensor in model.state_dict().items():
        found = entries[names[name]][1].shape
        if found != tuple(tensor.shape):
            raise Permanent(
                f"tensor {names[name]} has shape {list(found)}, the config.json asks for {list(tensor.shape)}",
                reason="Corrupted",
            )


def adjacent(entries: Entries, names: Sequence[str]) -> bool:
    """Return whether tensors lie one after the other in one file, so that together they are one tensor."""
    found = [entries[name] for name in names]
    return all(
        a[0] == b[0]
        and a[1].end == b[1].begin
        and a[1].dtype == b[1].dtype
        and a[1].shape[1:] == b[1].shape[1:]
        for a, b in pairwise(found)
    )


def sources(model: nn.Module, names: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each tensor of a (fused) model with the checkpoint's tensors it is made of."""
    for name in model.state_dict():
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if isinstance(owner, FusedLinear):
            parent = owner_name.rpartition(".")[0]
            yield name, tuple(names[f"{parent}.{part}.{attribute}"] for part in owner.parts)
        else:
            yield name, (names[name],)


def load_plain(
    model: nn.Module,
    names: Mapping[str, str],
    entries: Entries,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> tuple[mmap.mmap, ...]:
    """Load all weights at ``dtype`` (fp32 or bf16) onto ``device``; return the mapped files."""
    mapped = MappedTensors(entries)
    shared: dict[tuple[str, ...], torch.Tensor] = {}
    for name, parts in list(sources(model, names)):
        if parts not in shared:
            mapped.read(parts, progress)
            tensor = mapped.view(parts)
            shared[parts] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
            if shared[parts] is not tensor:
                mapped.drop(parts)  # a copy is used: the source's pages beside it would be counted, too
        set_tensor(model, name, shared[parts])
    _move_buffers(model, device)
    return mapped.maps


def load_converted(
    model: nn.Module, entries: Entries, device: torch.device, progress: Progress
) -> tuple[mmap.mmap, ...]:
    """Load a file whose tensors have the model's own names (formats.quantize writes such); return the mapped files."""
    mapped = MappedTensors(entries)
    for name in model.state_dict():
        if name in entries:
            mapped.read([name], progress)
            set_tensor(model, name, mapped.view([name]).to(device))
    refuse_gaps(model)
    _move_buffers(model, device)
    return mapped.maps


def load_part(
    model: nn.Module,
    cuts: Mapping[str, Cut],
    names: Mapping[str, str],
    entries: Entries,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> None:
    """Load a rank's part of published weights at ``dtype``, as copies: of the file no page stays mapped."""
    shared: dict[tuple[str, ...], torch.Tensor] = {}
    for name, parts in list(sources(model, names)):
        if parts not in shared:
            mapped = MappedTensors(
                entries
            )  # one for each tensor: the pages of the last one go before the next is read
            found = [mapped.view([part]) for part in parts]
            whole = found[0] if len(found) == 1 else torch.cat(found)
            part = part_of(model, cuts, name, whole)
            shared[parts] = part.to(device, dtype) if part.is_floating_point() else part.to(device)
            progress(sum(entries[part][1].nbytes for part in parts))
        set_tensor(model, name, shared[parts])
    _move_buffers(model, device)


def load_converted_part(
    model: nn.Module, cuts: Mapping[str, Cut], entries: Entries, device: torch.device, progress: Progress
) -> None:
    """Load a rank's part of a converted file, as copies."""
    for name in model.state_dict():
        if name in entries:
            whole = MappedTensors(entries).view([name])
            set_tensor(model, name, part_of(model, cuts, name, whole).to(device))
            progress(entries[name][1].nbytes)
    refuse_gaps(model)
    _move_buffers(model, device)


def refuse_gaps(model: nn.Module) -> None:
    """Raise Permanent(reason=Corrupted) if a converted file has left a tensor without weights."""
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise Permanent(f"the converted file lacks {', '.join(left[:_EXAMPLES])}", reason="Corrupted")


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for name, buffer in list(model.named_buffers()):
        set_tensor(model, name, buffer.to(device))

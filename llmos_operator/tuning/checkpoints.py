"""Checkpoints of a run: everything a new process needs to go on as if nothing had happened.

    <place>/step-0000000120/state.safetensors    what learns, the optimiser's moments, the random state
    <place>/step-0000000120/state.json           step, numbers, and the sha256 of the other file

A checkpoint is written beside its place and renamed, so a folder with that name is whole; its sum is checked all the
same before it is believed. The newest two are kept. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import torch

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.formats.mapped import MappedTensors
from llmos_operator.runtime.formats.safetensors_file import StreamWriter, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

log = logger(__name__)

KEPT = 2
_NAME = re.compile(r"step-(\d{10})")
_TENSORS, STATE = "state.safetensors", "state.json"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """Where a run is. ``part_tokens`` and ``recompute`` decide how it computes, and with that the last bits."""

    step: int  # updates made
    part_tokens: int
    recompute: bool
    tokens: int = 0  # tokens read so far
    seconds: float = 0.0  # spent learning
    loss: float = 0.0  # of the last update, nats a token
    first_loss: float = 0.0
    validation_loss: float | None = None


class Checkpoints:
    """The checkpoints of one run in one folder."""

    def __init__(
        self, place: Path, fingerprint: str, written: Callable[[Path], None] = lambda _: None
    ) -> None:
        """``fingerprint`` tells runs apart: a checkpoint of another one is not taken, and not overwritten.

        ``written`` is told the folder of each that is whole, and may bring it elsewhere.
        """
        self._place = place
        self._fingerprint = fingerprint
        self._written = written

    def save(self, point: Point, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint and forget all but the newest two. Raises OSError, and what ``written`` raises."""
        self._place.mkdir(parents=True, exist_ok=True)
        target = self._place / f"step-{point.step:010}"
        partial = self._place / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        digest = write_tensors(partial / _TENSORS, tensors)
        state = {**asdict(point), "fingerprint": self._fingerprint, "sha256": digest}
        write_text(partial / STATE, json.dumps(state, indent=1) + "\n")
        shutil.rmtree(target, ignore_errors=True)  # of an attempt that went on from before it
        partial.rename(target)
        _sync(self._place)
        for old in self._found()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        self._written(target)

    def newest(self) -> tuple[Point, dict[str, Tensor]] | None:
        """Return the newest whole checkpoint, None if there is none.

        Raises Permanent(reason=InvalidSpec) if the folder holds those of another run.
        """
        for folder in self._found():
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("a checkpoint is damaged and is passed over", path=str(folder), detail=str(error))
        return None

    def _read(self, folder: Path) -> tuple[Point, dict[str, Tensor]]:
        state = json.loads((folder / STATE).read_bytes())
        if state["fingerprint"] != self._fingerprint:
            raise Permanent(
                f"fineTune.checkpoint.uri holds checkpoints of another run ({folder.name}): its model, data or settings "
                "differ; name an empty folder, or delete them",
                reason=Reason.INVALID_SPEC,
            )
        path = folder / _TENSORS
        found = _sha256(path)
        if found != state["sha256"]:
            raise ValueError(f"{path.name} has the sum {found}, {STATE} says {state['sha256']}")
        point = Point(**{field.name: state[field.name] for field in fields(Point)})
        return point, read_tensors(path)

    def _found(self) -> list[Path]:
        """Return the folders of checkpoints, newest first."""
        with contextlib.suppress(FileNotFoundError):
            names = sorted((p.name for p in self._place.iterdir() if _NAME.fullmatch(p.name)), reverse=True)
            return [self._place / name for name in names]
        return []


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    """Write tensors as safetensors, on disk under that name when it is whole; return the file's sha256.

    ``dtype`` is what they are written as; None leaves each as it is.
    """
    entries = [(name, _DTYPES[dtype or one.dtype], tuple(one.shape)) for name, one in tensors.items()]
    writer = StreamWriter(path, entries, metadata, alignment=1)
    with writer:
        for name, one in tensors.items():
            data = one.detach().to("cpu", dtype or one.dtype).contiguous().view(-1).view(torch.uint8)
            writer.write(name, data.numpy().data)
    return writer.sha256


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as copies. Raises Permanent(reason=Corrupted)."""
    entries = {tensor.name: (path, tensor) for tensor in read_header(path).tensors}
    mapped = MappedTensors(entries)
    return {name: mapped.view([name]).clone() for name in entries}


def write_text(path: Path, text: str) -> None:
    """Write a small file that appears whole, and is on disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

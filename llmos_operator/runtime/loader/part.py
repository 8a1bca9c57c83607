"""The load of one rank beside rank 0: its part of files that rank 0 has fetched, checked and converted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.clock import SystemClock
from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.checkpoint import open_checkpoint
from llmos_operator.runtime.formats.config import read_config
from llmos_operator.runtime.loader.converted import converted, opened
from llmos_operator.runtime.loader.pipeline import standard_folder, verify
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.loader.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.runtime.backends.build import Built
    from llmos_operator.runtime.backends.causal import CausalModel
    from llmos_operator.runtime.backends.collective import Group
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.ipc.orders import Build, Fetch


@dataclass(slots=True)
class Part:
    """What a rank computes with."""

    built: Built
    model: CausalModel
    group: Group

    @property
    def weights_bytes(self) -> int:
        """Bytes of the rank's own weights."""
        return self.built.weights_bytes

    def tune(self, known: Mapping[str, int]) -> None:
        """Take over what rank 0 has measured of quantised layers; measure what only this rank has."""
        from llmos_operator.runtime.backends.tuning import tune  # noqa: PLC0415 - torch

        tune(self.built.model, known)


@dataclass(frozen=True, slots=True)
class Files:
    """Where the files of a model are, as in `ipc.orders.Build`."""

    folder: str
    converted: str


def fetch(own: Load, order: Fetch) -> Files:
    """Have the files in this pod, as the load of a whole model would. Raises Permanent or Retryable."""
    from llmos_operator.runtime.backends import build  # noqa: PLC0415 - torch

    load = replace(own, format=order.format, digest=order.digest)
    stages = Stages(SystemClock(), lambda _: None)
    folder = standard_folder(resolve(load, stages), load, stages)
    checkpoint = open_checkpoint(folder)
    digest = verify(checkpoint, load, stages)
    if load.format not in build.CONVERTED:
        return Files(str(folder), "")
    empty = build.prepare(read_config(folder), checkpoint)
    empty.fuse(load.format, split=True)
    return Files(str(folder), str(converted(empty, load, digest, stages).checkpoint.folder))


def load_part(order: Build, rank: int, group: Group | None) -> Part:
    """Return the part of ``rank``. Raises Permanent or Retryable."""
    from llmos_operator.runtime.backends import build  # noqa: PLC0415 - torch

    load = order.load
    folder = Path(order.folder)
    build.use_threads(load.threads, load.here)
    empty = build.prepare(read_config(folder), open_checkpoint(folder))
    empty.fuse(load.format, split=True)
    device = build.choose_device(load.device, rank % load.here, load.here)
    met = group or build.meet(rank, load.ranks, device, order.meeting)
    entries = opened(Path(order.converted)).tensors() if order.converted else None
    built = build.load_weights(empty, load.format, entries, device, lambda _: None, met, load.pipeline)
    build.attach(
        built,
        empty,
        kv_fp32="fp32" in (load.kv_dtype, load.format),
        max_model_len=order.max_model_len,
        blocks=order.blocks,
        max_num_seqs=load.max_num_seqs,
    )
    if built.causal is None:
        raise Permanent("an encoder cannot be split over several devices", reason="Unsupported")
    return Part(built, built.causal, met)

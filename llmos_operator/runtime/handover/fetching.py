"""The model on the disk before vLLM starts, and the order by which it starts.

vLLM gets a folder, never a name to look up: what it opens was checked here. Sources, credentials, digests and copies on
the node are therefore those of every runtime, and the engine's container needs no way out of the cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.messages import AdapterReport
from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.checkpoint import open_checkpoint, refuse_pickle
from llmos_operator.runtime.formats.config import CODE_KEYS, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.runtime.ipc.messages import AdapterSource, Load
    from llmos_operator.runtime.loader.progress import Stages

ORDER, SOCKET, STARTS, STUCK = "order", "vllm.sock", "starts", "stuck"
# What a vLLM on CPUs takes beside weights and KV cache: API server, engine and compiled code (measured with 0.32).
CPU_BASE_BYTES = 2 << 30
LEAST_KV_BYTES = 64 << 20
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model that lies on the disk, checked."""

    folder: Path
    digest: str
    revision: str
    architecture: str
    weights_bytes: int
    cold: bool  # it came over the network just now


def fetch(load: Load, stages: Stages) -> Fetched:
    """Return the model of ``load``. Raises Permanent or Retryable; the stages say how far it came. Blocks."""
    from llmos_operator.runtime.loader.pipeline import verify  # noqa: PLC0415 - slow to import
    from llmos_operator.runtime.loader.sources import resolve  # noqa: PLC0415 - as above

    source = resolve(load, stages)
    if source.path.is_file():
        raise Permanent(
            f"{load.uri} is one file; engine vllm serves folders of safetensors (GGUF: engine builtin)",
            reason="Unsupported",
        )
    config = read_json(source.path / "config.json")
    code = sorted(CODE_KEYS & config.keys())
    if code:
        raise Permanent(
            f"config.json has {', '.join(code)}, which means code of the model's own; it is not run here",
            reason="UnsafeConfig",
        )
    checkpoint = open_checkpoint(source.path)
    digest = verify(checkpoint, load, stages)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    return Fetched(
        source.path,
        digest,
        source.revision or load.revision,
        architecture,
        checkpoint.total_bytes,
        bool(source.fetched),
    )


def fetch_adapter(source: AdapterSource, load: Load, stages: Stages) -> tuple[Path, AdapterReport]:
    """Return an adapter's folder and what is known of it. Raises Permanent or Retryable, naming the adapter. Blocks."""
    from llmos_operator.runtime.loader.sources import resolve  # noqa: PLC0415 - as above

    try:
        order = replace(load, uri=source.uri, revision="main", digest="", kept_dir="")
        folder = resolve(order, stages, files=_ADAPTER_FILES).path
        weights, rank = _adapter_files(folder, source.uri)
    except Permanent as error:
        raise Permanent(f"adapter {source.name!r}: {error}", reason=error.reason) from error
    size = weights.stat().st_size
    known = rank if isinstance(rank, int) and not isinstance(rank, bool) else 0
    if known > load.max_adapter_rank:
        text = f"adapter {source.name!r} has rank {known}; room is kept for rank {load.max_adapter_rank} (spec.adapterLimits.maxRank)"
        raise Permanent(text, reason="Unsupported")
    return folder, AdapterReport(
        name=source.name, uri=source.uri, digest=_digest(weights), rank=known, weights_bytes=size
    )


def _adapter_files(folder: Path, uri: str) -> tuple[Path, Any]:
    """Return the weights' file, which is no pickle, and the rank as the configuration has it."""
    weights = folder / _ADAPTER_FILES[1]
    if not weights.is_file():
        raise Permanent(f"{uri} has no {_ADAPTER_FILES[1]}", reason="ModelNotFound")
    refuse_pickle(weights)
    return weights, read_json(folder / _ADAPTER_FILES[0]).get("r")


def order(model: Fetched, *, memory_limit: int, on_host: bool) -> list[str]:
    """Return the lines of the order: the model, and the size of a KV cache that lies in the host's memory.

    On a device it follows from `--gpu-memory-utilization`, which the pod says. vLLM on CPUs would take it for a part of
    the whole machine, so there the cache gets what the limit leaves beside weights and base.
    """
    lines = [str(model.folder)]
    if on_host and memory_limit:
        room = memory_limit - model.weights_bytes - CPU_BASE_BYTES
        lines += ["--kv-cache-memory-bytes", str(max(LEAST_KV_BYTES, room))]
    return lines


def give(folder: Path, lines: list[str]) -> None:
    """Write the order, as a whole or not at all: the other container waits for it."""
    partial = folder / f"{ORDER}.partial"
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(folder / ORDER)


def starts(folder: Path) -> int:
    """Return how often vLLM was started; 0 before the first time."""
    try:
        return (folder / STARTS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return f"sha256:{found.hexdigest()}"

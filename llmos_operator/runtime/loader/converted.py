"""The cache of converted weights: ``<cache>/quant/<digest>/<format>/model.safetensors`` with what is known of it.

One process of a node converts, the others wait on a file lock and find the result. Beside the file stands record.json:
its sha256 by size and time, the packing it was made for, and its quality once measured. An entry that does not match
its record is made again.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.errors import Permanent
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.formats.checkpoint import Checkpoint
from llmos_operator.runtime.formats.safetensors_file import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.runtime.backends.build import Empty
    from llmos_operator.runtime.backends.quality import Quality
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages

log = logger(__name__)

VERSION = 2  # raised when the conversion changes
_FILE, _RECORD = "model.safetensors", "record.json"


@dataclass(slots=True)
class Converted:
    """A converted checkpoint in the cache."""

    checkpoint: Checkpoint
    record: Path
    fresh: bool  # made by this load

    def quality(self) -> Quality | None:
        """Return what the format costs, if it has been measured."""
        from llmos_operator.runtime.backends.quality import Quality  # noqa: PLC0415 - torch

        found = _read(self.record).get("quality")
        return Quality(**found) if isinstance(found, dict) else None

    def remember(self, quality: Quality) -> None:
        """Keep a measured quality beside the file."""
        values = {name: getattr(quality, name) for name in quality.__slots__}
        _write(self.record, {**_read(self.record), "quality": values})

    def crossovers(self, threads: int) -> dict[str, int]:
        """Return what was measured for so many threads (see backends.tuning)."""
        found = _read(self.record).get("crossovers")
        known = found.get(str(threads)) if isinstance(found, dict) else None
        return {str(k): int(v) for k, v in known.items()} if isinstance(known, dict) else {}

    def remember_crossovers(self, threads: int, results: dict[str, int]) -> None:
        """Keep measured crossovers beside the file."""
        record = _read(self.record)
        kept = record.get("crossovers")
        _write(
            self.record,
            {**record, "crossovers": {**(kept if isinstance(kept, dict) else {}), str(threads): results}},
        )


def converted(empty: Empty, load: Load, digest: str, stages: Stages, *, variant: str = "") -> Converted:
    """Return the weights of ``empty`` at ``load.format``, converting them if the cache has none.

    Models that are served are fused before; ``variant`` names the entry of one that is built otherwise.

    Raises Permanent(reason=Corrupted) for a bad source, OSError for a full disk.
    """
    from llmos_operator.runtime.formats.grids import packing_name  # noqa: PLC0415 - torch

    root = Path(load.cache_dir) if load.cache_dir else Path(tempfile.gettempdir()) / "llmos-cache"
    folder = root / "quant" / digest.removeprefix("sha256:") / (load.format + variant)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"version": VERSION, "format": load.format, "packing": packing_name(), "source": digest}
    stages.enter(RuntimeState.QUANTIZING, sum(entry.nbytes for _, entry in empty.entries.values()))
    with _locked(folder.with_name(folder.name + ".lock")):
        found = _usable(folder, wanted)
        if found is not None:
            return Converted(found, folder / _RECORD, fresh=False)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return _make(empty, folder, wanted, stages)


def opened(folder: Path) -> Checkpoint:
    """Return the converted weights in a folder of the cache, which `converted` has made or found whole."""
    return Checkpoint(folder, (read_header(folder / _FILE),))


def _make(empty: Empty, folder: Path, wanted: dict[str, Any], stages: Stages) -> Converted:
    from llmos_operator.runtime.formats.quantize import convert  # noqa: PLC0415 - torch

    path = folder / _FILE
    metadata = {key: str(value) for key, value in wanted.items()}
    digest = convert(
        empty.units(wanted["format"]), empty.entries, path, metadata, stages.advance, empty.reader()
    )
    stat = path.stat()
    _write(folder / _RECORD, {**wanted, "sha256": digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return Converted(opened(folder), folder / _RECORD, fresh=True)


def _usable(folder: Path, wanted: dict[str, Any]) -> Checkpoint | None:
    """Return the cached checkpoint if it is whole and of the kind that is wanted."""
    record, path = _read(folder / _RECORD), folder / _FILE
    if not path.is_file() or any(record.get(key) != value for key, value in wanted.items()):
        return None
    stat = path.stat()
    try:
        file = read_header(path)
    except Permanent as error:
        log.warning("cached weights are damaged and are made again", path=str(path), detail=str(error))
        return None
    if stat.st_size != record.get("size") or stat.st_mtime_ns != record.get("mtime_ns"):
        log.warning("cached weights have changed since they were made and are made again", path=str(path))
        return None
    return Checkpoint(folder, (file,))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)

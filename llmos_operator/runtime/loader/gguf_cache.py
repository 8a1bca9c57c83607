"""GGUF files converted once: ``<cache>/converted/<digest of the file>/``."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.formats.gguf_convert import convert_gguf

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages

_CHUNK = 8 << 20


def converted_gguf(source: Path, load: Load, stages: Stages) -> Path:
    """Return the standard folder made from ``source``; the first call of a node makes it."""
    stages.enter(RuntimeState.VERIFYING, source.stat().st_size)
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            stages.advance(len(chunk))
    root = Path(load.cache_dir or tempfile.gettempdir()) / "converted"
    root.mkdir(parents=True, exist_ok=True)
    final = root / digest.hexdigest()
    with (root / f"{digest.hexdigest()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runtimes of a node: one converts, the others wait
        if final.is_dir():
            return final
        stages.enter(RuntimeState.QUANTIZING)
        with tempfile.TemporaryDirectory(dir=root, prefix="making-") as work:
            made = Path(work) / "model"
            made.mkdir(mode=0o755)
            convert_gguf(source, made, stages.at)
            made.rename(final)
    return final

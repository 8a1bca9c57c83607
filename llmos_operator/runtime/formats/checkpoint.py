"""The weight files of a model folder: found, told apart by content, checked, and given one digest.

A name proves nothing: a file called model.safetensors that begins like a pickle or a zip archive is refused as such
before any library sees it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.runtime.formats.config import read_json
from llmos_operator.runtime.formats.gguf_file import MAGIC as GGUF_MAGIC
from llmos_operator.runtime.formats.safetensors_file import SafetensorsFile, TensorEntry, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Progress = Callable[[int], None]  # bytes read since the last call

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_NAMES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_PICKLE_HEADS = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"\x1f\x8b",
    b"7z\xbc\xaf",
)
_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one model folder; ``files`` in the order of their names."""

    folder: Path
    files: tuple[SafetensorsFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for file in self.files for tensor in file.tensors)

    def tensors(self) -> Mapping[str, tuple[Path, TensorEntry]]:
        """Return every tensor by name with its file."""
        return {tensor.name: (file.path, tensor) for file in self.files for tensor in file.tensors}


def refuse_pickle(path: Path) -> None:
    """Raise Permanent(reason=UnsafeFormat) if ``path`` begins like a pickle or an archive that holds one."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(_PICKLE_HEADS):
        raise Permanent(
            f"{path.name} is a pickle or an archive, which can run code when opened; only safetensors and GGUF are "
            "opened: convert the weights to safetensors",
            reason="UnsafeFormat",
        )


def is_gguf(path: Path) -> bool:
    """Return whether the file's content says GGUF."""
    with path.open("rb") as file:
        return file.read(4) == GGUF_MAGIC


def find_gguf(folder: Path) -> Path | None:
    """Return the folder's GGUF file when it has no safetensors; several are ambiguous (Permanent)."""
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return None
    files = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise Permanent(
            f"several GGUF files ({names}); name one of them in the model's uri", reason="Unsupported"
        )
    return files[0] if files else None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checked headers of a folder's safetensors. Raises Permanent (UnsafeFormat, Corrupted, ModelNotFound)."""
    names = _weight_names(folder)
    files = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise Permanent(
                f"{INDEX} names {name}, which is not there: the download is incomplete", reason="Corrupted"
            )
        refuse_pickle(path)
        files.append(read_header(path))
    return Checkpoint(folder, tuple(files))


def _weight_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX, limit=64 << 20).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Permanent(f"{INDEX} has no weight_map", reason="Corrupted")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if "/" in name or "\\" in name or name.startswith(".") or not name.endswith(".safetensors"):
                raise Permanent(
                    f"{INDEX} names {name!r}, which is no plain safetensors file", reason="Corrupted"
                )
        return names
    if (folder / SINGLE).is_file():
        return [SINGLE]
    found = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_NAMES)
    if found:
        raise Permanent(
            f"the only weights are {', '.join(found[:5])}: pickle-based formats can run code when opened; "
            "convert the model to safetensors",
            reason="UnsafeFormat",
        )
    raise Permanent(f"no {SINGLE} and no {INDEX} in the model", reason="ModelNotFound")


def digest_of(checkpoint: Checkpoint, cache: Path | None, progress: Progress) -> str:
    """Return "sha256:…" over the weight files' sha256 sums, reading every byte once in the life of the files.

    Sums are remembered in ``cache`` (a JSON file) by name, size and modification time; an entry that does not match
    is computed again.
    """
    known = _read_known(cache)
    lines, fresh = [], {}
    for file in checkpoint.files:
        stat = file.path.stat()
        key = f"{file.path.name}:{stat.st_size}:{stat.st_mtime_ns}"
        if key in known:
            progress(stat.st_size)
        fresh[key] = known.get(key) or _sha256(file.path, progress)
        lines.append(fresh[key])
    if cache is not None and fresh != known:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(cache.name + ".partial")
        partial.write_text(json.dumps(fresh), encoding="utf-8")
        partial.replace(cache)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_known(cache: Path | None) -> dict[str, str]:
    if cache is None or not cache.is_file():
        return {}
    try:
        return {str(key): str(value) for key, value in read_json(cache).items()}
    except Permanent:
        return {}  # a damaged memory is no memory


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()

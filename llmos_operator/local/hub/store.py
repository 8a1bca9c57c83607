"""Repositories as folders: which files they have, under which identities.

A repository has one revision, `main`; its commit is derived from the contents, so it changes when a file does. Large
files are identified by SHA-256, small ones as git does, which is what clients expect of a hub.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAIN = "main"
_LARGE_BYTES = 10 << 20
_LARGE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".onnx")
_CHUNK = 1 << 20
_ACCESS_FILE = "access.json"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a repository. `sha256` is "" for small files."""

    path: str
    size: int
    oid: str
    sha256: str

    @property
    def etag(self) -> str:
        """What identifies the contents for clients."""
        return self.sha256 or self.oid


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at its only revision."""

    name: str
    root: Path
    commit: str
    files: dict[str, StoredFile]

    def at(self, revision: str) -> bool:
        """Return whether ``revision`` names what is here."""
        return revision in {MAIN, self.commit}


class Store:
    """Reads repositories from ``root``. Hashes are kept while a file's size and time of change stay the same."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hashes: dict[Path, tuple[tuple[int, int], StoredFile]] = {}

    def names(self) -> list[str]:
        """Return all repositories."""
        if not self._root.is_dir():
            return []
        return sorted(
            f"{organisation.name}/{folder.name}"
            for organisation in self._root.iterdir()
            if organisation.is_dir() and not organisation.name.startswith(".")
            for folder in organisation.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        )

    def repository(self, name: str) -> Repository | None:
        """Return a repository as its files are now, None if there is none of that name. Reads files it has not seen."""
        organisation, _, model = name.partition("/")
        if not _plain(organisation) or not _plain(model):
            return None
        folder = self._root / organisation / model
        if not folder.is_dir():
            return None
        files = {}
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                entry = self._file(path, str(relative))
                files[entry.path] = entry
        listing = "\n".join(f"{entry.path} {entry.etag}" for entry in files.values())
        commit = hashlib.sha1(f"{name}\n{listing}".encode(), usedforsecurity=False).hexdigest()
        return Repository(name, folder, commit, files)

    def token(self, name: str) -> str:
        """Return the token a gated repository asks for, "" if it is open.

        ``STORE/.access/access.json`` maps repository names to tokens.
        """
        path = self._root / ".access" / _ACCESS_FILE
        if not path.is_file():
            return ""
        return str(json.loads(path.read_text(encoding="utf-8")).get(name, ""))

    def _file(self, path: Path, relative: str) -> StoredFile:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        known = self._hashes.get(path)
        if known is None or known[0] != stamp:
            known = self._hashes[path] = (stamp, _hashed(path, relative, status.st_size))
        return known[1]


def _hashed(path: Path, relative: str, size: int) -> StoredFile:
    large = size >= _LARGE_BYTES or path.suffix in _LARGE_SUFFIXES
    contents = hashlib.sha256() if large else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            contents.update(block)
    if not large:
        return StoredFile(relative, size, contents.hexdigest(), "")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{contents.hexdigest()}\nsize {size}\n"
    oid = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode(), usedforsecurity=False).hexdigest()
    return StoredFile(relative, size, oid, contents.hexdigest())


def _plain(part: str) -> bool:
    return bool(part) and "/" not in part and not part.startswith(".")

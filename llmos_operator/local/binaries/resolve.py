"""Find or make the control plane's programs: named folder, cache, published release, own build, in this order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmos_operator.errors import Permanent
from llmos_operator.local.binaries import versions

ENV_ASSETS = "KUBEBUILDER_ASSETS"

Progress = Callable[[str, str], None]
"""Called with (binary, what happens to it)."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of the programs by name."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> str:
        return str(self.paths[name])


def _executable(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.is_file() and os.access(path, os.X_OK) else None


def find(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Path]:
    """Return the programs of ``names`` present in ``folders``; the first folder wins."""
    found: dict[str, Path] = {}
    for name in names:
        for folder in folders:
            if path := _executable(folder, name):
                found[name] = path
                break
    return found


def quiet(_name: str, _what: str) -> None:
    """Report nothing."""


def resolve(names: Sequence[str] = versions.NAMES, progress: Progress = quiet) -> Binaries:
    """Return the programs of ``names``, downloading or building what is missing.

    Raises :class:`Permanent` with what to do when a program cannot be had.
    """
    cache = versions.cache_folder()
    folders = [cache]
    if assets := os.environ.get(ENV_ASSETS):
        folders.insert(0, Path(assets))
    found = find(names, folders)
    missing = [name for name in names if name not in found]
    if missing:
        msg = f"no {', '.join(missing)} in {', '.join(map(str, folders))}"
        raise Permanent(msg, reason="BinaryMissing")
    for name, path in found.items():
        progress(name, f"found {path}")
    return Binaries(found)

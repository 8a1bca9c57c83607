"""Find or make the control plane's programs: named folder, cache, published release, own build, in this order."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.local.binaries import versions
from llmos_operator.local.binaries.building import build
from llmos_operator.local.binaries.published import Downloader, published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Progress = Callable[[str, str], None]  # (program, what happens to it)

ENV_ASSETS = "KUBEBUILDER_ASSETS"
ENV_DOWNLOAD = "LLMOS_DOWNLOAD"  # "0": build what is missing without asking any release host


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


def resolve(
    names: Sequence[str] = versions.NAMES, progress: Progress = quiet, cache: Path | None = None
) -> Binaries:
    """Return the programs of ``names``, downloading or building what is missing.

    ``cache`` is the folder they are kept in, by default that of the control plane's programs. Raises :class:`Permanent` with what to do when a program cannot be had.
    """
    cache = cache or versions.cache_folder()
    folders = [Path(os.environ[ENV_ASSETS]), cache] if os.environ.get(ENV_ASSETS) else [cache]
    found = find(names, folders)
    missing = [name for name in names if name not in found]
    if missing:
        downloader = Downloader(cache, progress)
        with _only_one(cache, progress, missing[0]):
            for name in missing:  # another process may have made some while this one waited
                found[name] = _executable(cache, name) or _obtain(name, downloader, cache, progress)
    return Binaries(found)


def _obtain(name: str, downloader: Downloader, cache: Path, progress: Progress) -> Path:
    reason = "downloads are switched off"
    if os.environ.get(ENV_DOWNLOAD, "1") != "0":
        try:
            return downloader.fetch(name, published(name, *versions.go_platform()))
        except Retryable as error:
            reason = str(error)
    progress(name, f"not downloaded ({reason})")
    try:
        return build(name, cache, progress)
    except Permanent as error:
        if error.reason != "GoMissing":
            raise
        msg = (
            f"{name} is missing and cannot be had.\n  download: {reason}\n  build: {error}\n"
            f"Or set {ENV_ASSETS} to a folder that has {name} {_version(name)}."
        )
        raise Permanent(msg, reason="BinaryMissing") from error


def _version(name: str) -> str:
    known = {"etcd": versions.ETCD, "helm": versions.HELM, "coredns": versions.COREDNS}
    return known.get(name, versions.KUBERNETES)


@contextmanager
def _only_one(cache: Path, progress: Progress, name: str) -> Iterator[None]:
    """Let one process fill the cache at a time."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(name, "waiting for another process that downloads or builds")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

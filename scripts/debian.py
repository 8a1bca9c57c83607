"""Programs for tests from the distribution's own packages, unpacked into the user's cache and never installed.

apt verifies packages against the distribution's signatures; nothing of the system changes, and no privilege is needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.local.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NO_PACKAGE = "NoPackage"  # reason: this machine's distribution has no such package


def unpacked(name: str, package: str, programs: Sequence[str], *, advice: str, whole: bool = False) -> Path:
    """Return the folder of an unpacked package, as `/` would have it, unpacking it if need be.

    ``programs`` are paths in it that must be there; ``whole`` takes along what this machine lacks of its dependencies.
    Raises `Permanent` with ``advice``; its reason is `NO_PACKAGE` where the machine is not of the Debian family.
    """
    folder = cache_root() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests and `make` may ask at once
        return _kept(folder) or _unpack(folder, package, programs, advice, whole=whole)


def told(found: Callable[[], Iterable[str]]) -> int:
    """Print the lines that tell what is there; return 0 if it is, or cannot be for want of a package."""
    try:
        for line in found():
            sys.stdout.write(f"{line}\n")
    except Permanent as error:
        sys.stderr.write(f"{error}\n")
        return 0 if error.reason == NO_PACKAGE else 1
    return 0


def _kept(folder: Path) -> Path | None:
    """Return an unpacked package; its folder has the package's version as its name."""
    kept = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return max(kept, key=lambda path: path.stat().st_mtime, default=None)


def _unpack(folder: Path, package: str, programs: Sequence[str], advice: str, *, whole: bool) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Permanent(f"No {package} on PATH and no package of it here. {advice}", reason=NO_PACKAGE)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as place:
        work = Path(place)
        found = _download(work, package, advice, whole=whole)
        own = next(one for one in found if one.name.startswith(f"{package}_"))
        version = _run("dpkg-deb", "--field", str(own), "Version", cwd=work, advice=advice).strip()
        for one in found:
            _run("dpkg-deb", "--extract", str(one), str(work / "root"), cwd=work, advice=advice)
        for name in programs:
            if not os.access(work / "root" / name, os.X_OK):
                raise Permanent(f"Package {package} {version} has no `{name}`. {advice}", reason="NoProgram")
        return (work / "root").rename(folder / version)


def _download(work: Path, package: str, advice: str, *, whole: bool) -> list[Path]:
    """Return the downloaded packages. Lists the machine lacks are read into ``work``."""
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    command = (
        ("install", "--download-only", "--no-install-recommends", "--yes", "--reinstall", package)
        if whole
        else ("download", package)
    )
    try:
        _run("apt-get", *_options(work), *command, cwd=work, advice=advice)
    except Permanent:
        own = ("-o", f"Dir::State::lists={work / 'lists'}")
        (work / "lists" / "partial").mkdir(parents=True)
        _run("apt-get", *_options(work), *own, "update", cwd=work, advice=advice)
        _run("apt-get", *_options(work), *own, *command, cwd=work, advice=advice)
    return sorted((work / "cache" / "archives" if whole else work).glob("*.deb"))


def _options(work: Path) -> tuple[str, ...]:
    """Without the system's lock, since nothing is installed; as root apt would drop to a user that may not write here."""
    own = ("-q", "-o", f"Dir::Cache={work / 'cache'}", "-o", "Debug::NoLocking=true")
    return (*own, "-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else own


def _run(*command: str, cwd: Path, advice: str) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-3:]
        raise Permanent(f"`{' '.join(command)}` failed: {' '.join(words)}\n{advice}", reason="NotUnpacked")
    return done.stdout

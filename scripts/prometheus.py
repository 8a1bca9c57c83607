"""Find or make `prometheus` and `promtool`, which check the chart's rules and dashboards.

They come from PATH, else from the distribution's own package, unpacked into the user's cache and never installed: apt
verifies it against the distribution's signatures. Run by `make artifacts` and by the first test that needs one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmos_operator.errors import Permanent
from llmos_operator.local.layout import cache_root

NAMES = ("prometheus", "promtool")
PACKAGE = "prometheus"
NO_PACKAGE = "NoPackage"  # reason: this machine's distribution has no such package
_ADVICE = "Install Prometheus (2.40 or newer) so that `prometheus` and `promtool` are on PATH."


def resolve(name: str) -> Path:
    """Return the path of ``name``, one of `NAMES`, unpacking the package if need be.

    Raises `Permanent` with what to install; its reason is `NO_PACKAGE` where the machine is not of the Debian family.
    """
    if found := shutil.which(name):
        return Path(found)
    folder = cache_root() / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests and `make` may ask at once
        return (_kept(folder) or _unpack(folder)) / "usr" / "bin" / name


def _kept(folder: Path) -> Path | None:
    """Return an unpacked package; its folder has the package's version as its name."""
    kept = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return max(kept, key=lambda path: path.stat().st_mtime, default=None)


def _unpack(folder: Path) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Permanent(f"No `promtool` on PATH and no package of it here. {_ADVICE}", reason=NO_PACKAGE)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as place:
        work = Path(place)
        package = _download(work)
        version = _run("dpkg-deb", "--field", str(package), "Version", cwd=work).strip()
        _run("dpkg-deb", "--extract", str(package), str(work / "root"), cwd=work)
        for name in NAMES:
            if not os.access(work / "root" / "usr" / "bin" / name, os.X_OK):
                raise Permanent(f"Package {PACKAGE} {version} has no `{name}`. {_ADVICE}", reason="NoProgram")
        return (work / "root").rename(folder / version)


def _download(work: Path) -> Path:
    """Return the downloaded package. Lists the machine lacks are read into ``work``; nothing of the system changes."""
    try:
        _run("apt-get", *_options(work), "download", PACKAGE, cwd=work)
    except Permanent:
        own = ("-o", f"Dir::State::lists={work / 'lists'}")
        (work / "lists" / "partial").mkdir(parents=True)
        _run("apt-get", *_options(work), *own, "update", cwd=work)
        _run("apt-get", *_options(work), *own, "download", PACKAGE, cwd=work)
    return next(work.glob("*.deb"))


def _options(work: Path) -> tuple[str, ...]:
    """As root apt would drop to a user that may not write here."""
    own = ("-q", "-o", f"Dir::Cache={work / 'cache'}")
    return (*own, "-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else own


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-3:]
        raise Permanent(f"`{' '.join(command)}` failed: {' '.join(words)}\n{_ADVICE}", reason="NotUnpacked")
    return done.stdout


def main() -> int:
    """Make both; return 0 if they are there or cannot be for want of a package."""
    try:
        for name in NAMES:
            sys.stdout.write(f"{name}: {resolve(name)}\n")
    except Permanent as error:
        sys.stderr.write(f"{error}\n")
        return 0 if error.reason == NO_PACKAGE else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

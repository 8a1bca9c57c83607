"""Root file systems from the distribution's own packages: the node's, and the one images stand on.

apt resolves the packages against an empty system and verifies them; they are unpacked, their scripts are not run, and
nothing is installed on this machine. So a root holds exactly what its packages need.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from scripts.realnode.layout import cache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# usr-is-merged: without it apt takes a whole Perl to merge a /usr that is merged below.
NODE_PACKAGES = (
    "busybox-static",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "iproute2",
    "iptables",
    "libpython3-stdlib",
    "mount",
    "nftables",
    "python3-minimal",
    "runc",
    "usr-is-merged",
)
BASE_PACKAGES = ("ca-certificates", "libpython3-stdlib", "libstdc++6", "python3-minimal", "usr-is-merged")
BUSYBOX_PACKAGES = ("busybox-static",)

_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_LEAN = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")
# What the packages' scripts would have linked (update-alternatives), link -> target.
NODE_LINKS = {
    "usr/sbin/iptables": "xtables-nft-multi",
    "usr/sbin/iptables-save": "xtables-nft-multi",
    "usr/sbin/iptables-restore": "xtables-nft-multi",
    "usr/sbin/ip6tables": "xtables-nft-multi",
    "usr/sbin/ip6tables-save": "xtables-nft-multi",
    "usr/sbin/ip6tables-restore": "xtables-nft-multi",
}


def root_of(
    name: str,
    packages: Sequence[str],
    links: Mapping[str, str] | None = None,
    *,
    strip: Sequence[str] = (),
    command: Sequence[str] = (),
) -> Path:
    """Return the folder with ``packages`` and all they depend on, made once into the cache.

    ``strip`` are paths left out again, ``command`` is run in it at last. Raises :class:`Permanent` where there is no apt or it cannot deliver.
    """
    links = links or {}
    made_of = (sorted(packages), sorted(links.items()), strip, *([command] if command else []))
    recipe = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    folder = cache() / "roots" / f"{name}-{recipe}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(folder, packages, links, strip, command)
    return folder


def _make(
    folder: Path,
    packages: Sequence[str],
    links: Mapping[str, str],
    strip: Sequence[str],
    command: Sequence[str],
) -> None:
    for program in ("apt-get", "dpkg-deb", "tar"):
        if not shutil.which(program):
            msg = f"no `{program}` here: the node's root is made of packages of Debian or Ubuntu"
            raise Permanent(msg, reason="NoPackage")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as place:
        work = Path(place)
        root = work / "root"
        for one in _MERGED:
            (root / "usr" / one).mkdir(parents=True)
            (root / one).symlink_to(f"usr/{one}")
        for archive in _download(work, packages):
            _extract(archive, root)
        for link, target in links.items():
            (root / link).unlink(missing_ok=True)
            (root / link).symlink_to(target)
        for path in (*_LEAN, *strip):
            for found in root.glob(path):
                shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()
        _accounts(root)
        if command and (error := _run(["chroot", str(root), *command])):
            raise Permanent(f"{command[0]} in a root of packages failed: {error}", reason="NotUnpacked")
        root.rename(folder)


def _download(work: Path, packages: Sequence[str]) -> list[Path]:
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    (work / "status").touch()
    options = [
        *("-q", "-o", f"Dir::Cache={work / 'cache'}", "-o", f"Dir::State::status={work / 'status'}"),
        *("-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User=root"),
    ]
    command = ["install", "--download-only", "--no-install-recommends", "--yes", *packages]
    if _run(["apt-get", *options, *command]) is not None:
        own = ["-o", f"Dir::State::lists={work / 'lists'}"]
        (work / "lists" / "partial").mkdir(parents=True)
        for words in (["update"], command):
            if error := _run(["apt-get", *options, *own, *words]):
                raise Permanent(f"apt-get {words[0]} failed: {error}", reason="NotUnpacked")
    return sorted((work / "cache" / "archives").glob("*.deb"))


def _extract(archive: Path, root: Path) -> None:
    """Unpack one package. A folder of it that is a link in the root stays a link: /usr is merged."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as source:
        words = ["tar", "-x", "--keep-directory-symlink", "--numeric-owner", "-C", str(root)]
        done = subprocess.run(words, stdin=source.stdout, capture_output=True, text=True, check=False)
    if done.returncode or source.returncode:
        raise Permanent(f"{archive.name} cannot be unpacked: {done.stderr.strip()}", reason="NotUnpacked")


def _accounts(root: Path) -> None:
    """Write the accounts every system has, and the trusted authorities as one file, as the packages' scripts would."""
    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    authorities = sorted((root / "usr/share/ca-certificates").glob("**/*.crt"))
    if authorities:
        bundle = etc / "ssl" / "certs" / "ca-certificates.crt"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_bytes(b"".join(one.read_bytes() for one in authorities))
    for folder, mode in (("tmp", 0o1777), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(mode)


def _run(words: Sequence[str]) -> str | None:
    """Run a command; return None if it worked, else its last words."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    return " ".join(done.stderr.strip().splitlines()[-3:]) or "failed" if done.returncode else None

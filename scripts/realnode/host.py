"""What the node takes of the machine: a control group, a cable, two routes. All of it is given back.

Everything that could stand in the way is looked at before anything is done, and said in words.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from scripts.realnode import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GROUPS = Path("/sys/fs/cgroup")
_NEEDED = ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer")
_CAP_SYS_ADMIN = 21
_POLL_SECONDS = 0.05


class CannotHere(Permanent):
    """This machine cannot carry a node of its own; the text says why. Not a failure: tests are skipped with it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no node can be made here: {why}", reason="CannotHere")


def require_able() -> None:
    """Raise :class:`CannotHere` with the first thing that is missing."""
    if not sys.platform.startswith("linux"):
        raise CannotHere(f"it needs Linux, this is {sys.platform}")
    if os.geteuid() != 0:
        raise CannotHere("it needs root, for namespaces and mounts (or set KUBECONFIG to a cluster you have)")
    if not _capabilities() >> _CAP_SYS_ADMIN & 1:
        raise CannotHere("it needs the capability CAP_SYS_ADMIN, which this container was not given")
    for program in ("unshare", "nsenter", "pivot_root", "mount", "ip", "apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise CannotHere(f"there is no program `{program}`")
    missing = [name for name in _NEEDED if not (GROUPS / name / "cgroup.procs").exists()]
    if missing:
        what = ", ".join(missing)
        raise CannotHere(
            f"it was tried with control groups of version 1 only, and there is no v1 {what}; use Docker and kind"
        )
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        raise CannotHere("the kernel has no overlay file system")
    for route in _ip("route", "show").splitlines():
        words = route.split()
        if words[0].startswith(("10.88.", "10.89.")) and layout.NAME not in words:
            raise CannotHere(f"the addresses of its network are in use: {route.strip()}")


def _capabilities() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapEff")), 16)


def groups() -> Iterator[Path]:
    """Yield the node's control group in every hierarchy of version 1."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers:
            yield GROUPS / controllers.removeprefix("name=") / own.lstrip("/") / layout.NAME


def make_groups() -> list[Path]:
    """Make the node's control groups and return them."""
    made = list(groups())
    for group in made:
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, and nothing may run without
            if (group / setting).exists():
                (group / setting).write_text((group.parent / setting).read_text())
        if (group / "memory.use_hierarchy").exists() and (
            group / "memory.use_hierarchy"
        ).read_text().strip() == "0":
            (group / "memory.use_hierarchy").write_text("1")
    return made


def remove_groups(made: Iterable[Path], timeout: float = 10.0) -> None:
    """Remove control groups, which the node's end has emptied; the kernel may take a moment."""
    deadline = time.monotonic() + timeout
    for group in made:
        while group.exists():
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            if group.exists():
                if time.monotonic() > deadline:
                    raise Permanent(f"control group {group} is still in use", reason="GroupBusy")
                time.sleep(_POLL_SECONDS)


def plug_in(pid: int) -> None:
    """Lay the cable from the machine to the network namespace of ``pid``, and route the node's ranges along it."""
    _ip("link", "add", layout.NAME, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _ip("address", "add", f"{layout.HOST_ADDRESS}/{layout.PREFIX}", "dev", layout.NAME)
    _ip("link", "set", layout.NAME, "up")
    _ip("route", "add", layout.RANGES, "via", layout.NODE_ADDRESS, "dev", layout.NAME)


def unplug() -> None:
    """Take the cable away, with its routes; no error if the end of the node already has."""
    with contextlib.suppress(Permanent):
        _ip("link", "delete", layout.NAME)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Permanent(f"ip {' '.join(words)}: {done.stderr.strip()}", reason="NetworkFailed")
    return done.stdout

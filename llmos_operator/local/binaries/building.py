"""Programs built from the pinned Go modules in tools/: the way where nothing can be downloaded.

The modules come through Go's own module cache or proxy and are verified by go.sum.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.local.binaries import versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TICK_SECONDS = 5.0
_TAIL_LINES = 15

# Program -> (module below tools/, package, minutes it takes on two cores from an empty cache).
PACKAGES: dict[str, tuple[str, str, float]] = {
    "etcd": ("controlplane", "go.etcd.io/etcd/server/v3", 0.3),
    "kube-apiserver": ("controlplane", "k8s.io/kubernetes/cmd/kube-apiserver", 4.5),
    "kube-controller-manager": ("controlplane", "k8s.io/kubernetes/cmd/kube-controller-manager", 1.2),
    "kube-scheduler": ("controlplane", "k8s.io/kubernetes/cmd/kube-scheduler", 0.2),
    "kubectl": ("controlplane", "k8s.io/kubernetes/cmd/kubectl", 0.5),
    "helm": ("helm", "helm.sh/helm/v4/cmd/helm", 2.0),
    "kubelet": ("realnode", "k8s.io/kubernetes/cmd/kubelet", 1.0),
    "kube-proxy": ("realnode", "k8s.io/kubernetes/cmd/kube-proxy", 3.0),
    "coredns": ("coredns", ".", 2.0),
}


def version_flags(name: str) -> str:
    """Return the linker flags that write the version into a program, as release builds have it."""
    if name == "helm":
        values = {"helm.sh/helm/v4/internal/version.version": f"v{versions.HELM}"}
    elif name in {"etcd", "coredns"}:
        values = {}
    else:
        major, minor, _ = versions.KUBERNETES.split(".")
        package = "k8s.io/component-base/version"
        values = {
            f"{package}.gitVersion": f"v{versions.KUBERNETES}",
            f"{package}.gitMajor": major,
            f"{package}.gitMinor": minor,
        }
    return " ".join(["-s -w", *(f"-X {key}={value}" for key, value in values.items())])


def build(name: str, folder: Path, say: Callable[[str, str], None]) -> Path:
    """Build a program into ``folder`` and return it; progress is said every few seconds.

    Raises :class:`Permanent`: ``GoMissing`` without a Go compiler or outside a checkout, ``BuildFailed`` with the
    compiler's last words.
    """
    root, go = versions.module_root(), shutil.which("go")
    if root is None:
        msg = f"{name} can be built only in a checkout of the project (tools/controlplane/go.mod is missing)"
        raise Permanent(msg, reason="GoMissing")
    if go is None:
        msg = f"no `go` on PATH to build {name} with: install Go 1.26 or newer (https://go.dev/dl)"
        raise Permanent(msg, reason="GoMissing")
    module, package, minutes = PACKAGES[name]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}-{os.getpid()}"
    command = [go, "build", "-trimpath", "-ldflags", version_flags(name), "-o", str(temporary), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    say(name, f"building {package} (about {minutes:g} min on two cores the first time)")
    _run(name, command, root / module, environment, say)
    return temporary.replace(folder / name)


def _run(
    name: str, command: list[str], cwd: Path, environment: dict[str, str], say: Callable[[str, str], None]
) -> None:
    began = time.monotonic()
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_SECONDS):
            say(name, f"building, {time.monotonic() - began:.0f} s")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        done = subprocess.run(  # noqa: S603 - the Go compiler on the pinned modules
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        ended.set()
        ticker.join()
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-_TAIL_LINES:])
        raise Permanent(f"go build of {name} failed:\n{tail}", reason="BuildFailed")
    say(name, f"built in {time.monotonic() - began:.0f} s")

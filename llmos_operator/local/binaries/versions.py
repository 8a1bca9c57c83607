"""Pinned versions and the cache folder they name.

The versions must equal those in tools/*/go.mod, which a unit test holds.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

from llmos_operator.errors import Permanent
from llmos_operator.local.layout import cache_root

KUBERNETES = "1.36.3"
ETCD = "3.6.8"
HELM = "4.3.1"
COREDNS = "1.15.0"

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NAMES = (*CONTROL_PLANE, "helm")
NODE = ("kubelet", "kube-proxy", "coredns")  # what a real node adds, see docs/real-node.md

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def go_platform() -> tuple[str, str]:
    """Return (operating system, architecture) in the words of Go and of the published archives."""
    machine = platform.machine().lower()
    if machine not in _MACHINES:
        msg = f"no control plane binaries are known for the processor {machine!r}; known: {sorted(set(_MACHINES))}"
        raise Permanent(msg, reason="UnsupportedPlatform")
    return ("darwin" if sys.platform == "darwin" else "linux"), _MACHINES[machine]


def module_root() -> Path | None:
    """Return the folder of the pinned Go modules, None outside a source checkout."""
    folder = Path(__file__).resolve().parents[3] / "tools"
    return folder if (folder / "controlplane" / "go.mod").is_file() else None


def cache_folder() -> Path:
    """Return the folder binaries of these versions are kept in, for this platform.

    Its name ends in a hash of the go.mod files, so that a changed pin never meets old binaries.
    """
    digest = hashlib.sha256(f"{KUBERNETES} {ETCD} {HELM}".encode())
    root = module_root()
    if root is not None:
        for module in ("controlplane", "helm"):
            digest.update((root / module / "go.mod").read_bytes())
    system, machine = go_platform()
    name = f"kubernetes-{KUBERNETES}-etcd-{ETCD}-helm-{HELM}-{system}-{machine}-{digest.hexdigest()[:12]}"
    return cache_root() / "controlplane" / name


def node_folder() -> Path:
    """Return the folder the programs of `NODE` are kept in: one of their own, so that their pins move nothing else."""
    digest = hashlib.sha256(f"{KUBERNETES} {COREDNS}".encode())
    root = module_root()
    if root is not None:
        for module in ("realnode", "coredns"):
            digest.update((root / module / "go.mod").read_bytes())
    system, machine = go_platform()
    name = f"kubernetes-{KUBERNETES}-coredns-{COREDNS}-{system}-{machine}-{digest.hexdigest()[:12]}"
    return cache_root() / "realnode" / name

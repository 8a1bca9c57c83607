"""Where a local cluster keeps its files: one directory, everything below it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmos_operator.api import names

ENV_CACHE = "LLMOS_CACHE"
ENV_STATE = "LLMOS_LOCAL_DIR"
ENV_CLUSTER = names.ENV_LOCAL_CLUSTER


def cache_root() -> Path:
    """Return the folder for downloads, builds and models: $LLMOS_CACHE, else the user's cache folder."""
    if chosen := os.environ.get(ENV_CACHE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "llmos"


def default_state() -> Path:
    """Return the state directory used without ``--dir``: $LLMOS_LOCAL_DIR, else the user's state folder."""
    if chosen := os.environ.get(ENV_STATE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "llmos" / "local"


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """Files of the cluster whose state directory is ``root``."""

    root: Path

    @property
    def pki(self) -> Path:
        """Certificates and keys; readable by the owner only."""
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        """Logs of the control plane and of the node process."""
        return self.root / "logs"

    @property
    def etcd(self) -> Path:
        """Data of etcd."""
        return self.root / "etcd"

    @property
    def pods(self) -> Path:
        """Volumes and files of pods, by UID."""
        return self.root / "pods"

    @property
    def claims(self) -> Path:
        """Contents of PersistentVolumeClaims, by namespace and name; they outlive pods and the cluster's restarts."""
        return self.root / "claims"

    @property
    def pod_logs(self) -> Path:
        """Container logs, laid out as a node's /var/log/pods."""
        return self.root / "pod-logs"

    @property
    def kubeconfig(self) -> Path:
        """Administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def kubeconfig_copy(self) -> Path:
        """Names the file the kubeconfig was also written to, if it was."""
        return self.root / "kubeconfig-copy"

    @property
    def state(self) -> Path:
        """What runs: pids with start times, addresses, stages. Written by the supervisor."""
        return self.root / "state.json"

    @property
    def spec(self) -> Path:
        """What was asked for: read by the supervisor and the node process."""
        return self.root / "cluster.json"

    @property
    def images(self) -> Path:
        """Image table additions (YAML), read again whenever it changes."""
        return self.root / "images.yaml"

    def component_kubeconfig(self, name: str) -> Path:
        """Kubeconfig of a control plane component."""
        return self.pki / f"{name}.kubeconfig"

    def prepare(self) -> None:
        """Create the directories."""
        for folder in (self.root, self.pki, self.logs, self.pods, self.pod_logs, self.claims):
            folder.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)

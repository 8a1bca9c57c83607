"""Where the node keeps its files, and its addresses. Everything is below one directory; nothing is written elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmos_operator.local.layout import cache_root

ENV_STATE = "LLMOS_NODE_DIR"

NAME = "llmos-node"  # of the node, its cgroup and the machine's end of its cable
HOST_ADDRESS = "10.88.0.1"  # the machine, as the node sees it
NODE_ADDRESS = "10.88.0.2"
PREFIX = 24
PODS = "10.89.0.0/24"
SERVICES = "10.89.128.0/20"
API_SERVICE = "10.89.128.1"  # the first of SERVICES, as kube-apiserver takes it
RANGES = "10.89.0.0/16"  # pods and Services, routed to the node
DOMAIN = "cluster.local"
API_URL = f"https://{NODE_ADDRESS}:6443"

# Of images made here. A registry that does not exist: nothing can be pulled by accident.
REGISTRY = "llmos.invalid"
PAUSE_IMAGE = f"{REGISTRY}/busybox:1"
PROBE_IMAGE = f"{REGISTRY}/probe:1"  # a shell and Python, for tests of the kubelet itself
WHEELS = (
    "/opt/llmos-wheels"  # in every container: what the runtime image has a link to instead of 5 GB of its own
)

# In every container, as a container toolkit would mount a driver's libraries: empty unless tests put some there.
DRIVER = "/opt/llmos-driver"


def cache() -> Path:
    """Return the folder for the node's root file system, wheels and images."""
    return cache_root() / "realnode"


def default_state() -> Path:
    """Return the state directory: $LLMOS_NODE_DIR, else in the user's state folder."""
    if chosen := os.environ.get(ENV_STATE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "llmos" / "node"


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Files of the node whose state directory is ``root``, as the machine sees them."""

    root: Path

    @property
    def record(self) -> Path:
        """The node's one process: pid and start time."""
        return self.root / "process.json"

    @property
    def groups(self) -> Path:
        """Its control groups, one a line: to be removed by whoever ends it."""
        return self.root / "groups"

    @property
    def config(self) -> Path:
        """Certificates, kubeconfigs and configuration files; ``/etc/llmos`` in the node."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """Logs of the components; ``/var/log/llmos`` in the node."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """What must not lie on an overlay: containerd, kubelet, etcd; ``/var/lib`` in the node."""
        return self.root / "lib"

    @property
    def driver(self) -> Path:
        """What every container sees at `DRIVER`; ``/var/lib/driver`` in the node."""
        return self.data / "driver"

    @property
    def overlay(self) -> Path:
        """What the node writes elsewhere in its root, and where that root is put together."""
        return self.root / "overlay"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def values(self) -> Path:
        """Values of the chart for this node; JSON, which is YAML."""
        return self.root / "values.yaml"

    def prepare(self) -> None:
        """Create the directories."""
        for folder in (
            self.config,
            self.logs,
            self.data,
            *(self.overlay / one for one in ("upper", "work", "root")),
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)

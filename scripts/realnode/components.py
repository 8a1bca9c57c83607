"""The node's processes: their command lines, and the configuration files they read.

Every setting that differs from the default names the failure it avoids; measured in docs/real-node.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from scripts.realnode import layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ETC = "/etc/llmos"  # where the node sees NodePaths.config
LOGS = "/var/log/llmos"
PROGRAMS = "/opt/llmos/programs"
NODE_PROGRAMS = "/opt/llmos/node-programs"
WHEELS = "/opt/llmos/wheels"
CACHE = "/var/cache/llmos"
AUDIT_LOG = f"{LOGS}/audit.log"

_ETCD = "https://127.0.0.1:2379"


@dataclass(frozen=True, slots=True)
class Component:
    """A process of the node, started again when it ends. ``after`` is a socket or port it would fail without."""

    name: str
    command: tuple[str, ...]
    after: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what the supervisor reads."""
        return {"name": self.name, "command": list(self.command), "after": self.after}


def components() -> tuple[Component, ...]:
    """Return the processes in the order they are started in."""
    return (
        Component("containerd", ("containerd", f"--config={ETC}/containerd.toml")),
        Component("etcd", _etcd()),
        Component("kube-apiserver", _api_server(), after="127.0.0.1:2379"),
        Component("kube-controller-manager", _controller_manager(), after="127.0.0.1:6443"),
        Component("kube-scheduler", _scheduler(), after="127.0.0.1:6443"),
        Component("coredns", (f"{NODE_PROGRAMS}/coredns", f"-conf={ETC}/Corefile"), after="127.0.0.1:6443"),
        Component(
            "kube-proxy",
            (f"{NODE_PROGRAMS}/kube-proxy", f"--config={ETC}/kube-proxy.json"),
            after="127.0.0.1:6443",
        ),
        Component("kubelet", _kubelet(), after="/run/containerd/containerd.sock"),
    )


def _etcd() -> tuple[str, ...]:
    return (
        f"{PROGRAMS}/etcd",
        "--name=node",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=node=http://127.0.0.1:2380",
        f"--cert-file={ETC}/etcd.crt",
        f"--key-file={ETC}/etcd.key",
        f"--trusted-ca-file={ETC}/ca.crt",
        "--client-cert-auth",
        "--unsafe-no-fsync",  # the data ends with the node
        "--log-level=warn",
    )


def _api_server() -> tuple[str, ...]:
    return (
        f"{PROGRAMS}/kube-apiserver",
        "--secure-port=6443",
        f"--advertise-address={layout.NODE_ADDRESS}",
        f"--etcd-servers={_ETCD}",
        f"--etcd-cafile={ETC}/ca.crt",
        f"--etcd-certfile={ETC}/etcd.crt",
        f"--etcd-keyfile={ETC}/etcd.key",
        f"--client-ca-file={ETC}/ca.crt",
        f"--tls-cert-file={ETC}/kube-apiserver.crt",
        f"--tls-private-key-file={ETC}/kube-apiserver.key",
        f"--kubelet-client-certificate={ETC}/kubelet-client.crt",
        f"--kubelet-client-key={ETC}/kubelet-client.key",
        f"--kubelet-certificate-authority={ETC}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={ETC}/service-accounts.key",
        f"--service-account-key-file={ETC}/service-accounts.pub",
        f"--service-cluster-ip-range={layout.SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--audit-policy-file={ETC}/audit-policy.json",
        f"--audit-log-path={AUDIT_LOG}",
        "--profiling=false",
    )


def _serving(name: str) -> tuple[str, ...]:
    return (
        f"--kubeconfig={ETC}/{name}.kubeconfig",
        f"--authentication-kubeconfig={ETC}/{name}.kubeconfig",
        f"--authorization-kubeconfig={ETC}/{name}.kubeconfig",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    )


def _controller_manager() -> tuple[str, ...]:
    return (
        f"{PROGRAMS}/kube-controller-manager",
        *_serving("kube-controller-manager"),
        f"--root-ca-file={ETC}/ca.crt",
        f"--service-account-private-key-file={ETC}/service-accounts.key",
        "--use-service-account-credentials",
        "--allocate-node-cidrs=false",  # the one node's range is in the CNI configuration
        "--kube-api-qps=300",  # else the first ServiceAccounts come after 10 s instead of 5
        "--kube-api-burst=500",
        "--pvclaimbinder-sync-period=1s",
        "--node-monitor-grace-period=25s",  # a silent kubelet is waited for by tests; by default 50 s
    )


def _scheduler() -> tuple[str, ...]:
    return (f"{PROGRAMS}/kube-scheduler", *_serving("kube-scheduler"))


def _kubelet() -> tuple[str, ...]:
    return (
        f"{NODE_PROGRAMS}/kubelet",
        f"--config={ETC}/kubelet.json",
        f"--kubeconfig={ETC}/kubelet.kubeconfig",
        f"--hostname-override={layout.NAME}",
        f"--node-ip={layout.NODE_ADDRESS}",
        f"--node-labels={names.LABEL_SIMULATED}=true,nvidia.com/gpu.present=true",
    )


def kubelet_config() -> dict[str, Any]:
    """Return the kubelet's configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": False,  # else it refuses to start where the controllers are on cgroup v1
        "cgroupDriver": "cgroupfs",  # no systemd in the node, and containerd 1.6 cannot tell its own setting
        "oomScoreAdj": 0,  # a lower one needs CAP_SYS_RESOURCE, which a machine in a container may lack
        "protectKernelDefaults": True,  # look at the sysctls (files of the node's own), never write the machine's
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{ETC}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{ETC}/kubelet.crt",
        "tlsPrivateKeyFile": f"{ETC}/kubelet.key",
        "clusterDomain": layout.DOMAIN,
        "clusterDNS": [layout.NODE_ADDRESS],
        "resolvConf": "/etc/resolv.conf",
        "imageGCHighThresholdPercent": 100,  # images are imported: once collected, they could not be had again
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "maxPods": 100,
        "podPidsLimit": 2000,
        "registerNode": True,
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 20,  # renewed every 5 s: four are missed before the node is Unknown
        "logging": {"verbosity": 1},
    }


def kube_proxy_config() -> dict[str, Any]:
    """Return kube-proxy's configuration. Limits of conntrack are the machine's: they are left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{ETC}/kube-proxy.kubeconfig"},
        "hostnameOverride": layout.NAME,
        "clusterCIDR": layout.PODS,
        "oomScoreAdj": 0,
        "nftables": {"minSyncPeriod": "100ms"},  # at 1 s a Service refuses connections right after a rollout
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def network_config() -> dict[str, Any]:
    """Return the CNI configuration: one bridge, addresses by host-local, host ports."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": False,  # pods keep their address on the machine, and nothing leaves it
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": layout.PODS}]],
            "dataDir": "/run/cni-addresses",
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "node", "plugins": [bridge, ports]}


def containerd_config() -> str:
    """Return containerd's configuration (version 2, for containerd 1.6 and 1.7)."""
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{layout.PAUSE_IMAGE}"
  # Else every pod fails where CAP_SYS_RESOURCE is missing: "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  disable_apparmor = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{ETC}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{ETC}/runtime-spec.json"
"""


def corefile() -> str:
    """Return CoreDNS's configuration: the cluster's names, and no others."""
    return f"""{layout.DOMAIN} {layout.RANGES} {{
    errors
    kubernetes {layout.DOMAIN} {layout.RANGES} {{
        kubeconfig {ETC}/coredns.kubeconfig
        ttl 5
    }}
    cache 5
}}
"""


def audit_policy() -> dict[str, Any]:
    """Return the audit policy: who asked for what, of everybody."""
    rules = [{"level": "Metadata", "omitStages": ["RequestReceived"]}]
    return {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}


def cluster_objects() -> tuple[dict[str, Any], ...]:
    """Return what the cluster needs beside its processes: CoreDNS may read names."""
    reader = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "llmos-node:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "llmos-node:coredns"},
        ],
    }
    return (reader,)


def write_files(config: Path, runtime_spec: Mapping[str, Any]) -> None:
    """Write all configuration files into the node's ``ETC``."""
    documents = {
        "kubelet.json": kubelet_config(),
        "kube-proxy.json": kube_proxy_config(),
        "cni/10-node.conflist": network_config(),
        "audit-policy.json": audit_policy(),
        "runtime-spec.json": dict(runtime_spec),
        "components.json": [one.as_json() for one in components()],
    }
    for name, document in documents.items():
        path = config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    (config / "containerd.toml").write_text(containerd_config(), encoding="utf-8")
    (config / "Corefile").write_text(corefile(), encoding="utf-8")

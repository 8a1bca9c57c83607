"""The node's certificates: one authority, and for each process the identity it has in any cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.local.certificates import Authority, key_pem, new_key, public_pem, write_private
from llmos_operator.local.kubeconfig import write_client_kubeconfig
from scripts.realnode import layout

if TYPE_CHECKING:
    from scripts.realnode.layout import NodePaths

# Kubeconfig -> (user, groups): those the API server's own roles are bound to; nobody but the administrator is a master.
IDENTITIES = {
    "kube-controller-manager": ("system:kube-controller-manager", ()),
    "kube-scheduler": ("system:kube-scheduler", ()),
    "kube-proxy": ("system:kube-proxy", ()),
    "coredns": ("llmos-node:coredns", ()),
    "kubelet": (f"system:node:{layout.NAME}", ("system:nodes",)),
}


def write_credentials(paths: NodePaths) -> None:
    """Write the authority, all certificates, the key that signs tokens, and all kubeconfigs."""
    authority = Authority("llmos-node")
    config = paths.config
    (config / "ca.crt").write_bytes(authority.certificate)
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names.append(f"kubernetes.default.svc.{layout.DOMAIN}")
    pairs = {
        "kube-apiserver": authority.server(
            "kube-apiserver", names, ["127.0.0.1", layout.NODE_ADDRESS, layout.API_SERVICE]
        ),
        "etcd": authority.server("etcd", ["localhost"], ["127.0.0.1"]),
        "kubelet": authority.server(layout.NAME, [layout.NAME], [layout.NODE_ADDRESS]),
        "kubelet-client": authority.client("kube-apiserver-kubelet-client", ["system:masters"]),
    }
    for name, pair in pairs.items():
        pair.write(config, name)
    for name, (user, groups) in IDENTITIES.items():
        pair = authority.client(user, groups)
        write_client_kubeconfig(config / f"{name}.kubeconfig", layout.API_URL, authority.certificate, pair)
    admin = authority.client("kubernetes-admin", ["system:masters"])
    write_client_kubeconfig(paths.kubeconfig, layout.API_URL, authority.certificate, admin)
    signing = new_key()
    write_private(config / "service-accounts.key", key_pem(signing))
    (config / "service-accounts.pub").write_bytes(public_pem(signing))

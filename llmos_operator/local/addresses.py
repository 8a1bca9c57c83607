"""Loopback addresses of one local cluster.

Linux answers on the whole of 127.0.0.0/8, so every cluster gets addresses of its own and well-known ports never
clash::

    127.6.<index>.1        etcd, kube-apiserver and the other control plane servers
    127.7.<block>          nodes (kubelet endpoint)
    127.8.<block>          pods
    127.9.<block>          services (the service CIDR)

``<block>`` is a /21 of each /16: 32 clusters may run side by side on one machine. An index is owned by whoever holds
a listening socket on its claim port: the kernel frees it when the owner ends, however it ends.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterator

CLUSTERS = 32
PORT_CLAIM = 6400
PORT_API = 6443
PORT_ETCD = 2379
PORT_ETCD_PEER = 2380
PORT_CONTROLLER_MANAGER = 10257
PORT_SCHEDULER = 10259
PORT_KUBELET = 10250
PORT_HUB = 8082
_THIRD_OCTETS = 8  # 256 / CLUSTERS
_HOSTS = 254


@dataclass(frozen=True, slots=True)
class AddressBlock:
    """The addresses of cluster number ``index`` (0 .. CLUSTERS-1)."""

    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < CLUSTERS:
            msg = f"cluster index must be 0..{CLUSTERS - 1}, not {self.index}"
            raise ValueError(msg)

    @property
    def control_plane(self) -> str:
        """Address of etcd, kube-apiserver and their companions."""
        return f"127.6.{self.index}.1"

    @property
    def api_url(self) -> str:
        """URL of the API server."""
        return f"https://{self.control_plane}:{PORT_API}"

    @property
    def service_cidr(self) -> str:
        """Range of ClusterIPs."""
        return f"127.9.{self.index * _THIRD_OCTETS}.0/21"

    @property
    def api_service(self) -> str:
        """ClusterIP of the Service `default/kubernetes`: the first address of the range."""
        return f"127.9.{self.index * _THIRD_OCTETS}.1"

    @property
    def pod_cidr(self) -> str:
        """Range of pod addresses."""
        return f"127.8.{self.index * _THIRD_OCTETS}.0/21"

    def node(self, ordinal: int) -> str:
        """Return the InternalIP of node number ``ordinal`` (0-based)."""
        return self._host(7, ordinal)

    def pods(self) -> Iterator[str]:
        """Yield all pod addresses in order."""
        for ordinal in range(_THIRD_OCTETS * _HOSTS):
            yield self._host(8, ordinal)

    def _host(self, second: int, ordinal: int) -> str:
        offset, host = divmod(ordinal, _HOSTS)
        if offset >= _THIRD_OCTETS:
            msg = f"a local cluster has {_THIRD_OCTETS * _HOSTS} addresses of a kind; number {ordinal} asked for"
            raise ValueError(msg)
        return f"127.{second}.{self.index * _THIRD_OCTETS + offset}.{host + 1}"


class AddressClaim:
    """An owned :class:`AddressBlock`; close it to give it back."""

    def __init__(self, block: AddressBlock, guard: socket.socket) -> None:
        self.block = block
        self._guard = guard

    def close(self) -> None:
        """Give the block back."""
        self._guard.close()


def claim_block(preferred: int | None = None) -> AddressClaim:
    """Own a free block: ``preferred`` if it is free, else the first free one.

    Raises :class:`Permanent` (reason ``NoFreeAddresses``) when all are taken.
    """
    order = [*([] if preferred is None else [preferred]), *range(CLUSTERS)]
    for index in order:
        claim = _try_claim(AddressBlock(index))
        if claim is not None:
            return claim
    msg = (
        f"all {CLUSTERS} loopback address blocks are in use (127.6.0.1 .. 127.6.{CLUSTERS - 1}.1, port {PORT_CLAIM}); "
        "end another local cluster with `llmos local down`"
    )
    raise Permanent(msg, reason="NoFreeAddresses")


def _try_claim(block: AddressBlock) -> AddressClaim | None:
    guard = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        guard.bind((block.control_plane, PORT_CLAIM))
        guard.listen(1)
        if all(_is_free(block.control_plane, port) for port in (PORT_API, PORT_ETCD, PORT_ETCD_PEER)):
            return AddressClaim(block, guard)
    except OSError:
        pass  # taken by another cluster
    guard.close()
    return None


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of an ended server is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True

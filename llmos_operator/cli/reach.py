"""How a command on a laptop reaches a server inside a cluster.

Three ways, the first that applies: an address somebody gave; the pod's or Service's own address where this machine can
open it (the local cluster lives on loopback); the API server's proxy, which needs no port-forward but the RBAC verb on
`services/proxy` or `pods/proxy`.
"""

from __future__ import annotations

import ipaddress
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from llmos_operator.api import names
from llmos_operator.cli.failures import NOT_INSTALLED, CommandFailed
from llmos_operator.cli.render import dig
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import NotFound
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from llmos_operator.cli.session import Session
    from llmos_operator.cluster.port import Json
    from llmos_operator.cluster.transport import Transport

GATEWAY_SERVICE = "llmos-gateway"
_CONNECT_SECONDS = 5.0


class Endpoint(Protocol):
    """A server that can be asked."""

    @property
    def address(self) -> str:
        """Where it is, for people."""
        ...

    def open(
        self, method: str, path: str, *, body: Any = None, token: str = ""
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send one request and hand out the response while it comes. Raises `Retryable` if nobody answers."""
        ...


@dataclass(frozen=True, slots=True)
class Direct:
    """A server whose address this machine can open."""

    address: str

    @asynccontextmanager
    async def open(
        self, method: str, path: str, *, body: Any = None, token: str = ""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """See `Endpoint`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.request(method, self.address + path, json=body, headers=headers) as response,
            ):
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Retryable(f"{self.address}{path}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Proxied:
    """A server behind the API server's proxy. The API server takes the Authorization header for itself."""

    transport: Transport
    prefix: str

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return self.transport.credentials.server + self.prefix

    @asynccontextmanager
    async def open(
        self, method: str, path: str, *, body: Any = None, token: str = ""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """See `Endpoint`."""
        if token:
            raise CommandFailed(
                "an API key cannot pass the API server's proxy: run `kubectl -n llmos-system port-forward "
                f"svc/{GATEWAY_SERVICE} 8000:80` and give --url http://127.0.0.1:8000"
            )
        async with self.transport.open(method, self.prefix + path, body=body) as response:
            yield response


async def gateway(connected: Session, url: str = "") -> Endpoint:
    """Return the gateway's endpoint; ``url`` overrides where it is looked for."""
    if url:
        return Direct(url.rstrip("/"))
    try:
        service = await connected.transport.get(
            port.SERVICES, GATEWAY_SERVICE, namespace=names.SYSTEM_NAMESPACE
        )
    except NotFound as error:
        raise CommandFailed(
            f"there is no Service {names.SYSTEM_NAMESPACE}/{GATEWAY_SERVICE}: is LLMOS installed with its gateway? "
            "--url names another endpoint",
            status=NOT_INSTALLED,
        ) from error
    number = dig(service, "spec", "ports", default=[{}])[0].get("port", 80)
    address = str(dig(service, "spec", "clusterIP", default=""))
    if _is_here(address):
        return Direct(f"http://{address}:{number}")
    path = port.SERVICES.path(names.SYSTEM_NAMESPACE, f"{GATEWAY_SERVICE}:{number}", "proxy")
    return Proxied(connected.transport, path)


def pod(connected: Session, item: Json, number: int) -> Endpoint | None:
    """Return the endpoint of a pod's port ``number``, None while the pod has no address."""
    address = str(dig(item, "status", "podIP", default=""))
    if not address:
        return None
    if _is_here(address):
        return Direct(f"http://{address}:{number}")
    meta = item["metadata"]
    path = port.PODS.path(meta["namespace"], f"{meta['name']}:{number}", "proxy")
    return Proxied(connected.transport, path)


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # "None" of a headless Service, ""
        return False

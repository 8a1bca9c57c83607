"""From Services and pods to forwarders."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from llmos_operator.cluster.mirror import Change
from llmos_operator.local.proxy.endpoints import endpoints_of
from llmos_operator.local.proxy.forward import Forwarder
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from llmos_operator.local.proxy.endpoints import Address, Json

log = logger(__name__)

_PRIVILEGED = 1024
_UNPRIVILEGED_OFFSET = 8000
_RETRY_SECONDS = 5.0


def can_bind_privileged(address: str) -> bool:
    """Return whether this user may listen on ports below 1024."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 1023))
        except PermissionError:
            return False
        except OSError:
            return True  # taken, so allowed
    return True


class ServiceProxy:
    """Keeps a forwarder per Service port."""

    def __init__(self, api_service: str, api_server: Address, *, privileged: bool) -> None:
        self._api_service = api_service
        self._api_server = api_server
        self._privileged = privileged
        self._services: dict[tuple[str, str], Json] = {}
        self._pods: dict[str, Json] = {}
        self._forwarders: dict[Address, Forwarder] = {}
        self._dirty = asyncio.Event()

    def port_of(self, _address: str, port: int) -> int:
        """Return the port a Service really listens on: ports only root may have are moved up for other users."""
        return port + _UNPRIVILEGED_OFFSET if port < _PRIVILEGED and not self._privileged else port

    def observe_service(self, change: Change, service: Json) -> None:
        """Take a change of a Service."""
        key = (service["metadata"]["namespace"], service["metadata"]["name"])
        if change is Change.DELETED:
            self._services.pop(key, None)
        else:
            self._services[key] = service
        self._dirty.set()

    def observe_pod(self, change: Change, pod: Json) -> None:
        """Take a change of a pod."""
        uid = pod["metadata"]["uid"]
        if change is Change.DELETED:
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod
        self._dirty.set()

    async def run(self) -> None:
        """Follow changes until cancelled, then close everything."""
        try:
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                if not await self._reconcile():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_RETRY_SECONDS):
                            await self._dirty.wait()
                    self._dirty.set()
        finally:
            await asyncio.gather(*(forwarder.close() for forwarder in self._forwarders.values()))

    async def _reconcile(self) -> bool:
        wanted = self._wanted()
        for address in [address for address in self._forwarders if address not in wanted]:
            await self._forwarders.pop(address).close()
        complete = True
        for address, targets in wanted.items():
            forwarder = self._forwarders.setdefault(address, Forwarder(address))
            try:
                await forwarder.update(targets)
            except OSError as error:
                log.warning("cannot listen for a Service", address=f"{address[0]}:{address[1]}", error=error)
                complete = False
        return complete

    def _wanted(self) -> dict[Address, tuple[Address, ...]]:
        result: dict[Address, tuple[Address, ...]] = {}
        pods = list(self._pods.values())
        for service in self._services.values():
            address = service["spec"].get("clusterIP") or ""
            if address in {"", "None"}:
                continue
            for port in service["spec"].get("ports") or []:
                if port.get("protocol", "TCP") != "TCP":
                    continue
                here = (address, self.port_of(address, port["port"]))
                is_api = address == self._api_service
                result[here] = (self._api_server,) if is_api else endpoints_of(service, port, pods)
        return result

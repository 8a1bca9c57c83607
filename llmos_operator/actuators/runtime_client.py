"""Asks runtimes how they are: the control API of the sidecar, over plain HTTP with a bearer token."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from pydantic import ValidationError

from llmos_operator.api import names
from llmos_operator.api.runtime.messages import (
    BudgetRequest,
    DrainRequest,
    RequantiseRequest,
    RuntimeStatus,
    SleepRequest,
)
from llmos_operator.errors import Permanent, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

REQUEST_SECONDS = 2.0
BODY_LIMIT = 64 << 10  # a status is under 2 KiB; whatever answers on the port must not fill our memory


class RuntimeClient:
    """Talks to the runtimes of a cluster. `token_of` maps a namespace to its control token."""

    def __init__(self, token_of: Callable[[str], str], *, port: int = names.PORT_CONTROL) -> None:
        self._token_of = token_of
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def status(self, namespace: str, address: str) -> RuntimeStatus:
        """Return what the runtime at ``address`` reports. Raises Retryable (not there yet), Permanent (refuses us)."""
        raw = await self._request("GET", namespace, address, "/control/v1/status")
        try:
            return RuntimeStatus.model_validate(raw)
        except ValidationError as error:
            raise Permanent(f"runtime {address} sent no status: {error}", reason="BadStatus") from error

    async def drain(self, namespace: str, address: str, seconds: int) -> None:
        """Let the runtime finish what is in flight and take nothing new."""
        await self._request(
            "POST", namespace, address, "/control/v1/drain", DrainRequest(timeout_seconds=seconds)
        )

    async def set_budget(self, namespace: str, address: str, memory_bytes: int) -> None:
        """Let the runtime stay below ``memory_bytes`` on each device from now on."""
        await self._request(
            "POST", namespace, address, "/control/v1/budget", BudgetRequest(memory_bytes=memory_bytes)
        )

    async def requantise(
        self, namespace: str, address: str, precision: str, memory_bytes: int, seconds: float
    ) -> None:
        """Let the runtime serve at ``precision`` and stay below ``memory_bytes``; what is in progress has so many seconds to end."""
        order = RequantiseRequest(precision=precision, budget_bytes=memory_bytes, timeout_seconds=seconds)
        await self._request("POST", namespace, address, "/control/v1/requantise", order)

    async def sleep(self, namespace: str, address: str, seconds: float) -> None:
        """Let the runtime sleep with its weights in host memory, once what is in progress has ended or so many seconds are over."""
        order = SleepRequest(level=1, timeout_seconds=seconds)
        await self._request("POST", namespace, address, "/control/v1/sleep", order)

    async def wake(self, namespace: str, address: str) -> None:
        """Let the runtime serve again."""
        await self._request("POST", namespace, address, "/control/v1/wake")

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(
        self, method: str, namespace: str, address: str, path: str, body: BaseModel | None = None
    ) -> Any:
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}{path}"
        data = body.model_dump(mode="json", by_alias=True) if body is not None else None
        headers = {"Authorization": f"Bearer {self._token_of(namespace)}"}
        try:
            async with self._open().request(
                method, url, json=data, headers=headers, allow_redirects=False
            ) as response:
                raw = await response.content.read(BODY_LIMIT + 1)
                return _decode(url, response.status, raw)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise Retryable(f"{method} {url}: {type(error).__name__}: {error}") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            # Runtimes come and go: no pool per address, and no cookies from what tenants run.
            connector = aiohttp.TCPConnector(limit=64, force_close=True)
            self._session = aiohttp.ClientSession(
                timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


def _decode(url: str, status: int, raw: bytes) -> Any:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise Permanent(f"{url}: the runtime refuses the operator's token ({status})", reason="Forbidden")
    if status >= HTTPStatus.BAD_REQUEST:
        raise Retryable(f"{url}: status {status}")
    if len(raw) > BODY_LIMIT:
        raise Permanent(f"{url}: answer larger than {BODY_LIMIT} bytes", reason="BadStatus")
    try:
        return json.loads(raw) if raw else {}
    except ValueError as error:
        raise Permanent(f"{url}: answer is not JSON", reason="BadStatus") from error

"""HTTP to vLLM: over the socket in the folder both containers share, or by address where there is no such folder."""

from __future__ import annotations

import asyncio
import json
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

CALL_SECONDS = 60.0
HEALTH_SECONDS = 5.0
CONNECT_SECONDS = 5.0
# Below the 5 s after which uvicorn closes an idle connection: one that both ends use differently fails a request.
IDLE_SECONDS = 4.0
_OWN_HEADERS = frozenset({"Accept-Encoding", "User-Agent", "Accept", "Content-Type"})


class EngineLost(LlmosError):  # noqa: N818 - reads as what happened
    """vLLM did not answer to the end. ``begun``: it may have worked on the request."""

    def __init__(self, message: str, *, begun: bool) -> None:
        super().__init__(message)
        self.begun = begun


class Refused(LlmosError):  # noqa: N818 - reads as what happened
    """vLLM answered an order with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Health(Enum):
    """What vLLM says to a look at its health."""

    UP = "up"
    DOWN = "down"  # nobody listens, or its engine is dead
    SILENT = "silent"  # it takes connections and does not answer


class Link:
    """One vLLM server. ``url`` "" means the UNIX socket ``socket``."""

    def __init__(self, url: str, socket: str) -> None:
        self._base = url.rstrip("/") or "http://engine"
        self._socket = "" if url else socket
        self._session: aiohttp.ClientSession | None = None

    async def health(self) -> Health:
        """Look whether vLLM answers."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS), await self.open("GET", "/health", {}, None) as answer:
                return Health.UP if answer.status == HTTPStatus.OK else Health.DOWN
        except TimeoutError:
            return Health.SILENT
        except EngineLost:
            return Health.DOWN

    async def open(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send a request and return the answer once its headers are here; the caller closes it. Raises EngineLost."""
        try:
            return await self._open_session().request(
                method,
                f"{self._base}{path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                skip_auto_headers=_OWN_HEADERS,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, FileNotFoundError) as error:
            raise EngineLost(f"vLLM cannot be reached: {error}", begun=False) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            text = str(error) or type(error).__name__
            raise EngineLost(f"vLLM broke off: {text}", begun=True) from error

    async def call(self, method: str, path: str, value: Any = None, seconds: float = CALL_SECONDS) -> bytes:
        """Return the body of a small answer. Raises EngineLost, and Refused for a status from 400 on."""
        body, headers = None, {}
        if value is not None:
            body, headers = json.dumps(value).encode(), {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(seconds), await self.open(method, path, headers, body) as answer:
                raw = b"".join([chunk async for chunk in chunks(answer)])
        except TimeoutError as error:
            raise EngineLost(f"vLLM did not answer {path} within {seconds:.0f} s", begun=True) from error
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise Refused(answer.status, _message(raw) or f"{path}: HTTP {answer.status}")
        return raw

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits: dict[str, Any] = {"limit": 0, "keepalive_timeout": IDLE_SECONDS}
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(path=self._socket, **limits)
                if self._socket
                else aiohttp.TCPConnector(use_dns_cache=False, **limits)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                trust_env=False,
            )
        return self._session


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield an answer's body as it arrives. Raises EngineLost if it ends early."""
    while True:
        try:
            chunk = await answer.content.readany()
        except (aiohttp.ClientError, ConnectionError) as error:
            text = str(error) or type(error).__name__
            raise EngineLost(f"vLLM broke off: {text}", begun=True) from error
        if not chunk:
            return
        yield chunk


def _message(raw: bytes) -> str:
    """Return the text of an error as vLLM words it, cut short."""
    try:
        found = json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace").strip()[:300]
    inner = found.get("error", found) if isinstance(found, dict) else {}
    return str(inner.get("message") or inner.get("detail") or "")[:300] if isinstance(inner, dict) else ""

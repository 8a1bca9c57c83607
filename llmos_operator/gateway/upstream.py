"""Speaks HTTP to replicas: one connection pool, and failures told apart by what they permit.

`NotSent`: no byte of the request left, so another replica may have it. An answer that :func:`declined` names was not
begun either, by the replica's own word. `Broken`: the replica may have worked on it; the client must decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from llmos_operator.gateway import headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from llmos_operator.gateway.catalog import Replica

# Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: a connection that both ends use
# differently would fail requests that were in fact sent.
IDLE_SECONDS = 4.0
READ_BUFFER = 1 << 16
_OWN_HEADERS = frozenset({"Accept-Encoding", "User-Agent"})


class NotSent(Exception):  # noqa: N818 - reads as what happened
    """The replica could not be reached; `reason` is a word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Broken(Exception):  # noqa: N818 - reads as what happened
    """The replica took the request and broke off."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Upstream:
    """Connections to replicas."""

    def __init__(self, *, connect_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, method: str, replica: Replica, path: str, headers_: Mapping[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        """Send a request and return the answer once its headers are here; the caller closes it.

        ``path`` is the raw path with its query. Raises NotSent and Broken.
        """
        try:
            return await self._open().request(
                method,
                _url(replica, path),
                data=body,
                headers=headers_,
                timeout=self._timeout,
                allow_redirects=False,
                skip_auto_headers=_OWN_HEADERS,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent("connect", str(error)) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Broken("disconnected", str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Replicas are named by address; no proxy, cookie or resolver may come between.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, use_dns_cache=False)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                read_bufsize=READ_BUFFER,
            )
        return self._session


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the answer's body as it arrives. Raises Broken if it ends early."""
    reader = answer.content
    while True:
        try:
            chunk = await reader.readany()
        except aiohttp.ClientPayloadError as error:
            raise Broken("truncated", str(error)) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Broken("disconnected", str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def declined(answer: aiohttp.ClientResponse) -> str:
    """Return why the replica did not begin the request, "" if it did."""
    return answer.headers.get(headers.REFUSED, "")[:32]


def _url(replica: Replica, path: str) -> URL:
    host = f"[{replica.host}]" if ":" in replica.host else replica.host
    return URL(f"http://{host}:{replica.port}{path}", encoded=True)

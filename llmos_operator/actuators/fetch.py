"""Small, guarded reads of model repositories: a few kilobytes of metadata, never weights.

The operator runs with rights a user does not have, so what a workload names must not make it talk to places the user
could not reach: hf:// goes to the configured hub only, https:// to hosts on an allow-list, and redirects only to
either of them. Answers are bounded in size and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import aiohttp

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent, Retryable

if TYPE_CHECKING:
    from llmos_operator.settings import SourceSettings

REDIRECTS = 3
_MOVED = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)


class Missing(Permanent):
    """The file does not exist (HTTP 404)."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url} does not exist", reason=Reason.MODEL_NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Piece:
    """The beginning of a file and the file's size (None if the server does not say)."""

    data: bytes
    size: int | None


class Fetcher:
    """Reads beginnings of files over HTTP, from allowed hosts only."""

    def __init__(self, sources: SourceSettings) -> None:
        self._sources = sources
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(self, url: str, limit: int, *, whole: bool = True) -> Piece:
        """Return at most ``limit`` bytes from the start of ``url``.

        ``whole``: the file must not be longer. Raises Missing, Permanent (AccessDenied, SourceNotAllowed, Corrupted),
        Retryable.
        """
        for _ in range(REDIRECTS + 1):
            self._check(url)
            try:
                piece, moved = await self._once(url, limit, whole=whole)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                raise Retryable(f"{url}: {type(error).__name__}: {error}", after=5.0) from error
            if piece is not None:
                return piece
            url = urljoin(url, moved)
        raise Permanent(f"{url}: more than {REDIRECTS} redirects", reason=Reason.DOWNLOAD_FAILED)

    async def _once(self, url: str, limit: int, *, whole: bool) -> tuple[Piece | None, str]:
        headers = {"Accept-Encoding": "identity"} | ({} if whole else {"Range": f"bytes=0-{limit - 1}"})
        async with self._open().get(url, headers=headers, allow_redirects=False) as response:
            if response.status in _MOVED:
                return None, response.headers.get("Location", "")
            _check_status(url, response.status, response.headers.get("X-Error-Code", ""))
            data = await _read(response.content, limit + 1)
            if whole and len(data) > limit:
                raise Permanent(f"{url} is larger than {limit} bytes", reason=Reason.CORRUPTED)
            return Piece(data[:limit], _size(response)), ""

    def _check(self, url: str) -> None:
        """Refuse a URL outside of what the settings allow."""
        parts, hub = urlsplit(url), urlsplit(self._sources.hub_endpoint)
        host = (parts.hostname or "").lower()
        if (parts.scheme, parts.netloc) == (hub.scheme, hub.netloc):
            return
        if parts.scheme == "https" and parts.port in {None, 443} and self._allowed(host):
            return
        raise Permanent(
            f"{parts.scheme}://{host} is not an allowed model source; an administrator may add the host to the "
            "operator's setting sources.allowedHosts",
            reason=Reason.SOURCE_NOT_ALLOWED,
        )

    def _allowed(self, host: str) -> bool:
        suffixes = tuple(f".{name}" for name in self._sources.hub_hosts)
        return (
            host in self._sources.allowed_hosts or host in self._sources.hub_hosts or host.endswith(suffixes)
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._sources.timeout)
            self._session = aiohttp.ClientSession(
                timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True
            )
        return self._session


async def _read(content: aiohttp.StreamReader, limit: int) -> bytes:
    """Return up to ``limit`` bytes; the rest is left to be dropped with the connection."""
    chunks, left = [], limit
    while left > 0:
        chunk = await content.read(min(left, 1 << 16))
        if not chunk:
            break
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _check_status(url: str, status: int, detail: str) -> None:
    if status == HTTPStatus.NOT_FOUND:
        raise Missing(url)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        # The hub answers 401 for repositories that do not exist, too.
        reason = Reason.MODEL_NOT_FOUND if detail == "RepoNotFound" else Reason.ACCESS_DENIED
        raise Permanent(
            f"{url}: access denied ({status}); the operator reads no Secrets, so for a private model set "
            "spec.resources.memory to the memory it needs",
            reason=reason,
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Retryable(f"{url}: status {status}", after=10.0)
    if status >= HTTPStatus.BAD_REQUEST:
        raise Permanent(f"{url}: status {status}", reason=Reason.DOWNLOAD_FAILED)


def _size(response: aiohttp.ClientResponse) -> int | None:
    """Return the whole file's size from Content-Range or Content-Length."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdigit():
        return int(total)
    return response.content_length if response.status == HTTPStatus.OK else None

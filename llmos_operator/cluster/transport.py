"""The port over HTTP: raw JSON to and from a real API server.

One aiohttp session, request building by hand, one error mapper (`cluster.failures`). No retries here and no caching:
`cluster.retry` and `cluster.reflector` do that on top. The Kubernetes client package is imported only for kubeconfigs
that need one of its authentication plugins.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from llmos_operator import __version__
from llmos_operator.cluster import credentials as creds
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import Ambiguous, Expired, Forbidden, Invalid, Silent, from_response
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llmos_operator.cluster.port import Json, Kind

    # verb, plural, HTTP status (0: none came), seconds
    Observer = Callable[[str, str, int, float], None]

REQUEST_SECONDS = 10.0
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
LIST_SECONDS = 30.0  # a page of 500 pods is 2.5 MB
# The API server itself tries a conflicting eviction 20 times, 500 to 550 ms apart, before it says so (Kubernetes,
# pkg/registry/core/pod/storage/eviction.go, EvictionsRetry): its answer may take 10.5 s.
EVICT_SECONDS = 15.0
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


async def connect(
    kubeconfig: str = "",
    *,
    context: str = "",
    process: str = "llmos",
    observe: Observer | None = None,
    connections: int = 0,
) -> Transport:
    """Return a transport for this process's credentials, of kubeconfig context ``context`` ("": the current one).

    ``connections`` bounds open connections (0: no bound). Raises `credentials.BadCredentials` naming what is missing.
    """
    try:
        found = creds.find(kubeconfig, context=context)
    except creds.NeedsPlugin as plugin:
        found = await _through_plugin(plugin.path, plugin.context)
    return Transport(found, process=process, observe=observe, connections=connections)


async def _through_plugin(path: str, context: str) -> creds.Credentials:
    """Let the Kubernetes client package run an `exec` or `auth-provider` plugin; keep only what it yields."""
    from kubernetes.aio.client import Configuration  # noqa: PLC0415 - costs 20 MB; see the module docstring
    from kubernetes.aio.client.rest import RESTClientObject  # noqa: PLC0415
    from kubernetes.aio.config import load_kube_config  # noqa: PLC0415

    configuration = Configuration()
    loader = await load_kube_config(
        config_file=path, context=context or None, client_configuration=configuration, persist_config=False
    )
    tls: ssl.SSLContext = RESTClientObject(configuration).ssl_context

    async def refresh() -> None:
        await loader.load_and_set(configuration)

    def read_token() -> str:
        value = str(configuration.api_key.get("BearerToken") or "")
        return value.removeprefix("Bearer ").removeprefix("bearer ").strip()

    return PluginCredentials(server=configuration.host, tls=tls, read_token=read_token, refresh=refresh)


class PluginCredentials(creds.Credentials):
    """Credentials whose token a plugin renews; `refresh` runs it when the token has expired."""

    def __init__(
        self,
        *,
        server: str,
        tls: ssl.SSLContext,
        read_token: Callable[[], str],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(server=server, tls=tls, read_token=read_token)
        self.refresh = refresh


class Transport:
    """:class:`~llmos_operator.cluster.port.ClusterPort` over HTTP."""

    def __init__(
        self,
        found: creds.Credentials,
        *,
        process: str = "llmos",
        observe: Observer | None = None,
        connections: int = 0,
    ) -> None:
        self.credentials = found
        self._observe = observe
        self._agent = f"{process}/{__version__}"
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def list_pages(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 250,
        metadata_only: bool = False,
    ) -> AsyncIterator[port.Page]:
        """See the port."""
        accept = _METADATA if metadata_only else _JSON
        query = _selectors(label_selector, field_selector) | {"limit": str(limit)}
        path = kind.path(namespace)
        while True:
            body = await self.request(
                "GET",
                path,
                query=query,
                seconds=LIST_SECONDS,
                verb="list",
                plural=kind.plural,
                accept=accept,
            )
            meta = body.get("metadata") or {}
            items = body.get("items") or []
            for item in items:  # lists leave these out of their items, or name the form that was asked for
                item["kind"] = kind.kind
                item["apiVersion"] = kind.api_version
            yield port.Page(tuple(items), str(meta.get("resourceVersion", "")))
            if not meta.get("continue"):
                return
            query["continue"] = meta["continue"]

    async def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 290,
        inactivity_seconds: float = 75.0,
    ) -> AsyncIterator[port.WatchEvent]:
        """See the port."""
        query = _selectors(label_selector, field_selector) | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        path = kind.path(namespace)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=REQUEST_SECONDS, sock_read=inactivity_seconds
        )
        try:
            async with self._send("GET", path, query, None, "", timeout) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise from_response("GET", path, response.status, await response.read(), response.headers)
                self._count("watch", kind.plural, response.status, 0.0)
                async for line in _lines(response.content):
                    yield _watch_event(line, path)
        except TimeoutError as error:
            raise Silent(f"watch {path}: silent for {inactivity_seconds:.0f} s", after=0.0) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            self._count("watch", kind.plural, 0, 0.0)
            raise Retryable(f"watch {path}: {type(error).__name__}: {error}") from error

    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> Json:
        """See the port."""
        return await self.request("GET", kind.path(namespace, name), verb="get", plural=kind.plural)

    async def create(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """See the port."""
        return await self.request("POST", kind.path(namespace), body=body, verb="create", plural=kind.plural)

    async def replace(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """See the port."""
        path = kind.path(namespace, str(body["metadata"]["name"]))
        return await self.request("PUT", path, body=body, verb="update", plural=kind.plural)

    async def apply(
        self,
        kind: Kind,
        body: Json,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        force: bool = True,
    ) -> Json:
        """See the port."""
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        path = kind.path(namespace, str(body["metadata"]["name"]), subresource)
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self.request(
            "PATCH", path, query=query, body=full, content_type=APPLY, verb="apply", plural=kind.plural
        )

    async def patch_status(self, kind: Kind, body: Json, *, manager: str, namespace: str = "") -> Json:
        """See the port."""
        return await self.apply(kind, body, manager=manager, namespace=namespace, subresource="status")

    async def merge_patch(
        self, kind: Kind, name: str, patch: Json, *, namespace: str = "", subresource: str = ""
    ) -> Json:
        """See the port."""
        path = kind.path(namespace, name, subresource)
        return await self.request(
            "PATCH", path, body=patch, content_type=MERGE, verb="patch", plural=kind.plural
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """See the port."""
        options = delete_options(uid, resource_version, grace_seconds)
        await self.request(
            "DELETE", kind.path(namespace, name), body=options, verb="delete", plural=kind.plural
        )

    async def evict(
        self, name: str, *, namespace: str, uid: str = "", grace_seconds: int | None = None
    ) -> None:
        """See the port."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": delete_options(uid, "", grace_seconds),
        }
        await self.request(
            "POST",
            port.PODS.path(namespace, name, "eviction"),
            body=body,
            seconds=EVICT_SECONDS,
            verb="evict",
            plural="pods",
        )

    async def token_review(self, token: str) -> port.TokenIdentity | None:
        """See the port."""
        kind = port.TOKEN_REVIEWS
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "spec": {"token": token}}
        status = (await self.create(kind, body)).get("status") or {}
        user = status.get("user") or {}
        if not status.get("authenticated"):
            return None
        extra = tuple((str(key), tuple(values)) for key, values in (user.get("extra") or {}).items())
        return port.TokenIdentity(str(user.get("username", "")), tuple(user.get("groups") or ()), extra)

    async def create_event(self, body: Json, *, namespace: str) -> None:
        """See the port."""
        await self.create(port.EVENTS, body, namespace=namespace)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        seconds: float = REQUEST_SECONDS,
        verb: str = "",
        plural: str = "",
        accept: str = _JSON,
    ) -> Json:
        """Send one request and return the decoded body. Raises the package's errors only."""
        limit = aiohttp.ClientTimeout(total=seconds)
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        started = time.monotonic()
        status = 0
        try:
            async with self._send(method, path, query, data, content_type, limit, accept) as response:
                status = response.status
                raw = await response.read()
                if status == HTTPStatus.UNAUTHORIZED:
                    # Rotated meanwhile: the caller's retry will carry the new one.
                    self.credentials.token(fresh=True)
                    await self._renew()
                if status >= HTTPStatus.BAD_REQUEST:
                    raise from_response(method, path, status, raw, response.headers)
                answer: Json = json.loads(raw) if raw else {}
                return answer
        except aiohttp.ClientConnectorError as error:
            raise Retryable(f"{method} {path}: cannot reach the API server: {error.os_error}") from error
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            text = f"{method} {path}: {type(error).__name__}: {error}"
            raise (Retryable(text) if method == "GET" else Ambiguous(text)) from error
        except ValueError as error:
            raise Invalid(f"{method} {path}: the answer is not JSON: {error}") from error
        finally:
            self._count(verb or method.lower(), plural, status, time.monotonic() - started)

    @asynccontextmanager
    async def open(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and hand out the response while it is still coming: logs, services behind the API server.

        Its status is the caller's to judge. Raises `Retryable` when the API server cannot be reached or breaks off.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS)
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            async with self._send(method, path, query, data, "application/json", timeout) as response:
                yield response
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise Retryable(f"{method} {path}: {type(error).__name__}: {error}") from error

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        data: bytes | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
        accept: str = _JSON,
    ) -> Any:
        headers = {"Accept": accept, "User-Agent": self._agent}
        if data is not None:
            headers["Content-Type"] = content_type
        token = self.credentials.token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self._open().request(
            method,
            self.credentials.server + path,
            params=query,
            data=data,
            headers=headers,
            timeout=timeout,
            server_hostname=self.credentials.server_name or None,
            allow_redirects=False,
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, ssl=self.credentials.tls or False)
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=True, read_bufsize=1 << 18
            )
        return self._session

    async def _renew(self) -> None:
        if isinstance(self.credentials, PluginCredentials):
            try:
                await self.credentials.refresh()
            except (OSError, ValueError) as error:
                raise Forbidden(f"the kubeconfig's plugin gave no new token: {error}") from error

    def _count(self, verb: str, plural: str, status: int, seconds: float) -> None:
        if self._observe is not None:
            self._observe(verb, plural, status, seconds)


def delete_options(uid: str, resource_version: str, grace_seconds: int | None) -> Json:
    """Return the DeleteOptions body with the preconditions that are set."""
    options: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
    preconditions = {"uid": uid, "resourceVersion": resource_version}
    if any(preconditions.values()):
        options["preconditions"] = {key: value for key, value in preconditions.items() if value}
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    return options


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    pairs = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {key: value for key, value in pairs.items() if value}


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a stream; unlike `readline` without an upper bound, as objects may be 1.5 MB."""
    rest = b""
    async for chunk in content.iter_any():
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line:
                yield line
        # A burst of events must not keep the loop from answering probes.
        await asyncio.sleep(0)
    if rest.strip():
        raise Retryable("the watch ended inside an event", after=0.0)


def _watch_event(line: bytes, path: str) -> port.WatchEvent:
    try:
        event = json.loads(line)
        kind, body = event["type"], event["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise Retryable(f"watch {path}: not an event: {line[:100]!r}") from error
    if kind == "ERROR":
        code = int(body.get("code") or 500)
        if code == HTTPStatus.GONE:
            raise Expired(f"watch {path}: {body.get('message', '')}")
        raise Retryable(f"watch {path}: {body.get('message', '')} ({code})")
    return port.WatchEvent(kind, body)

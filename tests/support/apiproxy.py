"""A proxy between a process under test and a real API server: counts requests, and makes the network fail on purpose.

It speaks plain HTTP to the process (the kubeconfig it writes has no token) and adds an administrator's credentials
towards the server. Watches stream through line by line, so single events can be held back.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from llmos_operator.cluster import credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came through."""

    method: str
    path: str
    query: str
    status: int
    agent: str = ""

    @property
    def write(self) -> bool:
        return self.method != "GET"


@dataclass(slots=True)
class ApiProxy:
    """Forwards to one API server. Set the hooks to make things go wrong."""

    kubeconfig: str
    requests: list[Seen] = field(default_factory=list)
    # (event type, object) -> whether the watch event is swallowed
    swallow: Callable[[str, dict], bool] = lambda *_: False
    # (method, path) -> status to answer instead of asking the server, or 0
    fail: Callable[[str, str], int] = lambda *_: 0
    # (method, path) -> whether the server is asked but the answer thrown away
    lose_answer: Callable[[str, str], bool] = lambda *_: False
    port: int = 0
    _runner: web.AppRunner | None = None
    _session: ClientSession | None = None
    _found: credentials.Credentials | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        found = credentials.from_kubeconfig(self.kubeconfig)
        self._found = found
        self._session = ClientSession(
            connector=TCPConnector(limit=0, ssl=found.tls),
            timeout=ClientTimeout(total=None),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    def write_kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads through this proxy."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "proxy", "user": {"token": "unused"}}],
        }
        path.write_text(json.dumps(document))
        return path

    def writes(self, *, but: tuple[str, ...] = ("/leases/",)) -> list[Seen]:
        """Return the requests that change something, without those whose path has one of ``but``."""
        return [seen for seen in self.requests if seen.write and not any(part in seen.path for part in but)]

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            return await self._ask(request)
        finally:
            self._tasks.discard(task)

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        refused = self.fail(request.method, request.path)
        if refused:
            self._note(request, refused)
            return web.json_response(
                {"kind": "Status", "code": refused, "message": "injected"}, status=refused
            )
        headers = {
            key: value for key, value in request.headers.items() if key.lower() not in HOP | {"authorization"}
        }
        headers["Accept-Encoding"] = "identity"
        token = self._found.token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        body = await request.read()
        try:
            async with self._session.request(
                request.method, self._found.server + request.path_qs, headers=headers, data=body or None
            ) as answer:
                self._note(request, answer.status)
                if self.lose_answer(request.method, request.path):
                    await answer.read()
                    return _cut(request)
                return await self._pass_on(request, answer)
        except OSError:
            self._note(request, 0)
            return _cut(request)

    def _note(self, request: web.Request, status: int) -> None:
        agent = request.headers.get("User-Agent", "")
        self.requests.append(Seen(request.method, request.path, request.query_string, status, agent))

    async def _pass_on(self, request: web.Request, answer) -> web.StreamResponse:
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in HOP}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        watch = request.query.get("watch") in {"1", "true"} and answer.status == 200
        rest = b""
        async for chunk in answer.content.iter_any():
            if not watch:
                await response.write(chunk)
                continue
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line and not self._swallowed(line):
                    await response.write(line + b"\n")
        await response.write_eof()
        return response

    def _swallowed(self, line: bytes) -> bool:
        event = json.loads(line)
        return event["type"] != "BOOKMARK" and self.swallow(event["type"], event["object"])


async def until_asked(proxy: ApiProxy, condition: Callable[[Seen], bool], seconds: float = 90.0) -> None:
    """Wait until a request that satisfies ``condition`` has come through."""
    async with asyncio.timeout(seconds):
        while not any(condition(seen) for seen in proxy.requests):
            await asyncio.sleep(0.02)


def _cut(request: web.Request) -> web.Response:
    """Close a request's connection without an answer. The client may have left already."""
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=502)

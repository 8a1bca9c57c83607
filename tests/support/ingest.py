"""A small operator for agents: an HTTP endpoint that takes telemetry as the real one does, and remembers it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from llmos_operator.telemetry.ingest import Ingest

if TYPE_CHECKING:
    from llmos_operator.telemetry.ingest import Report


@dataclass
class IngestEndpoint:
    """Listens on loopback; `status` is what it answers, `reports` what it took."""

    node: str
    status: int = 200
    reports: list[Report] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    ingest: Ingest = field(default_factory=Ingest)
    url: str = ""
    _runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_post("/v1/telemetry", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        self.arrived.append(now)
        self.tokens.append(request.headers.get("Authorization", ""))
        body = await request.read()
        if self.status != 200:
            return web.Response(status=self.status, text="not now")
        report = self.ingest.accept(body, self.node, now)
        if report is not None:
            self.reports.append(report)
        return web.Response(status=200)

    async def until(self, count: int, seconds: float = 90.0) -> None:
        """Wait until ``count`` reports were taken."""
        async with asyncio.timeout(seconds):
            while len(self.reports) < count:
                await asyncio.sleep(0.01)

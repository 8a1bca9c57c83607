"""The health server of a process: `/livez`, `/readyz`, `/metrics` over plain HTTP.

Live means "do not restart me": the main loop still turns. Ready means "send me work". Each is a set of named checks,
so that a red probe says which one failed; `?verbose` lists them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from llmos_operator.observability.logging import logger
from llmos_operator.observability.metrics import rendered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

    Check = Callable[[], str]  # "" when it holds, else what is wrong

log = logger(__name__)


class HealthServer:
    """Serves probes and metrics until closed.

    `live` and `ready` map a check's name to a function that returns "" when it holds, else what is wrong.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
    ) -> None:
        self._registry = registry
        self._live = live
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen on ``host:port``; port 0 picks one, see :attr:`port`. Raises OSError if it is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = int(self._runner.addresses[0][1])
        log.info("health server listens", host=host, port=self.port)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _livez(self, request: web.Request) -> web.Response:
        return self._answer(request, self._live)

    async def _readyz(self, request: web.Request) -> web.Response:
        return self._answer(request, self._ready)

    def _answer(self, request: web.Request, checks: Mapping[str, Check]) -> web.Response:
        results = {name: check() for name, check in checks.items()}
        failed = {name: why for name, why in results.items() if why}
        lines = [f"[-] {name}: {why}" for name, why in failed.items()]
        if "verbose" in request.query:
            lines += [f"[+] {name}" for name in results if name not in failed]
        return web.Response(status=503 if failed else 200, text="\n".join(lines) or "ok")

    async def _metrics(self, _: web.Request) -> web.Response:
        body, content_type = await rendered(self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

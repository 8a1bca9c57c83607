"""Serves the console: files of its own, one JSON of everything, one of a workload, one of the last hour.

Who may see it is the cluster's to say: it listens on loopback only, so the way to it is `kubectl port-forward` to the
leader's pod, which needs the right `create` on `pods/portforward` in the operator's namespace. A browser is not that
user: pages of others must not read it through the forwarded port, so requests have to name a loopback host (against DNS
rebinding), data is for the page itself and no other site, and the page may load nothing but itself. It answers GET alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
from importlib import resources
from typing import TYPE_CHECKING, Final

from aiohttp import web

from llmos_operator.control.console import view
from llmos_operator.control.console.history import EVERY_SECONDS, History
from llmos_operator.observability.logging import logger
from llmos_operator.settings import BadSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmos_operator.clock import Clock
    from llmos_operator.control.accounting import Accounts
    from llmos_operator.control.records import Records
    from llmos_operator.control.remedies import Remedies
    from llmos_operator.state.store import Store

log = logger(__name__)

FRESH_SECONDS: Final = 1.0  # however many look, everything is put together at most this often
_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/console.css": ("console.css", "text/css"),
    "/console.js": ("console.js", "text/javascript"),
    "/charts.js": ("charts.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OWN_SITE: Final = frozenset({"", "same-origin", "none"})  # of Sec-Fetch-Site; "none": typed by a person


def loopback(text: str) -> bool:
    """Return whether a host is loopback: by name, or as an address with or without brackets."""
    if text.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(text.strip("[]")).is_loopback
    except ValueError:
        return False


def console_host(host: str, process_host: str) -> str:
    """Return the address to listen on: the one set, else the process's own if it is loopback, else 127.0.0.1.

    Raises `BadSettings` for any other than loopback.
    """
    if host and not loopback(host):
        raise BadSettings(
            f"console.host = {host!r} is not a loopback address; the console has no sign-in of its own: leave the "
            "setting out and use kubectl port-forward"
        )
    return host or (process_host if loopback(process_host) else "127.0.0.1")


class ConsoleServer:
    """The console of one operator process. Reads store, records and accounts when somebody looks, and for `history`."""

    def __init__(
        self,
        store: Store,
        records: Records,
        accounts: Accounts,
        remedies: Remedies,
        clock: Clock,
        *,
        rack_label: str,
        leading: Callable[[], bool],
    ) -> None:
        """`rack_label`: of nodes, names their rack; "" where there are none."""
        self.port = 0
        self.history = History(records, accounts.busy_percent)
        self._store = store
        self._records = records
        self._accounts = accounts
        self._remedies = remedies
        self._clock = clock
        self._rack_label = rack_label
        self._leading = leading
        self._made_at = float("-inf")  # monotonic
        self._body = b""
        self._tag = ""
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen on loopback ``host:port``; port 0 picks one. Raises OSError if it is taken."""
        app = web.Application(middlewares=[_guard])
        folder = resources.files("llmos_operator.control.console") / "page"
        for path, (name, kind) in _FILES.items():
            app.router.add_get(path, _file((folder / name).read_bytes(), kind))
        app.router.add_get("/state.json", self._overview)
        app.router.add_get("/workload.json", self._workload)
        app.router.add_get("/history.json", self._past)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = int(self._runner.addresses[0][1])
        log.info("console server listens", host=host, port=self.port)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def remember(self) -> None:
        """Sample the history until cancelled; ends at once where no page is served."""
        while self._runner is not None:
            if self._leading() and self._store.synced():
                await self._sample()
            await asyncio.sleep(EVERY_SECONDS)

    async def _sample(self) -> None:
        try:
            await self.history.sample(self._store.snapshot(), self._clock.now())
        except Exception:  # what the charts lack must not be silent, nor end the leader
            log.exception("no sample for the console's history, the next one is tried")

    async def _overview(self, request: web.Request) -> web.Response:
        now = self._clock.monotonic()
        if now - self._made_at >= FRESH_SECONDS:
            self._made_at = now
            self._body = self._make()
            self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        if request.headers.get("If-None-Match") == self._tag:
            return web.Response(status=304, headers={"ETag": self._tag})
        response = web.Response(body=self._body, content_type="application/json", headers={"ETag": self._tag})
        response.enable_compression()
        return response

    def _make(self) -> bytes:
        if not self._leading():
            shown: view.Json = {"leading": False}  # a replica that stands by knows nothing
        else:
            found = view.overview(
                self._store.snapshot(),
                self._records,
                self._accounts.busy_percent,
                self._accounts.draw,
                self._remedies.proposals,
                self._rack_label,
                self._clock.now(),
            )
            shown = {"leading": True, **found}
        return json.dumps(shown, separators=(",", ":"), ensure_ascii=False).encode()

    async def _workload(self, request: web.Request) -> web.Response:
        record = self._records.get(request.query.get("key", "")) if self._leading() else None
        if record is None:
            raise web.HTTPNotFound(text="no such workload\n")
        return web.json_response(view.detail(record))

    async def _past(self, _: web.Request) -> web.Response:
        response = web.json_response(self.history.told() if self._leading() else {})
        response.enable_compression()
        return response


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse requests a page of somebody else may have made; put the headers on every answer."""
    host = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdigit() else request.host
    # A link of another site may lead to the page, which holds nothing; what it asks for is for itself alone.
    foreign = request.headers.get("Sec-Fetch-Site", "") not in _OWN_SITE and request.path not in _FILES
    if foreign or not loopback(host):
        return web.Response(
            status=403, text="the console answers its own page on a loopback address only\n", headers=HEADERS
        )
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    response.headers.update(HEADERS)
    return response


def _file(body: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return serve

"""Ports of a runtime's programs: opened before anything is served on them, and served without taking over signals."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Port:
    """One app on one open port."""

    def __init__(self, app: ASGIApp, host: str, port: int, **limits: Any) -> None:
        """Open the port, 0 for any that is free. ``limits`` are further settings of uvicorn. Raises OSError if it is taken."""
        self._listener = _listen(host, port)
        self.number = int(self._listener.getsockname()[1])
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=2,
            **limits,
        )
        self._server = uvicorn.Server(config)

    async def serve(self) -> None:
        """Serve until :meth:`end`."""
        await self._server._serve([self._listener])  # noqa: SLF001 - `serve` is this inside a signal handler of its own

    def end(self) -> None:
        """Let :meth:`serve` come to its end; may be called from any thread."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close a port that was never served."""
        self._listener.close()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener

"""One listening address that forwards connections; bytes pass as they come, so streams stream.

Backpressure goes through: a side that does not read stops the other side from being read. An end of file in one
direction is passed on and the other direction stays open.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.local.proxy.endpoints import Address

_CHUNK = 1 << 16
_CONNECT_SECONDS = 2.0
_BACKLOG = 1024


class Forwarder:
    """Listens on ``address`` while there are targets; without any, connections are refused as by a real Service."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._targets: tuple[Address, ...] = ()
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None
        self._flows: set[asyncio.Task[None]] = set()

    async def update(self, targets: tuple[Address, ...]) -> None:
        """Take new targets. Connections under way stay where they are. Raises OSError if the address cannot be had."""
        self._targets = targets
        if targets and self._server is None:
            host, port = self.address
            self._server = await asyncio.start_server(
                self._accept, host, port, backlog=_BACKLOG, limit=_CHUNK, reuse_address=True
            )
        elif not targets and self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        """Stop listening and end all connections."""
        await self.update(())
        for flow in list(self._flows):
            flow.cancel()
        if self._flows:
            await asyncio.wait(self._flows, timeout=1.0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self._flows.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            _reset(writer)  # the peer should see that this was no orderly end
        finally:
            self._flows.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await self._connect()
        if upstream is None:
            _reset(writer)
            return
        up_reader, up_writer = upstream
        for each in (writer, up_writer):
            _no_delay(each)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, up_writer))
                group.create_task(_pump(up_reader, writer))
        except* OSError:
            _reset(writer)
            _reset(up_writer)
        finally:
            up_writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to the next target in turn; those that do not answer are passed over."""
        for _ in range(len(self._targets)):
            targets = self._targets
            if not targets:
                return None
            host, port = targets[next(self._turn) % len(targets)]
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(host, port, limit=_CHUNK)
            except (OSError, TimeoutError):
                continue
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(_CHUNK):
        writer.write(block)
        await writer.drain()
    with contextlib.suppress(OSError):  # the other side has left already
        if writer.can_write_eof():
            writer.write_eof()


def _no_delay(writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer gets a reset."""
    transport = writer.transport
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()

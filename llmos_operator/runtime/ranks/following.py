"""`llmos runtime` in a pod beside the leader's: no ports, only this pod's ranks, kept alive until told to stop.

A rank ends when rank 0 does; the next one then waits for the next rank 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from llmos_operator.errors import Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.zygote import Zygote

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.settings import RuntimeSettings

log = logger(__name__)

_PAUSE_SECONDS = 1.0


async def follow(settings: RuntimeSettings, stop: asyncio.Event) -> None:
    """Run the ranks of a pod that is not the leader's until ``stop`` is set."""
    zygote = Zygote()
    first = settings.node_rank * settings.local_ranks
    load = settings.load_order()
    ranks = [
        asyncio.create_task(_keep(zygote, dataclasses.replace(load, rank=first + place)))
        for place in range(settings.local_ranks)
    ]
    try:
        await stop.wait()
    finally:
        for one in ranks:
            one.cancel()
        await asyncio.gather(*ranks, return_exceptions=True)
        await zygote.close()


async def _keep(zygote: Zygote, load: Load) -> None:
    while True:
        try:
            child = await zygote.spawn()
        except Retryable as error:
            log.warning("a rank could not be started", rank=load.rank, detail=str(error))
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        log.info("rank started", rank=load.rank, pid=child.pid)
        loop = asyncio.get_running_loop()
        try:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(child.connection, codec.encode(load))
            await child.exited.wait()
        finally:
            child.connection.close()
        log.warning("rank ended, and is started again", rank=load.rank, status=child.exit_status)
        await asyncio.sleep(_PAUSE_SECONDS)

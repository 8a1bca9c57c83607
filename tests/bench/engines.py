"""An engine in a process of its own, without a front: told what to load, asked for tokens."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import EngineClient, Zygote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.runtime.ipc import Load
    from llmos_operator.runtime.ipc.client import EngineStatus

PROMPT = tuple(range(1000, 1032))  # 32 tokens: what they say does not matter, everybody continues the same
SECONDS = 240.0


@asynccontextmanager
async def an_engine() -> AsyncIterator[EngineClient]:
    """An engine of one thread, to be told what to load."""
    os.environ |= {"OMP_NUM_THREADS": "1", "LLMOS_LOG_LEVEL": "warning"}
    zygote = Zygote()
    client = EngineClient(zygote=zygote)
    try:
        await client.prepare()
        yield client
    finally:
        await client.close()
        await zygote.close()


async def load_model(client: EngineClient, wanted: Load) -> tuple[EngineStatus, float]:
    """Return the status of a model that is ready, and the seconds that took."""
    began = time.perf_counter()
    async with asyncio.timeout(SECONDS):
        await client.load(wanted)
        status = await client.wait(RuntimeState.READY, RuntimeState.FAILED)
    if status.state is not RuntimeState.READY:
        raise RuntimeError(f"{wanted.format} was not loaded: {status.failure}")
    return status, time.perf_counter() - began

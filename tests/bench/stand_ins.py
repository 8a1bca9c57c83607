"""Stand-ins of a benchmark for what runs on nodes: agents that report, and a kubelet that ends pods at once."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.reflector import Reflector
from tests.bench.load import TEAM, Json, each
from tests.support.operator_process import GIB, agent_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.cluster.transport import Transport
    from tests.support.operator_process import OperatorProcess

MEMORY = 8 * GIB


class Agents:
    """Reports devices in use by nobody, for every node, each with the token of an agent on it."""

    def __init__(self, url: str, tokens: dict[str, str], devices: int, interval: float) -> None:
        self._url = url
        self._tokens = tokens
        self._devices = devices
        self._interval = interval

    @classmethod
    @asynccontextmanager
    async def of(
        cls, port: Transport, process: OperatorProcess, nodes: int, interval: float, devices: int = 8
    ) -> AsyncIterator[None]:
        """Let all nodes report until the block ends; all have once when it begins."""
        tokens: dict[str, str] = {}

        async def take(node: str) -> None:
            tokens[node] = await agent_token(port, node)

        await each([f"node-{n:04}" for n in range(nodes)], take)
        url = f"http://127.0.0.1:{process.port_of('ingest')}/v1/telemetry"
        agents = cls(url, tokens, devices, interval)
        async with ClientSession() as session:
            await agents.round(session, 1, pace=False)
            task = asyncio.create_task(agents.run(session))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def run(self, session: ClientSession) -> None:
        """Report until cancelled."""
        sequence = 1
        while True:
            sequence += 1
            await self.round(session, sequence, pace=True)

    async def round(self, session: ClientSession, sequence: int, *, pace: bool) -> None:
        """Report every node once, spread over the interval."""
        for node, token in self._tokens.items():
            devices = [
                {
                    "uuid": f"GPU-sim-{node}-{index}",
                    "index": index,
                    "memoryTotalBytes": MEMORY,
                    "memoryUsedBytes": 0,
                    "verdict": "Healthy",
                }
                for index in range(self._devices)
            ]
            body = {"node": node, "epoch": 1, "sequence": sequence, "devices": devices}
            headers = {"Authorization": f"Bearer {token}"}
            with suppress(ClientError):  # as an agent does: the next batch tells it all
                async with session.post(self._url, json=body, headers=headers) as answer:
                    answer.raise_for_status()
            if pace:
                await asyncio.sleep(self._interval / len(self._tokens))


@asynccontextmanager
async def ending(port: Transport) -> AsyncIterator[None]:
    """End the operator's pods as soon as they are asked to go, until the block ends."""
    asked: set[str] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def end(meta: Json) -> None:
        with suppress(NotFound):
            await port.delete(ports.PODS, meta["name"], namespace=TEAM, uid=meta["uid"], grace_seconds=0)

    def take(change: Change, pod: Json) -> None:
        meta = pod["metadata"]
        if change is Change.APPLIED and meta.get("deletionTimestamp") and meta["uid"] not in asked:
            asked.add(meta["uid"])
            tasks.add(asyncio.create_task(end(meta)))

    reflector = Reflector(port, Mirror(ports.PODS, take), field_selector=f"metadata.namespace={TEAM}")
    watch = asyncio.create_task(reflector.run())
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.gather(watch, *tasks, return_exceptions=True)

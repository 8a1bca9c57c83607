"""Stand-ins of a benchmark for what runs on nodes: agents that report, and a kubelet that ends pods at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession, TCPConnector

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

DEVICES, MEMORY = 8, 8 * GIB


@asynccontextmanager
async def reporting(
    port: Transport, process: OperatorProcess, nodes: int, interval: float
) -> AsyncIterator[None]:
    """Let the agent of every node report devices in use by nobody, until the block ends; all have when it begins."""
    tokens: dict[str, str] = {}

    async def take(node: str) -> None:
        tokens[node] = await agent_token(port, node)

    await each([f"node-{n:04}" for n in range(nodes)], take)
    url = f"http://127.0.0.1:{process.port_of('ingest')}/v1/telemetry"
    async with AsyncExitStack() as stack:
        agents = [
            Agent(node, tokens[node], await stack.enter_async_context(_session(number)), url)
            for number, node in enumerate(sorted(tokens))
        ]
        await each(agents, Agent.report)
        task = asyncio.create_task(_in_turn(agents, interval))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _in_turn(agents: list[Agent], interval: float) -> None:
    while True:
        for agent in agents:
            with suppress(ClientError):  # as an agent does: the next batch tells it all
                await agent.report()
            await asyncio.sleep(interval / len(agents))


def _session(number: int) -> ClientSession:
    """Return a session with an address of its own, as agents have: tokens are reviewed at a bounded rate per address."""
    address = f"127.90.{number >> 8}.{number & 255 or 254}"
    return ClientSession(connector=TCPConnector(local_addr=(address, 0)))


class Agent:
    """The agent of one node."""

    def __init__(self, node: str, token: str, session: ClientSession, url: str) -> None:
        self._node = node
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session = session
        self._url = url
        self._sequence = 0

    async def report(self) -> None:
        """Send one batch. Raises ClientError if it is refused."""
        self._sequence += 1
        devices = [
            {
                "uuid": f"GPU-sim-{self._node}-{index}",
                "index": index,
                "memoryTotalBytes": MEMORY,
                "memoryUsedBytes": 0,
                "verdict": "Healthy",
            }
            for index in range(DEVICES)
        ]
        body = {"node": self._node, "epoch": 1, "sequence": self._sequence, "devices": devices}
        async with self._session.post(self._url, json=body, headers=self._headers) as answer:
            answer.raise_for_status()


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

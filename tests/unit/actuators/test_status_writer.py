from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.actuators.status import StatusWriter
from llmos_operator.actuators.writequeue import WriteQueue
from llmos_operator.clock import SystemClock
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import MODEL_WORKLOADS
from llmos_operator.errors import Conflict, Retryable
from llmos_operator.manifests.observed import Observed
from llmos_operator.state import convert
from tests.support.replicas import NOW, a_manifest, a_pod_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio


class Desk:
    """A status writer over the in-memory port, for one workload."""

    def __init__(self) -> None:
        self.port = FakeCluster()
        self.allowed = True
        self.busy = False
        self.ready = False
        self.stored: dict[str, Any] = {}
        self.queue = WriteQueue(2, lambda: self.allowed)
        self.mirror = Mirror(MODEL_WORKLOADS, self._sink)
        self.writer = StatusWriter(
            port=self.port,
            queue=self.queue,
            mirror=self.mirror,
            observe=self.observe,
            busy=lambda _: self.busy,
            clock=SystemClock(),
            backoff=KeyedBackoff(Curve(base=0.02, cap=0.05), Random(1)),
        )

    def _sink(self, change: Change, body: dict[str, Any]) -> None:
        self.stored = body if change is Change.APPLIED else {}

    def observe(self, _: str) -> Observed | None:
        if not self.stored:
            return None
        work = convert.workload(self.stored)
        pods = (a_pod_of(work, ready=self.ready),)
        return Observed(workload=work, now=NOW, previous=self.stored.get("status") or {}, pods=pods)

    def writes(self) -> int:
        return sum(1 for verb, plural, _ in self.port.calls if (verb, plural) == ("apply", "modelworkloads"))

    async def phase(self) -> str:
        found = await self.port.get(MODEL_WORKLOADS, "chat", namespace="team")
        return (found.get("status") or {}).get("phase", "")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def a_desk() -> AsyncIterator[Desk]:
    desk = Desk()
    body = a_manifest()
    made = await desk.port.create(MODEL_WORKLOADS, body, namespace="team")
    desk.mirror.observe("ADDED", made)
    tasks = [asyncio.create_task(desk.writer.run()), asyncio.create_task(desk.queue.run())]
    try:
        yield desk
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_change_is_written_and_a_quiet_state_is_not() -> None:
    async with a_desk() as desk:
        desk.writer.mark("team/chat")
        await until(lambda: desk.writer.written == 1)
        for _ in range(5):
            desk.writer.mark("team/chat")
            await asyncio.sleep(0.02)
        assert desk.writes() == 1
        assert await desk.phase() == "Loading"


async def test_a_status_the_fence_dropped_is_written_when_this_process_leads_again() -> None:
    async with a_desk() as desk:
        desk.allowed = False
        desk.writer.mark("team/chat")
        await until(lambda: desk.queue.refused >= 1)
        assert desk.writes() == 0
        desk.allowed = True
        await until(lambda: desk.writer.written == 1)
        assert await desk.phase() == "Loading"


@pytest.mark.parametrize("error", [Conflict("race"), Retryable("down"), Retryable("429", after=0.05)])
async def test_a_write_that_failed_is_tried_again(error: Exception) -> None:
    async with a_desk() as desk:
        desk.port.fail("apply", "modelworkloads", error, times=2)  # type: ignore[arg-type]
        desk.writer.mark("team/chat")
        await until(lambda: desk.writer.written == 1)
        assert desk.writes() == 3


async def test_nothing_is_written_while_more_is_on_its_way() -> None:
    async with a_desk() as desk:
        desk.busy = True
        desk.writer.mark("team/chat")
        await asyncio.sleep(0.1)
        assert desk.writes() == 0
        desk.busy, desk.ready = False, True
        desk.writer.mark("team/chat")
        await until(lambda: desk.writer.written == 1)
        assert await desk.phase() == "Running"


async def test_a_recreated_workload_does_not_get_its_predecessors_status() -> None:
    async with a_desk() as desk:
        await desk.port.delete(MODEL_WORKLOADS, "chat", namespace="team")
        await desk.port.create(MODEL_WORKLOADS, a_manifest(), namespace="team")
        desk.writer.mark("team/chat")  # the mirror still knows the former one
        await asyncio.sleep(0.1)
        assert await desk.phase() == ""


async def test_an_object_that_changes_all_the_time_is_written_once_a_second_after_a_burst() -> None:
    async with a_desk() as desk:
        for turn in range(60):
            desk.ready = turn % 2 == 0
            desk.writer.mark("team/chat")
            await asyncio.sleep(0.02)
        assert 3 <= desk.writes() <= 5

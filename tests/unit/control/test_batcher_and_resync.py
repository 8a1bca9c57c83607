from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.mirror import Mirror
from llmos_operator.cluster.port import SERVICES
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.control.batcher import Batcher
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.resync import Resync, Source
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.cluster.port import Page

pytestmark = pytest.mark.anyio


async def test_a_single_event_is_not_kept_waiting() -> None:
    batcher = Batcher(quiet=600, longest=600)
    batcher.trigger()
    assert await batcher.wait(60)


async def test_events_that_keep_coming_are_gathered_until_they_pause() -> None:
    batcher = Batcher(quiet=0.5, longest=60)
    batcher.trigger()
    assert await batcher.wait(60)

    async def rain() -> None:
        for _ in range(5):
            batcher.trigger()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(rain())
    assert await batcher.wait(60)
    assert task.done()
    assert not await batcher.wait(0.01)


async def test_events_that_never_pause_are_cut_off() -> None:
    batcher = Batcher(quiet=5.0, longest=0.3)
    batcher.trigger()
    assert await batcher.wait(60)

    async def storm() -> None:
        while True:
            batcher.trigger()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(storm())
    try:
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert await batcher.wait(60)
        assert loop.time() - started > 0.2
        assert not task.done()
    finally:
        task.cancel()


async def test_nothing_is_no_batch() -> None:
    assert not await Batcher().wait(0.01)


def service(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {}}


class Bench:
    def __init__(self, port: FakeCluster) -> None:
        self.told: list[str] = []
        self.confirmed: list[int] = []
        self.mirror = Mirror(
            SERVICES, lambda change, body: self.told.append(f"{change} {body['metadata']['name']}")
        )
        self.reflector = Reflector(port, self.mirror, rng=Random(1))
        metrics = OperatorMetrics(CollectorRegistry())

        async def sleep(_: float) -> None:
            await asyncio.sleep(0)

        self.resync = Resync(
            [Source(self.reflector)],
            metrics,
            interval=3600,
            begin=lambda: 7,
            after=self.confirmed.append,
            sleep=sleep,
        )

    async def round(self) -> None:
        task = asyncio.create_task(self.resync.run())
        self.resync.ask()
        for _ in range(60):
            await asyncio.sleep(0)
        task.cancel()


async def test_what_a_watch_lost_is_brought_by_the_resync_and_counted() -> None:
    port = FakeCluster()
    bench = Bench(port)
    await port.create(SERVICES, service("kept"), namespace="ns")
    await port.create(SERVICES, service("lost"), namespace="ns")
    await bench.reflector.refill()
    await port.delete(SERVICES, "lost", namespace="ns")
    await port.create(SERVICES, service("missed"), namespace="ns")
    bench.told.clear()
    await bench.round()
    assert sorted(bench.told) == ["Applied missed", "Deleted lost"]
    assert bench.mirror.repaired == 2
    assert bench.confirmed == [7]


async def test_a_resync_notices_that_the_servers_history_was_replaced() -> None:
    port = FakeCluster()
    bench = Bench(port)
    await port.create(SERVICES, service("a"), namespace="ns")
    bench.mirror.settle((), 10_000)  # versions as they were before a backup was restored
    await bench.round()
    assert bench.told == ["Applied a"]
    assert bench.mirror.version < 10_000


async def test_a_resync_that_finds_nothing_repairs_nothing() -> None:
    port = FakeCluster()
    bench = Bench(port)
    await port.create(SERVICES, service("a"), namespace="ns")
    await bench.reflector.refill()
    bench.told.clear()
    await bench.round()
    assert bench.told == []
    assert bench.mirror.repaired == 0


async def test_a_resync_reads_whole_objects_only_to_repair() -> None:
    port = FakeCluster()
    bench = Bench(port)
    await port.create(SERVICES, service("a"), namespace="ns")
    await bench.reflector.refill()
    bodies: list[dict[str, Any]] = []
    list_pages = port.list_pages

    async def noted(*arguments: Any, **options: Any) -> AsyncIterator[Page]:
        async for page in list_pages(*arguments, **options):
            bodies.extend(page.items)
            yield page

    port.list_pages = noted  # type: ignore[method-assign]
    await bench.round()
    assert [sorted(body) for body in bodies] == [["apiVersion", "kind", "metadata"]]
    await port.create(SERVICES, service("missed"), namespace="ns")
    await bench.round()
    assert sum("spec" in body for body in bodies) == 2


async def test_what_comes_while_a_resync_waits_is_told_once() -> None:
    port = FakeCluster()
    bench = Bench(port)
    await port.create(SERVICES, service("a"), namespace="ns")
    await bench.reflector.refill()
    listed, version = await bench.reflector.versions()
    made = await port.create(SERVICES, service("b"), namespace="ns")
    bench.mirror.observe("ADDED", made)
    bench.told.clear()
    assert not bench.mirror.behind(listed)
    assert bench.mirror.settle(listed, version) == 0
    assert bench.told == []


async def test_a_resync_that_could_not_list_confirms_nothing() -> None:
    port = FakeCluster()
    bench = Bench(port)
    bench.mirror.settle((), 1)
    port.fail("list", "services", Retryable("down"), times=1000)
    await bench.round()
    assert bench.confirmed == []

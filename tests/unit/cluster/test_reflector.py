from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import SERVICES
from llmos_operator.cluster.reflector import UNSERVED_SECONDS, Reflector
from llmos_operator.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llmos_operator.cluster.port import Kind, Page

pytestmark = pytest.mark.anyio


def service(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "spec": {}}


class Seen:
    def __init__(self) -> None:
        self.objects: dict[str, str] = {}
        self.recoveries = 0

    def sink(self, change: Change, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if change is Change.DELETED:
            self.objects.pop(name)
        else:
            self.objects[name] = body["metadata"]["resourceVersion"]

    def recovered(self) -> None:
        self.recoveries += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def reflecting(port: FakeCluster, seen: Seen) -> AsyncIterator[Reflector]:
    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    reflector = Reflector(
        port,
        Mirror(SERVICES, seen.sink),
        rng=Random(1),
        on_recovery=seen.recovered,
        sleep=sleep,
    )
    task = asyncio.create_task(reflector.run())
    try:
        await until(lambda: reflector.mirror.synced)
        yield reflector
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_it_shows_what_was_there_and_what_comes() -> None:
    port, seen = FakeCluster(), Seen()
    await port.create(SERVICES, service("a"), namespace="ns")
    async with reflecting(port, seen):
        await port.create(SERVICES, service("b"), namespace="ns")
        await port.delete(SERVICES, "a", namespace="ns")
        await until(lambda: set(seen.objects) == {"b"})
    assert [call[0] for call in port.calls].count("list") == 1


async def test_a_forgotten_version_makes_it_list_again() -> None:
    port, seen = FakeCluster(), Seen()
    async with reflecting(port, seen) as reflector:
        await until(lambda: ("watch", "services", "/") in port.calls)
        port.fail("watch", "services", Retryable("broken"))
        await port.create(SERVICES, service("a"), namespace="ns")
        await port.create(SERVICES, service("gone"), namespace="ns")
        await port.delete(SERVICES, "gone", namespace="ns")
        port.compact()
        reflector.relist()
        await until(lambda: set(seen.objects) == {"a"} and reflector.lists == 2)


async def test_a_broken_stream_is_resumed_without_listing() -> None:
    port, seen = FakeCluster(), Seen()
    port.fail("watch", "services", Retryable("broken"), times=2)
    async with reflecting(port, seen) as reflector:
        await port.create(SERVICES, service("a"), namespace="ns")
        await until(lambda: set(seen.objects) == {"a"})
        assert reflector.lists == 1
        assert seen.recoveries == 1


async def test_when_resuming_keeps_failing_it_lists_again() -> None:
    port, seen = FakeCluster(), Seen()
    port.fail("watch", "services", Retryable("broken"), times=4)
    async with reflecting(port, seen) as reflector:
        await until(lambda: reflector.lists == 2)


async def test_a_server_that_is_away_is_waited_for() -> None:
    port, seen = FakeCluster(), Seen()
    port.fail("list", "services", Retryable("down"), times=20)
    async with reflecting(port, seen) as reflector:
        assert reflector.lists == 1
        assert seen.recoveries == 1


async def test_versions_that_went_back_are_believed() -> None:
    port, seen = FakeCluster(), Seen()
    await port.create(SERVICES, service("a"), namespace="ns")
    await port.create(SERVICES, service("b"), namespace="ns")
    async with reflecting(port, seen) as reflector:
        restored = FakeCluster()  # a restored backup: older versions, other content
        await restored.create(SERVICES, service("b"), namespace="ns")
        reflector._port = restored
        reflector.relist()
        await until(lambda: set(seen.objects) == {"b"})


async def test_versions_are_listed_without_telling_anybody() -> None:
    port, seen = FakeCluster(), Seen()
    await port.create(SERVICES, service("a"), namespace="ns")
    reflector = Reflector(port, Mirror(SERVICES, seen.sink))
    listed, version = await reflector.versions()
    assert [name for _, name in listed] == ["a"]
    assert version > 0
    assert seen.objects == {}


class Unserved(FakeCluster):
    """An API server that does not serve a kind until it is told to."""

    serves = False

    async def list_pages(self, kind: Kind, **selection: Any) -> AsyncIterator[Page]:
        if not self.serves:
            raise NotFound(f"the server could not find the requested resource {kind.plural}")
        async for page in super().list_pages(kind, **selection):
            yield page


async def test_an_optional_kind_that_is_not_served_has_no_objects_until_it_is_served() -> None:
    port, seen, pauses = Unserved(), Seen(), list[float]()
    await port.create(SERVICES, service("a"), namespace="ns")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    mirror = Mirror(SERVICES, seen.sink)
    reflector = Reflector(port, mirror, rng=Random(1), sleep=sleep, optional=True)
    task = asyncio.create_task(reflector.run())
    try:
        await until(lambda: len(pauses) > 2)
        assert mirror.synced
        assert set(pauses) == {UNSERVED_SECONDS}, "it is looked for seldom, and nothing failed"
        assert await reflector.versions() == ({}, 0)
        port.serves = True
        await until(lambda: "a" in seen.objects)
        port.serves = False
        with pytest.raises(NotFound):
            await reflector.refill()
        assert "a" in seen.objects, "what was served once is not given up for one answer"
    finally:
        task.cancel()


async def test_any_other_kind_has_to_be_served() -> None:
    reflector = Reflector(Unserved(), Mirror(SERVICES, Seen().sink))
    with pytest.raises(NotFound):
        await reflector.refill()
    assert not reflector.mirror.synced

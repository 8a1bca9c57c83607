from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web

from llmos_operator.clock import FakeClock
from llmos_operator.cluster.credentials import Credentials
from llmos_operator.cluster.failures import Ambiguous
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.fence import FencedPort
from llmos_operator.cluster.lease import LeaderLease, LeaseLost
from llmos_operator.cluster.port import LEASES, PODS
from llmos_operator.cluster.transport import Transport
from llmos_operator.errors import Retryable
from llmos_operator.settings import LeaseSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio
SETTINGS = LeaseSettings(duration=6, renew_deadline=4, retry=2)
CUT = 5.0  # half way between the fence and the takeover
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "uid": "u"}}

WRITES: dict[str, Callable[[FencedPort], Awaitable[Any]]] = {
    "create": lambda port: port.create(PODS, POD, namespace="ns"),
    "replace": lambda port: port.replace(PODS, POD, namespace="ns"),
    "apply": lambda port: port.apply(PODS, POD, manager="m", namespace="ns"),
    "patch_status": lambda port: port.patch_status(PODS, POD, manager="m", namespace="ns"),
    "merge_patch": lambda port: port.merge_patch(PODS, "p", {}, namespace="ns"),
    "delete": lambda port: port.delete(PODS, "p", namespace="ns"),
    "evict": lambda port: port.evict("p", namespace="ns"),
    "create_event": lambda port: port.create_event({}, namespace="ns"),
}


class Server:
    """An API server that takes requests and never answers; it notes those whose client went away."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()
        self.left = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._hang)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = Transport(
            Credentials(
                server=f"http://127.0.0.1:{self._runner.addresses[0][1]}", tls=None, read_token=lambda: ""
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.port.close()
        await self._runner.cleanup()

    async def _hang(self, _: web.Request) -> web.Response:
        self.taken.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        raise AssertionError


class Leader:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster(self.clock)
        self.lease = LeaderLease(self.cluster, SETTINGS, namespace="ns", identity="one", clock=self.clock)


@pytest.mark.parametrize("verb", WRITES)
async def test_without_the_lease_no_write_begins(verb: str) -> None:
    async with Server() as server:
        leader = Leader()
        await leader.lease.acquire()
        leader.clock.advance(SETTINGS.renew_deadline + 0.1)
        with pytest.raises(Retryable, match="may not write"):
            await WRITES[verb](FencedPort(server.port, leader.lease.writes.writing))
        assert not server.taken.is_set()


@pytest.mark.parametrize("verb", WRITES)
async def test_a_write_in_flight_is_cut_off_before_a_takeover(verb: str) -> None:
    async with Server() as server:
        leader = Leader()
        await leader.lease.acquire()
        write = asyncio.ensure_future(WRITES[verb](FencedPort(server.port, leader.lease.writes.writing)))
        async with asyncio.timeout(60):
            await server.taken.wait()
            leader.clock.advance(CUT)
            assert leader.clock.monotonic() < leader.lease._held_until + 2  # nobody may take it yet
            leader.lease.writes.moved()  # what the time limit does by itself in real time
            with pytest.raises(Ambiguous, match="cut off"):
                await write
            await server.left.wait()  # the server sees it: it cancels what it does for the request
        assert len(leader.lease.writes) == 0


async def test_the_time_limit_of_a_write_ends_half_way_to_the_takeover() -> None:
    leader = Leader()
    await leader.lease.acquire()
    leader.clock.advance(1.0)
    async with leader.lease.writes.writing():
        (limit,) = leader.lease.writes._limits
        when = limit.when()
        assert when is not None
        assert when - asyncio.get_running_loop().time() == pytest.approx(CUT - 1.0, abs=0.2)


async def test_a_renewal_gives_a_slow_write_more_time() -> None:
    """An eviction may take 10.5 s at the API server: as long as the lease is renewed it may."""
    leader = Leader()
    await leader.lease.acquire()
    async with leader.lease.writes.writing():
        (limit,) = leader.lease.writes._limits
        before = limit.when()
        leader.clock.advance(2.0)
        assert await leader.lease._attempt(holding=True)
        after = limit.when()
        assert before is not None
        assert after is not None
        assert after >= before  # two fake seconds later it ends as far ahead as it did at first


async def test_a_lost_lease_cuts_writes_off_at_once() -> None:
    leader = Leader()
    await leader.lease.acquire()
    leader.clock.advance(SETTINGS.renew_deadline + 0.1)
    found = await leader.cluster.get(LEASES, SETTINGS.name, namespace="ns")
    spec = {**found["spec"], "holderIdentity": "two", "leaseTransitions": 9}

    async def write() -> None:
        async with leader.lease.writes.writing():
            await asyncio.Event().wait()

    leader.clock.advance(-1.0)
    flying = asyncio.ensure_future(write())
    await asyncio.sleep(0)
    leader.clock.advance(1.0)
    await leader.cluster.replace(LEASES, {**found, "spec": spec}, namespace="ns")
    with pytest.raises(LeaseLost):
        await leader.lease._attempt(holding=True)
    async with asyncio.timeout(60):
        with pytest.raises(Ambiguous):
            await flying


async def test_a_lease_is_not_given_back_over_a_write_in_flight() -> None:
    leader = Leader()
    await leader.lease.acquire()

    async def write() -> None:
        async with leader.lease.writes.writing():
            await asyncio.Event().wait()

    flying = asyncio.ensure_future(write())
    await asyncio.sleep(0)
    await leader.lease.release()
    leader.clock.advance(CUT)
    leader.lease.writes.moved()
    with pytest.raises(Ambiguous):
        await flying
    found = await leader.cluster.get(LEASES, SETTINGS.name, namespace="ns")
    assert found["spec"]["holderIdentity"] == "one"


async def test_reads_and_token_reviews_need_no_lease() -> None:
    leader = Leader()
    port = FencedPort(leader.cluster, leader.lease.writes.writing)
    assert await port.token_review("nobody's") is None
    assert [page async for page in port.list_pages(PODS)]

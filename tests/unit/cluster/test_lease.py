from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from llmos_operator.clock import FakeClock
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.lease import LeaderLease, LeaseLost
from llmos_operator.cluster.port import LEASES
from llmos_operator.errors import Retryable
from llmos_operator.settings import LeaseSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio
SETTINGS = LeaseSettings(duration=6, renew_deadline=4, retry=2)


class World:
    """A cluster, a clock that moves when somebody sleeps, and contenders."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.port = FakeCluster(self.clock)

    def contender(
        self, identity: str, sleep: Callable[[float], Awaitable[None]] | None = None
    ) -> LeaderLease:
        async def pass_time(seconds: float) -> None:
            self.clock.advance(seconds)
            await asyncio.sleep(0)

        return LeaderLease(
            self.port,
            SETTINGS,
            namespace="ns",
            identity=identity,
            clock=self.clock,
            sleep=sleep or pass_time,
        )

    async def spec(self) -> dict[str, object]:
        found = await self.port.get(LEASES, SETTINGS.name, namespace="ns")
        return dict(found["spec"])


async def hold_for(lease: LeaderLease, turns: int) -> None:
    """Let ``hold`` sleep ``turns`` times, then cancel it."""
    task = asyncio.create_task(lease.hold())
    for _ in range(turns * 4):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_first_takes_a_free_lease_at_once() -> None:
    world = World()
    one = world.contender("one")
    await one.acquire()
    assert one.leading()
    assert (await world.spec())["holderIdentity"] == "one"
    assert (await world.spec())["leaseDurationSeconds"] == 6


async def test_a_leader_that_renews_stays_one_and_others_wait() -> None:
    world = World()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    for _ in range(20):
        world.clock.advance(2)
        assert await one._attempt(holding=True)
        assert not await two._attempt()
    assert one.leading()


async def test_a_lease_not_renewed_for_its_duration_is_taken_over() -> None:
    world = World()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    started = world.clock.monotonic()
    await two.acquire()
    assert 6 <= world.clock.monotonic() - started <= 8
    assert not one.leading()
    assert two.transitions == one.transitions + 1


async def test_a_leader_stops_writing_before_another_may_start() -> None:
    world = World()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    world.port.fail("update", "leases", Retryable("down"), times=100)
    both = False
    for _ in range(40):
        world.clock.advance(0.25)
        await one._attempt(holding=True)
        world.port._failures.clear()
        await two._attempt()
        both = both or (one.leading() and two.leading())
        world.port.fail("update", "leases", Retryable("down"), times=1)
        if two.leading():
            break
    assert two.leading()
    assert not both


async def test_the_fence_counts_from_when_the_renewal_was_sent() -> None:
    world = World()
    one = world.contender("one")
    await one.acquire()
    world.clock.advance(3.9)
    assert one.leading()
    world.clock.advance(0.2)
    assert not one.leading()


async def test_slow_answers_that_come_in_time_never_let_the_fence_fall() -> None:
    world = World()
    one = world.contender("one")
    await one.acquire()
    replace = world.port.replace
    led = []

    async def slow(*arguments: object, **options: object) -> object:
        world.clock.advance(1.9)  # with a full pause after it, the fence would fall at every other renewal
        led.append(one.leading())
        return await replace(*arguments, **options)

    world.port.replace = slow
    await hold_for(one, 12)
    assert len(led) > 8
    assert all(led)
    assert one.lapses == 0


async def test_after_an_outage_the_leader_resumes_if_nobody_took_over() -> None:
    world = World()
    one = world.contender("one")
    await one.acquire()
    world.port.fail("update", "leases", Retryable("down"), times=3)
    world.port.fail("get", "leases", Retryable("down"), times=3)
    await hold_for(one, 12)
    assert one.leading()
    assert (await world.spec())["leaseTransitions"] == one.transitions


async def test_a_leader_whose_lease_was_taken_ends() -> None:
    world = World()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    await two.acquire()
    with pytest.raises(LeaseLost, match="held by two"):
        await one.hold()
    assert not one.leading()


async def test_a_leader_ends_even_if_the_usurper_is_gone_again() -> None:
    world = World()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    await two.acquire()
    await two.release()
    with pytest.raises(LeaseLost, match="nobody"):
        await one.hold()


async def test_a_released_lease_is_taken_at_once() -> None:
    world = World()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    await one.release()
    assert not one.leading()
    started = world.clock.monotonic()
    await two.acquire()
    assert world.clock.monotonic() == started


async def test_a_restarted_container_of_the_same_pod_takes_over_at_once() -> None:
    world = World()
    await world.contender("pod_uid").acquire()
    again = world.contender("pod_uid")
    started = world.clock.monotonic()
    await again.acquire()
    assert world.clock.monotonic() == started
    assert again.transitions == 2


async def test_a_jump_of_the_wall_clock_changes_nothing() -> None:
    class Jumping(FakeClock):
        offset = 0.0

        def now(self) -> float:
            return super().now() + self.offset

    world = World()
    clock = world.clock = Jumping()
    one, two = world.contender("one"), world.contender("two")
    await one.acquire()
    clock.offset = 86_400.0
    assert one.leading()
    assert not await two._attempt()


async def test_a_renewal_that_comes_back_too_late_counts_as_a_lapse() -> None:
    """The fence was down between the deadline and the answer: what was to be written then was dropped."""
    world = World()
    regained: list[int] = []
    one = world.contender("one")
    one._on_regained = lambda: regained.append(one.lapses)
    await one.acquire()
    replace = world.port.replace

    async def slow(*args: object, **kwargs: object) -> object:
        world.clock.advance(3)  # sent 2 s after the last renewal, answered 5 s after it
        return await replace(*args, **kwargs)  # type: ignore[arg-type]

    world.clock.advance(2)
    world.port.replace = slow  # type: ignore[method-assign, assignment]
    assert await one._attempt(holding=True)
    assert one.lapses == 1
    assert regained == [1]


async def test_renewals_in_time_are_no_lapse() -> None:
    world = World()
    one = world.contender("one")
    await one.acquire()
    for _ in range(10):
        world.clock.advance(2)
        await one._attempt(holding=True)
    assert one.lapses == 0

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from llmos_operator.actuators.writequeue import Job, Rank, WriteQueue

pytestmark = pytest.mark.anyio


async def run_until_idle(queue: WriteQueue) -> None:
    task = asyncio.create_task(queue.run())
    async with asyncio.timeout(60):
        await queue.idle()
    task.cancel()


async def test_urgent_jobs_go_first_and_equals_in_order() -> None:
    queue, done = WriteQueue(1, lambda: True), []

    async def work(name: str) -> None:
        done.append(name)

    for rank, name in ((Rank.STATUS, "s"), (Rank.BIND, "b1"), (Rank.EVICT, "e"), (Rank.BIND, "b2")):
        queue.submit(Job(rank, name, partial(work, name)))
    await run_until_idle(queue)
    assert done == ["e", "b1", "b2", "s"]


async def test_no_more_than_the_width_runs_at_once() -> None:
    queue = WriteQueue(3, lambda: True)
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    for index in range(20):
        queue.submit(Job(Rank.BIND, str(index), work))
    await run_until_idle(queue)
    assert most == 3
    assert queue.done == 20


async def test_two_jobs_of_one_key_never_run_together_and_the_newer_replaces_the_waiting() -> None:
    queue, done, gate = WriteQueue(4, lambda: True), [], asyncio.Event()
    dropped: list[str] = []

    async def first() -> None:
        await gate.wait()
        done.append("first")

    async def work(name: str) -> None:
        assert done == ["first"]
        done.append(name)

    task = asyncio.create_task(queue.run())
    queue.submit(Job(Rank.STATUS, "k", first))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    queue.submit(Job(Rank.STATUS, "k", partial(work, "second"), lambda: dropped.append("second")))
    queue.submit(Job(Rank.STATUS, "k", partial(work, "third")))
    gate.set()
    async with asyncio.timeout(60):
        await queue.idle()
    task.cancel()
    assert done == ["first", "third"]
    assert dropped == ["second"]


async def test_a_former_leaders_jobs_are_dropped_not_run() -> None:
    queue, dropped = WriteQueue(2, lambda: False), []

    async def work() -> None:
        raise AssertionError("must not run")

    queue.submit(Job(Rank.BIND, "a", work, lambda: dropped.append("a")))
    await run_until_idle(queue)
    assert dropped == ["a"]
    assert (queue.done, queue.refused) == (0, 1)


async def test_a_bug_in_a_job_ends_the_queue() -> None:
    queue = WriteQueue(2, lambda: True)

    async def work() -> None:
        raise ZeroDivisionError

    queue.submit(Job(Rank.BIND, "a", work))
    with pytest.raises(ExceptionGroup):
        async with asyncio.timeout(60):
            await queue.run()

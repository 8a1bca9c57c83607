from __future__ import annotations

import asyncio

import pytest

from llmos_operator.clock import FakeClock
from llmos_operator.observability.slices import in_slices

pytestmark = pytest.mark.anyio
TICK = 2.0**-10  # seconds that add up exactly


async def turns_of_others(item_seconds: float, items: int) -> int:
    """Return how often another task had a turn during a sweep over items that take so long each."""
    clock, turns = FakeClock(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in in_slices(range(items), 4 * TICK, clock.monotonic):
        clock.advance(item_seconds)
    task.cancel()
    return turns


async def test_others_have_a_turn_as_often_as_time_goes_by_and_not_by_the_number_of_items() -> None:
    assert await turns_of_others(TICK, 100) == 25
    assert await turns_of_others(8 * TICK, 100) == 100


async def test_a_short_sweep_is_not_interrupted_and_loses_nothing() -> None:
    assert await turns_of_others(TICK / 128, 100) == 0
    assert [item async for item in in_slices(range(5))] == [0, 1, 2, 3, 4]

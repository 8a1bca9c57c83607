"""Sweeps over thousands that leave the event loop to others: the renewal of the lease and probes have to come through."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

T = TypeVar("T")

SLICE_SECONDS: Final = 0.005


async def in_slices(
    items: Iterable[T],
    seconds: float = SLICE_SECONDS,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[T]:
    """Yield ``items``; whenever ``seconds`` have gone, everybody else on the loop has a turn first.

    By time and not by number: on a busy machine the same number of items takes many times as long, and a request of
    another task needs several turns of the loop until it has its answer.
    """
    begun = monotonic()
    for item in items:
        yield item
        if monotonic() - begun >= seconds:
            await asyncio.sleep(0)
            begun = monotonic()

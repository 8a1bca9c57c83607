"""Tests that wait more than they work, run side by side in threads and reported in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future


class Abreast:
    """Runs `run(test)` for every test, ``width`` at once, in their order. Use as a context manager."""

    def __init__(self, tests: Sequence[Any], run: Callable[[Any], None], width: int) -> None:
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="test")
        self._running: dict[Any, Future[None]] = {one: self._pool.submit(run, one) for one in tests}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def outcome(self, test: Any) -> None:
        """Wait until ``test`` has run, and raise what it raised."""
        self._running[test].result()

"""Long commands say what they are doing: a spinner on a terminal, lines elsewhere, all on standard error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Steps:
    """Runs one step after the other."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def run(self, name: str, work: Callable[[Callable[[str], None]], T]) -> T:
        """Return what ``work(say)`` returns; print the step's name, what it says, and how long it took."""
        began = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(name) as spinner:
                result = work(lambda text: spinner.update(f"{name}: {text}"))
        else:
            result = work(lambda text: self._console.print(f"{name}: {text}"))
        self._console.print(f"{name}: ready in {time.monotonic() - began:.1f} s")
        return result

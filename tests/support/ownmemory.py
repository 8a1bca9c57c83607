"""What this process and those below it use, as if the neighbours on the machine stayed as they are.

A proportional size (Pss) counts a page of a library by half where another process of the machine has it mapped, too, and
whole again once that has ended. `Steady` keeps what is shared with strangers at what it was in the beginning.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
_SECONDS = 0.3


@dataclass(slots=True)
class Steady:
    """The most bytes in use. ``owned`` are folders whose files nobody else maps, ``weights`` those that one process maps."""

    owned: tuple[str, ...]
    weights: tuple[str, ...]
    shared: int = 0  # with strangers, when the watch began
    most: int = 0  # beside that

    def begin(self) -> None:
        """Take what is shared now as what it stays at."""
        self.shared = self._look()[1]

    def look(self) -> None:
        """Measure once."""
        self.most = max(self.most, self._look()[0])

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_SECONDS)

    @property
    def peak(self) -> int:
        """The most that was in use."""
        return self.most + self.shared

    def _look(self) -> tuple[int, int]:
        own = shared = 0
        for pid in family(os.getpid()):
            with suppress(OSError):
                for path, resident, proportional in mappings(pid):
                    if path.startswith(self.weights):
                        own += resident
                    elif not path.startswith("/") or path.startswith(self.owned):
                        own += proportional
                    else:
                        # Pages of a library's data that were written to are nobody else's; few, and they stay.
                        shared += proportional
        return own, shared


def mappings(pid: int) -> list[tuple[str, int, int]]:
    """Return (path, resident, proportional bytes) of each mapping of a process; anonymous memory has no path."""
    found, path, resident = [], "", 0
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if header := _HEADER.fullmatch(line):
            path = header.group(1)
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("Pss:"):
            found.append((path, resident, int(line.split()[1]) << 10))
    return found


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += family(int(child))
    return found

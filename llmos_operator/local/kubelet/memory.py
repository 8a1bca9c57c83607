"""Memory limits without cgroups: the resident memory of each limited container, read twice a second.

Coarser than a kernel's limit in one way that matters: between two readings a process may go over it. Shared pages are
counted once (proportional set size) before anything is killed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.local.kubelet.process import family, proportional_bytes, snapshot

if TYPE_CHECKING:
    from llmos_operator.local.kubelet.process import ContainerProcess

_PERIOD_SECONDS = 0.5


class MemoryWatch:
    """Kills containers that exceed their limit."""

    def __init__(self) -> None:
        self._limits: dict[ContainerProcess, int] = {}
        self._wake = asyncio.Event()

    def add(self, process: ContainerProcess, limit_bytes: int) -> None:
        """Hold ``process`` to ``limit_bytes`` until it ends."""
        self._limits[process] = limit_bytes
        self._wake.set()

    async def run(self) -> None:
        """Watch until cancelled; idle while nothing is limited."""
        while True:
            if not self._limits:
                self._wake.clear()
                await self._wake.wait()
            self.check()
            await asyncio.sleep(_PERIOD_SECONDS)

    def check(self) -> None:
        """Read once and kill who is over the limit."""
        self._limits = {process: limit for process, limit in self._limits.items() if process.running}
        entries = snapshot()
        for process, limit in self._limits.items():
            members = family(process.pid, entries)
            if sum(member.resident_bytes for member in members) <= limit:
                continue
            if proportional_bytes(member.pid for member in members) > limit:
                process.kill_out_of_memory()

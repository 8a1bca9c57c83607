"""Whether the kernel killed something in our control group for memory.

Version 2 of control groups tells it in `memory.events`, version 1 in `memory.oom_control`. There the kernel kills one
process and not the group, so a runtime outlives its engine and has to say itself what became of it.
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html#oom-control
"""

from __future__ import annotations

from pathlib import Path

# The first that is there counts.
_COUNTS = (
    Path("/sys/fs/cgroup/memory.events.local"),
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


class OomCounter:
    """Remembers the group's count of out-of-memory kills; ``rose()`` tells whether there was one since."""

    def __init__(self, files: tuple[Path, ...] = _COUNTS) -> None:
        self._files = files
        self._before = self._kills()

    def rose(self) -> bool:
        """Return whether the count is higher than at construction. False where control groups are not readable."""
        return self._kills() > self._before

    def _kills(self) -> int:
        for path in self._files:
            try:
                lines = path.read_text(encoding="ascii").splitlines()
            except OSError:
                continue
            for line in lines:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0

"""Whether the kernel killed something in our control group for memory."""

from __future__ import annotations

from pathlib import Path

_EVENTS = (Path("/sys/fs/cgroup/memory.events.local"), Path("/sys/fs/cgroup/memory.events"))


class OomCounter:
    """Remembers the group's count of out-of-memory kills; ``rose()`` tells whether there was one since."""

    def __init__(self) -> None:
        self._before = _kills()

    def rose(self) -> bool:
        """Return whether the count is higher than at construction. False where control groups are not readable."""
        return _kills() > self._before


def _kills() -> int:
    for path in _EVENTS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0

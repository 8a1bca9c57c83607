"""Container logs: one file per run, laid out as under a node's /var/log/pods.

Output goes straight to the file, so lines carry no timestamps. A file that grows past its bound keeps its last part.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

MAX_BYTES = 32 << 20
_KEEP_BYTES = 1 << 20
_CHUNK = 1 << 16
_NEWLINE = 0x0A
_FOLLOW_SECONDS = 0.1


def pod_folder(root: Path, namespace: str, name: str, uid: str) -> Path:
    """Return the folder of a pod's logs."""
    return root / f"{namespace}_{name}_{uid}"


def log_file(folder: Path, container: str, run: int) -> Path:
    """Return the log of run number ``run`` (the restart count at its start)."""
    return folder / container / f"{run}.log"


def tail_offset(path: Path, lines: int) -> int:
    """Return where the last ``lines`` lines of a file begin."""
    if lines == 0:
        return path.stat().st_size
    with path.open("rb") as file:
        end = position = file.seek(0, 2)
        found = 0
        while position > 0:
            step = min(_CHUNK, position)
            position -= step
            file.seek(position)
            block = file.read(step)
            for offset in range(len(block) - 1, -1, -1):
                # The last byte ends the last line; it does not begin another.
                if block[offset] == _NEWLINE and position + offset != end - 1:
                    found += 1
                    if found == lines:
                        return position + offset + 1
    return 0


async def read_log(
    path: Path, *, tail: int | None, limit: int | None, follow: Callable[[], bool] | None
) -> AsyncIterator[bytes]:
    """Yield a log from its last ``tail`` lines on, at most ``limit`` bytes.

    With ``follow`` the end of the file is waited at while it returns True (the run is going on).
    """
    left = limit
    with path.open("rb") as file:
        file.seek(tail_offset(path, tail) if tail is not None else 0)
        while left is None or left > 0:
            going = follow is not None and follow()
            block = file.read(_CHUNK if left is None else min(_CHUNK, left))
            if block:
                left = None if left is None else left - len(block)
                yield block
            elif not going:
                return
            else:
                if os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)  # the log was cut meanwhile
                await asyncio.sleep(_FOLLOW_SECONDS)


def bound(path: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Cut a log that has grown past ``max_bytes`` to its last part; returns whether it did.

    The writer appends, so it goes on behind what is left. What it writes in between may be lost.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    with path.open("r+b") as file:
        file.seek(-_KEEP_BYTES, 2)
        rest = file.read()
        rest = rest[rest.find(b"\n") + 1 :]
        file.seek(0)
        file.write(b"[earlier output was cut: the log had grown past its bound]\n" + rest)
        file.truncate()
    return True


class LogKeeper:
    """Removes logs: of runs before the previous one, and of pods that are long gone."""

    def __init__(self, keep_pods: int) -> None:
        self._keep = keep_pods
        self._gone: deque[Path] = deque()

    def drop_run(self, folder: Path, container: str, run: int) -> None:
        """Remove what is older than the previous run of run ``run``."""
        if run > 1:
            log_file(folder, container, run - 2).unlink(missing_ok=True)

    def pod_gone(self, folder: Path) -> None:
        """Keep the logs of the pods that ended last, for people who look too late."""
        self._gone.append(folder)
        while len(self._gone) > self._keep:
            shutil.rmtree(self._gone.popleft(), ignore_errors=True)

"""CPU seconds and memory of a process with all it started, and its rest while others are measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.runtime.loader.memory import resident_bytes

if TYPE_CHECKING:
    from asyncio.subprocess import Process

_TICK = os.sysconf("SC_CLK_TCK")
_PARENT, _SESSION, _TIMES = 1, 3, slice(11, 15)  # fields of /proc/PID/stat after the name: proc_pid_stat(5)
END_SECONDS = 30.0


def family(pid: int) -> dict[int, float]:
    """Return the CPU seconds, ended children included, of ``pid``, its descendants and all of the session it leads."""
    fields = {one: found for one in _pids() if (found := _fields(one))}
    members = {one for one, of in fields.items() if one == pid or int(of[_SESSION]) == pid}
    grown = True
    while grown:
        more = {one for one, of in fields.items() if int(of[_PARENT]) in members} - members
        members |= more
        grown = bool(more)
    return {one: sum(int(ticks) for ticks in fields[one][_TIMES]) / _TICK for one in members}


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a family so far."""
    return sum(family(pid).values())


def memory_bytes(pid: int) -> int:
    """Return the memory of a family, pages that are shared counted once."""
    return resident_bytes(family(pid))


def private_bytes(pid: int) -> int:
    """Return the memory of one process that is neither a file's nor shared with what it was forked of."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) << 10
    return 0


def read_bytes(pid: int) -> int:
    """Return the bytes that storage has delivered for one process."""
    for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def rest(pid: int) -> None:
    """Stop the process group that ``pid`` leads, until `wake`: a loop that polls costs those who are measured."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGSTOP)


def wake(pid: int) -> None:
    """Undo `rest`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGCONT)


async def end(process: Process) -> int:
    """End a family: ask its head, then kill what is left. Returns the head's exit status."""
    members = family(process.pid)
    wake(process.pid)
    until = time.monotonic() + END_SECONDS
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    # Not `wait`: that is for the pipes, too, which children may hold.
    while process.returncode is None and time.monotonic() < until:
        await asyncio.sleep(0.02)
    for one in members:
        _kill_if_still(one, process.pid)
    return await process.wait()


def _kill_if_still(pid: int, session: int) -> None:
    """Kill a process that outlived its head. Only one of the same session: the number may be another's by now."""
    fields = _fields(pid)
    if fields and int(fields[_SESSION]) == session:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal()]


def _fields(pid: int) -> list[str]:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return []

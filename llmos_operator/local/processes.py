"""Child processes that never outlive their owner, and records that recognise them later.

A child is started in a session of its own (signals of the terminal reach only the owner) with the parent-death
signal set: if the owner is killed, the kernel kills the child. Linux ties that signal to the *thread* that started
the child, so children must be started from a thread that lives as long as they should.

A pid alone names nobody after a crash: records carry the start time the kernel gives a process, and every signal
checks it first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.01
_STAT_STARTTIME = 19  # index after the command name: field 22 of proc(5)
_STAT_RSS = 21
_STAT_STATE = 0


def require_linux() -> None:
    """Raise :class:`Permanent` where the local cluster cannot run."""
    if not sys.platform.startswith("linux"):
        msg = (
            f"the local cluster needs Linux (loopback addresses, process control), this is {sys.platform}; "
            "use a real cluster through KUBECONFIG, or a Linux virtual machine"
        )
        raise Permanent(msg, reason="UnsupportedPlatform")


def die_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a ``preexec_fn``: the child gets ``number`` when the thread that started it ends.

    Everything the function needs is resolved here, before the fork, where locks may be taken.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # the parent ended between fork and prctl
            os._exit(1)

    return arm


def spawn(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command`` in its own session with output appended to ``log``; it dies with the calling thread."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - commands are built from the project's own tables
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - resolved before the fork, see die_with_parent
        )


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int | None:
    """Return the start time of ``pid`` in clock ticks since boot, None if there is no such live process."""
    fields = _stat(pid)
    if fields is None or fields[_STAT_STATE] in {"Z", "X"}:
        return None
    return int(fields[_STAT_STARTTIME])


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process as written to a state file: ``started`` tells it from a later one with the same pid."""

    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, name: str, pid: int) -> ProcessRecord:
        """Record the live process ``pid``; raise ProcessLookupError if it has ended."""
        started = start_ticks(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return cls(name, pid, started)

    def alive(self) -> bool:
        """Return whether this very process still runs (zombies do not)."""
        return start_ticks(self.pid) == self.started

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended is no error."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def wait_gone(records: Sequence[ProcessRecord], timeout: float) -> list[ProcessRecord]:
    """Wait up to ``timeout`` seconds for processes to end; return those that have not."""
    deadline = time.monotonic() + timeout
    left = [record for record in records if record.alive()]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        left = [record for record in left if record.alive()]
    return left


def end(process: subprocess.Popen[bytes], *, grace: float) -> int:
    """SIGTERM (and SIGCONT, for a frozen one), wait ``grace`` seconds, SIGKILL; return the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def marked_processes(marker: str) -> Iterator[ProcessRecord]:
    """Yield live processes whose environment holds the entry ``marker`` ("NAME=value"): whatever their parents are."""
    wanted = marker.encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
        except OSError:
            continue  # ended meanwhile, or another user's
        if wanted in environment.split(b"\0"):
            with contextlib.suppress(ProcessLookupError):
                yield ProcessRecord.of(marker, int(entry.name))


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of ``pid``, None if it has ended."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_STAT_RSS]) * os.sysconf("SC_PAGE_SIZE")

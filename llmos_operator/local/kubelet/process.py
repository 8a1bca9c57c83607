"""One run of a container: a process in a session of its own, its descendants, and its end.

A real container ends as a whole when its first process ends, because that is process 1 of a PID namespace. Here
descendants are found by parentage, session and an environment entry, and killed when the first process has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.local.processes import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ENV_CONTAINER = "LLMOS_LOCAL_CONTAINER"  # <pod uid>/<container>/<run>, inherited by every descendant
_OOM_SCORE_ADJ = 500  # if the machine runs out of memory, containers go before the control plane
_PAGE = os.sysconf("SC_PAGE_SIZE")
_KIB = 1024


class StartFailure(Exception):  # noqa: N818 - reads as what happened
    """The command could not be started; the text goes into the container's status."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `marker` identifies the run in the environment of its processes."""

    command: Sequence[str]
    environment: Mapping[str, str]
    cwd: Path
    log: Path
    marker: str


class ContainerProcess:
    """A started container."""

    def __init__(self, popen: subprocess.Popen[bytes], marker: str) -> None:
        self.pid = popen.pid
        self.out_of_memory = False
        self._popen = popen
        self._marker = marker
        self._pidfd = os.pidfd_open(popen.pid)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @classmethod
    def start(cls, launch: Launch) -> ContainerProcess:
        """Start the process. Must be called from the thread that owns the node process: it dies with that thread.

        Raises :class:`StartFailure`.
        """
        if not launch.command:
            msg = "no command specified: the image has none and neither has the container"
            raise StartFailure(msg)
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**launch.environment, ENV_CONTAINER: launch.marker}
        try:
            with launch.log.open("ab", buffering=0) as output:
                popen = subprocess.Popen(  # noqa: S603 - running what pods ask for is the purpose
                    list(launch.command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    cwd=launch.cwd,
                    start_new_session=True,
                    preexec_fn=die_with_parent(),  # noqa: PLW1509 - resolved before the fork
                )
        except OSError as error:
            what = (
                "executable file not found in $PATH"
                if isinstance(error, FileNotFoundError)
                else error.strerror
            )
            msg = f'failed to start container: exec: "{error.filename or launch.command[0]}": {what}'
            raise StartFailure(msg) from error
        except ValueError as error:  # a NUL byte in an argument or in the environment
            msg = f"failed to start container: {error}"
            raise StartFailure(msg) from error
        with contextlib.suppress(OSError):
            Path(f"/proc/{popen.pid}/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), encoding="ascii")
        return cls(popen, launch.marker)

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()  # does not block: the pidfd says it has ended
        kill_all(descendants(self.pid, self._marker, snapshot()))
        if not self._ended.done():
            self._ended.set_result(128 - code if code < 0 else code)

    @property
    def running(self) -> bool:
        """Whether the first process has not ended."""
        return not self._ended.done()

    async def wait(self) -> int:
        """Return the exit code (128+n for signal n) once the first process has ended and all others were killed."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Ask the first process to end (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the container at once: the first process and everything it started."""
        self._signal(signal.SIGKILL)
        kill_all(descendants(self.pid, self._marker, snapshot()))

    def kill_out_of_memory(self) -> None:
        """Kill because the memory limit is exceeded."""
        self.out_of_memory = True
        self.kill()

    def _signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """A line of the process table."""

    pid: int
    parent: int
    session: int
    resident_bytes: int


def snapshot() -> list[ProcessEntry]:
    """Return all live processes."""
    entries = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - runs twice a second; Path objects would double its cost
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - same
                text = file.read()
        except OSError:
            continue  # ended meanwhile
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] not in {"Z", "X"}:
            entries.append(ProcessEntry(int(name), int(fields[1]), int(fields[3]), int(fields[21]) * _PAGE))
    return entries


def family(pid: int, entries: Sequence[ProcessEntry]) -> list[ProcessEntry]:
    """Return the live processes of the session ``pid`` leads and all descendants of them."""
    members = {entry.pid for entry in entries if pid in (entry.session, entry.pid)}
    grew = True
    while grew:
        more = {entry.pid for entry in entries if entry.parent in members and entry.pid not in members}
        members |= more
        grew = bool(more)
    return [entry for entry in entries if entry.pid in members]


def descendants(pid: int, marker: str, entries: Sequence[ProcessEntry]) -> list[int]:
    """Return the pids of a container: its family, and whoever left it but still carries the marker."""
    found = {entry.pid for entry in family(pid, entries)}
    wanted = f"{ENV_CONTAINER}={marker}".encode()
    for entry in entries:
        if entry.pid in found:
            continue
        try:
            environment = Path(f"/proc/{entry.pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.add(entry.pid)
    return sorted(found)


def kill_containers(cluster: str) -> int:
    """Kill what is left of containers of the cluster with the environment entry ``cluster``; return how many.

    When the node process is killed the kernel ends the first process of each container, but not what those started.
    """
    prefix = f"{ENV_CONTAINER}=".encode()
    found = []
    for entry in snapshot():
        try:
            environment = Path(f"/proc/{entry.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if cluster.encode() in environment and any(item.startswith(prefix) for item in environment):
            found.append(entry.pid)
    kill_all(found)
    return len(found)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL each; those that have ended are no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def proportional_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size of processes together: pages they share are counted once."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * _KIB
                break
    return total

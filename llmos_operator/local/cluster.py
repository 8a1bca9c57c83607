"""A local cluster from the outside: bring it up, look at it, take it down.

All of it lives in one state directory, so clusters with different directories do not know each other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.local.binaries import resolve
from llmos_operator.local.certificates import write_private
from llmos_operator.local.images import write_images
from llmos_operator.local.layout import ENV_CLUSTER, ClusterPaths
from llmos_operator.local.processes import (
    ProcessRecord,
    die_with_parent,
    marked_processes,
    require_linux,
    wait_gone,
)
from llmos_operator.local.spec import ClusterSpec
from llmos_operator.local.state import ClusterState
from llmos_operator.local.tools import Tools

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.local.images import Image

_POLL_SECONDS = 0.05
_UP_SECONDS = 150.0
_DOWN_SECONDS = 40.0
_KEPT = ("logs", "pod-logs")


@dataclass(frozen=True, slots=True)
class Request:
    """What `up` is asked for."""

    spec: ClusterSpec
    images: tuple[Image, ...] = ()


class LocalCluster:
    """The cluster of one state directory."""

    def __init__(self, root: Path) -> None:
        self.paths = ClusterPaths(root)
        self._supervisor: subprocess.Popen[bytes] | None = None  # if this very object started it

    # -- looking

    def state(self) -> ClusterState | None:
        """Return the state as last written, None if there is no cluster here."""
        return ClusterState.read(self.paths.state)

    def running(self) -> bool:
        """Return whether the cluster's supervisor runs."""
        state = self.state()
        return state is not None and state.alive()

    def spec(self) -> ClusterSpec:
        """Return what the cluster was asked to be."""
        return ClusterSpec.read(self.paths.spec)

    @property
    def started_here(self) -> bool:
        """Whether this very object started the cluster that runs, or tried to."""
        return self._supervisor is not None

    # -- up

    def up(
        self,
        request: Request,
        *,
        attached: bool,
        timeout: float = _UP_SECONDS,
        tick: Callable[[], None] = lambda: None,
    ) -> ClusterState:
        """Start the cluster and wait until its nodes are registered; return its state.

        With ``attached`` it ends with the calling thread, however that ends. ``tick`` is called while waiting. Raises
        :class:`Permanent` when one runs already, or it does not come up (the message holds the end of its log).
        """
        require_linux()
        if self.running():
            msg = f"a cluster is running in {self.paths.root}; `llmos local down` ends it, --dir chooses another place"
            raise Permanent(msg, reason="AlreadyRunning")
        self.sweep()
        self._clear(keep_logs=False)
        self.paths.prepare()
        request.spec.write(self.paths.spec)
        write_images(self.paths.images, request.images)
        process = self._supervisor = self._start_supervisor(attached=attached)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state = self.state()
            if state is not None and state.stage == "ready":
                return state
            if process.poll() is not None:
                self._raise_failed(state)
            tick()
            time.sleep(_POLL_SECONDS)
        self.down(keep_logs=True)
        msg = f"the cluster was not up after {timeout:.0f} s; logs are in {self.paths.logs}"
        raise Permanent(msg, reason="Timeout")

    def _raise_failed(self, state: ClusterState | None) -> None:
        said = state.message if state is not None and state.stage == "failed" else ""
        tail = "" if said else _tail(self.paths.logs / "supervisor.log")
        self.sweep()
        raise Permanent(f"the cluster did not come up: {said}{tail}", reason="ClusterFailed")

    def _start_supervisor(self, *, attached: bool) -> subprocess.Popen[bytes]:
        environment = {**os.environ, ENV_CLUSTER: str(self.paths.root)}
        environment.pop("KUBECONFIG", None)
        with (self.paths.logs / "supervisor.log").open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", "llmos_operator.local.supervisor", str(self.paths.root)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM) if attached else None,  # noqa: PLW1509 - resolved before
            )

    # -- down

    def down(self, *, keep_logs: bool = False) -> list[ProcessRecord]:
        """End the cluster and remove its files; return the processes that had to be killed. No error if none runs."""
        state = self.state()
        killed: list[ProcessRecord] = []
        if state is not None:
            supervisor = state.supervisor.record()
            supervisor.signal(signal.SIGTERM)
            supervisor.signal(signal.SIGCONT)
            for record in wait_gone([supervisor], _DOWN_SECONDS):
                record.signal(signal.SIGKILL)
                killed.append(record)
            if self._supervisor is not None:
                self._supervisor.wait()
                self._supervisor = None
        killed += self.sweep()
        self._clear(keep_logs=keep_logs)
        return killed

    def sweep(self) -> list[ProcessRecord]:
        """Kill what an earlier cluster of this directory left behind; return it."""
        left = [
            record
            for record in marked_processes(f"{ENV_CLUSTER}={self.paths.root}")
            if record.pid not in _ancestors(os.getpid())
        ]
        for record in left:
            record.signal(signal.SIGKILL)
        wait_gone(left, 5.0)
        return left

    def copy_kubeconfig(self, target: Path) -> None:
        """Also write the administrator's kubeconfig to ``target``; :meth:`down` removes it if it is still ours."""
        target.parent.mkdir(parents=True, exist_ok=True)
        write_private(target, self.paths.kubeconfig.read_bytes())
        self.paths.kubeconfig_copy.write_text(str(target), encoding="utf-8")

    def _remove_copy(self) -> None:
        if self.paths.kubeconfig_copy.exists() and self.paths.kubeconfig.exists():
            copy = Path(self.paths.kubeconfig_copy.read_text(encoding="utf-8"))
            if copy.is_file() and copy.read_bytes() == self.paths.kubeconfig.read_bytes():
                copy.unlink()

    def _clear(self, *, keep_logs: bool) -> None:
        if not self.paths.root.is_dir():
            return
        self._remove_copy()
        for entry in self.paths.root.iterdir():
            if keep_logs and entry.name in _KEPT:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        if not keep_logs:
            with contextlib.suppress(OSError):
                self.paths.root.rmdir()

    @property
    def tools(self) -> Tools:
        """The programs kubectl and Helm, as this cluster's administrator."""
        return Tools(resolve().paths, self.paths.kubeconfig, self.paths.root / "home")


def _ancestors(pid: int) -> set[int]:
    """Return ``pid`` and its parents: they are never leftovers."""
    found = {pid}
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as elsewhere
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    return found


def _tail(path: Path, lines: int = 15) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return f"the end of {path}:\n" + "\n".join(text.splitlines()[-lines:])

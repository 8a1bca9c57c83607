"""The supervisor: one process that owns all others of a local cluster.

Started by :mod:`llmos_operator.local.cluster` as ``python -m llmos_operator.local.supervisor STATE_DIRECTORY``. Whatever
ends it takes the cluster along: its children carry the parent-death signal, theirs too. A part that ends by itself is
started again, with growing delay.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import LlmosError
from llmos_operator.local.addresses import PORT_HUB, claim_block
from llmos_operator.local.binaries import resolve
from llmos_operator.local.binaries.versions import CONTROL_PLANE
from llmos_operator.local.controlplane import ControlPlane, ControlPlaneOptions
from llmos_operator.local.layout import ENV_CLUSTER, ClusterPaths
from llmos_operator.local.processes import ProcessRecord, end, marked_processes, spawn
from llmos_operator.local.spec import ClusterSpec
from llmos_operator.local.state import ClusterState, RecordedProcess
from llmos_operator.observability.logging import logger, setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.local.state import Stage

log = logger(__name__)

NODE = "node"
HUB = "hub"
_CHECK_SECONDS = 0.2
_NODE_GRACE_SECONDS = 15.0
_HUB_GRACE_SECONDS = 2.0
_CALM_SECONDS = 30.0
_MAX_DELAY_SECONDS = 10.0


class Supervisor:
    """Starts everything, watches it, ends it."""

    def __init__(self, paths: ClusterPaths, stop: threading.Event) -> None:
        self._paths = paths
        self._stop = stop
        self._began = time.monotonic()
        self._marks: dict[str, float] = {}
        self._restarts: dict[str, int] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._due: dict[str, float] = {}  # parts that are down -> when to start them again
        self._last_start: dict[str, float] = {}
        self._sweeper: subprocess.Popen[bytes] | None = None
        spec = ClusterSpec.read(paths.spec)
        self._claim = claim_block(preferred=spec.index)
        self._spec = spec.model_copy(update={"index": self._claim.block.index})
        self._spec.write(paths.spec)
        self._plane = ControlPlane(resolve(CONTROL_PLANE), paths, self._claim.block, ControlPlaneOptions())

    def run(self) -> int:
        """Run until told to stop; return the exit status."""
        status = 0
        try:
            self._write("starting")
            self._start()
            self._write("ready")
            log.info("cluster is up", seconds=round(self._marks["ready"], 2), api=self._plane.url)
            self._watch()
        except LlmosError as error:
            log.error("cluster failed", error=error)  # noqa: TRY400 - the message says it all
            self._write("failed", str(error))
            status = 1
        finally:
            if status == 0:
                self._write("stopping")
            self._end()
        return status

    def _start(self) -> None:
        self._paths.prepare()
        self._sweeper = _start_sweeper(self._paths)
        self._plane.begin()
        self._launch(NODE)
        if self._spec.hub_store:
            self._launch(HUB)
        self._mark("launched")
        self._write("starting")
        self._plane.wait_ready(stop=self._stop)
        self._mark("api")
        self._wait_for_nodes()
        self._mark("ready")

    def _wait_for_nodes(self) -> None:
        wanted = [spec.name for spec in self._spec.nodes]
        while wanted and not self._stop.is_set():
            try:
                self._plane.request(f"/api/v1/nodes/{wanted[0]}")
                wanted.pop(0)
            except LlmosError:
                if self._children[NODE].poll() is not None:
                    raise
                self._stop.wait(_CHECK_SECONDS / 4)

    def _launch(self, name: str) -> None:
        self._last_start[name] = time.monotonic()
        module, *arguments = {
            NODE: ["llmos_operator.local.node", str(self._paths.root)],
            HUB: [
                "llmos_operator.local.hub",
                self._spec.hub_store,
                f"--host={self._claim.block.control_plane}",
                f"--port={PORT_HUB}",
            ],
        }[name]
        command = [sys.executable, "-m", module, *arguments]
        self._children[name] = spawn(command, self._paths.logs / f"{name}.log")

    # -- watching

    def _watch(self) -> None:
        while not self._stop.wait(_CHECK_SECONDS):
            for name, process in self._processes().items():
                if process.poll() is not None and name not in self._due:
                    self._schedule(name, process.returncode)
            for name in [name for name, at in self._due.items() if at <= time.monotonic()]:
                del self._due[name]
                self._restart(name)

    def _schedule(self, name: str, code: int) -> None:
        count = self._restarts.get(name, 0) + 1
        calm = time.monotonic() - self._last_start.get(name, self._began) > _CALM_SECONDS
        delay = 0.0 if calm else min(2.0 ** (count - 1) / 4, _MAX_DELAY_SECONDS)
        log.error("part ended by itself", part=name, code=code, again_in=delay)
        self._restarts[name] = count
        self._due[name] = time.monotonic() + delay

    def _restart(self, name: str) -> None:
        if name in self._children:
            self._launch(name)
        else:
            self._last_start[name] = time.monotonic()
            self._plane.launch(name)
        self._write("ready")

    def _processes(self) -> dict[str, subprocess.Popen[bytes]]:
        return self._plane.processes() | self._children

    # -- the end

    def _end(self) -> None:
        node = self._children.pop(NODE, None)
        if node is not None:
            end(node, grace=_NODE_GRACE_SECONDS)
        for child in self._children.values():
            end(child, grace=_HUB_GRACE_SECONDS)
        self._plane.stop()
        if self._sweeper is not None:
            self._sweeper.kill()
            self._sweeper.wait()
        for record in marked_processes(f"{ENV_CLUSTER}={self._paths.root}"):
            log.warning("ending what was left behind", pid=record.pid)
            record.signal(signal.SIGKILL)
        self._claim.close()

    # -- the state file

    def _mark(self, name: str) -> None:
        self._marks[name] = round(time.monotonic() - self._began, 3)

    def _write(self, stage: Stage, message: str = "") -> None:
        running = []
        for name, process in self._processes().items():
            try:
                running.append(RecordedProcess.of(ProcessRecord.of(name, process.pid)))
            except ProcessLookupError:
                continue
        block = self._claim.block
        ClusterState(
            stage=stage,
            message=message,
            supervisor=RecordedProcess.of(ProcessRecord.of("supervisor", os.getpid())),
            processes=tuple(running),
            index=block.index,
            api_url=block.api_url,
            hub_url=f"http://{block.control_plane}:{PORT_HUB}" if self._spec.hub_store else "",
            restarts=self._restarts,
            marks=self._marks,
        ).write(self._paths.state)


def _start_sweeper(paths: ClusterPaths) -> subprocess.Popen[bytes]:
    """Start the process that outlives this one; it holds the reading end of a pipe."""
    with (paths.logs / "sweeper.log").open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-m", "llmos_operator.local.sweeper", str(paths.root)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def main(argv: Sequence[str]) -> int:
    """Run the supervisor of the cluster whose state directory is the only argument."""
    setup("info", "text", process="supervisor")
    paths = ClusterPaths(Path(argv[0]))
    os.environ[ENV_CLUSTER] = str(paths.root)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    with (paths.root / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another supervisor owns this directory", directory=paths.root)  # noqa: TRY400 - same
            return 1
        return Supervisor(paths, stop).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

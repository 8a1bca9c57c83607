"""The template process: imports torch and the model classes once, then forks engines on request.

Single-threaded by design (a fork keeps only the forking thread): nothing here may run a torch operation. It ends, and
takes its engines along, when the front's socket closes; if it is killed itself the kernel ends the engines (parent
death signal). Protocol: llmos_operator.runtime.ipc.zygote.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
from typing import Any

import msgpack

from llmos_operator.observability.logging import logger, setup
from llmos_operator.runtime.ipc.codec import HEADER

log = logger(__name__)

PRELOADED = (
    "llmos_operator.runtime.engine.process",
    "llmos_operator.runtime.backends.build",
    "transformers.models.llama.modeling_llama",
)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_END_SECONDS = 3.0


class Template:
    """Forks engines and reports their end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pid -> key
        self._buffer = bytearray()
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which closes the socket

    def run(self) -> int:
        """Serve until the front goes away."""
        # Ranks whose engine is gone become children of this process, which takes note of their end, not of the pod's init.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._tell("ready")
        while True:
            readable, _, _ = select.select([self._control.fileno(), self._wake_read], [], [])
            if self._wake_read in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if self._control.fileno() in readable and not self._serve():
                self._end_children()
                return 0

    def _serve(self) -> bool:
        """Take requests from the front; False at end of file. Returns only in the template, never in an engine."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 16)
        except ConnectionError:
            return False
        if not data:
            return False
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            _, key = msgpack.unpackb(bytes(self._buffer[HEADER.size : end]))
            del self._buffer[:end]
            self._fork(key, descriptors.pop(0))
        return True

    def _fork(self, key: int, descriptor: int) -> None:
        template = os.getpid()
        pid = os.fork()
        if pid:
            os.close(descriptor)
            self._children[pid] = key
            self._tell("started", key, pid)
            return
        code = 70  # EX_SOFTWARE, if even the error path fails
        try:
            code = self._become_engine(descriptor, template)
        finally:
            os._exit(code)  # no clean-up of what belongs to the template

    def _become_engine(self, descriptor: int, template: int) -> int:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(template)
        self._control.close()
        os.close(self._wake_read)
        from llmos_operator.runtime.engine.process import run  # noqa: PLC0415 - preloaded

        return run(socket.socket(fileno=descriptor))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._children:
                self._tell("exited", self._children.pop(pid), os.waitstatus_to_exitcode(status))

    def _tell(self, *line: Any) -> None:
        body = msgpack.packb(line)
        with contextlib.suppress(ConnectionError):  # the front is gone; the loop will see it
            self._control.sendall(HEADER.pack(len(body)) + body)

    def _end_children(self) -> None:
        """Engines end by themselves when the front's end of their socket closes; those that do not are killed."""
        deadline = _END_SECONDS
        while self._children and deadline > 0:
            select.select([self._wake_read], [], [], 0.1)
            deadline -= 0.1
            self._reap()
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` ends; exits at once if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main(argv: list[str] | None = None) -> int:
    """Serve on the inherited socket whose number is the first argument."""
    arguments = sys.argv[1:] if argv is None else argv
    setup(
        os.environ.get("LLMOS_LOG_LEVEL", "info"), os.environ.get("LLMOS_LOG_STYLE", "json"), process="engine"
    )
    for chatty in ("httpx2", "httpx", "filelock"):  # one line for each request to a hub says nothing
        logging.getLogger(chatty).setLevel(logging.WARNING)
    control = socket.socket(fileno=int(arguments[0]))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector must not touch, and so copy, pages that engines share
    return Template(control).run()


if __name__ == "__main__":
    sys.exit(main())

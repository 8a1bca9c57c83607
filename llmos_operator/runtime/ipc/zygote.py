"""Front side of the template process: start it once, ask it for engine processes, hear of their end.

The front has threads and an event loop, so it cannot fork engines itself. It starts one fresh interpreter that imports
torch and the model classes and nothing else; each engine is a fork of that one: 5 s of imports are paid once and their
pages are shared. The protocol is tiny: front -> zygote is one request with the engine's socket attached, zygote ->
front are the lines below, each a frame of codec.HEADER and msgpack.

    ("ready",)                  imports are done
    ("started", key, pid)       an engine was forked
    ("exited", key, status)     it ended: exit code, or minus the signal number
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

import msgpack

from llmos_operator.api import names
from llmos_operator.api.runtime.data import secret_variables
from llmos_operator.errors import Retryable
from llmos_operator.runtime.ipc.codec import HEADER

# What an engine has no business knowing: it parses files of strangers.
SECRET_VARIABLES = (
    "LLMOS_CONTROL_TOKEN",
    "LLMOS_API_KEYS",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    names.ENV_REGISTRY_USERNAME,
    names.ENV_REGISTRY_PASSWORD,
    "KUBECONFIG",
    *secret_variables(),
)
END_SECONDS = 5.0


def engine_environment() -> dict[str, str]:
    """Return the environment of zygote and engines: ours without secrets, with an allocator that gives memory back."""
    env = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    # A thread that spins at a barrier starves its own team where CPUs are shared: measured ten times slower answers on
    # two busy cores.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps compiled products, about 0.3 MiB for each number of rows and size of a layer, by default up to 1,024 of
    # them, which is never given back. 16 are those of a few steps; making one anew takes a millisecond.
    env.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    return env | {
        "MALLOC_ARENA_MAX": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


@dataclass(slots=True)
class Child:
    """One engine process as the front knows it."""

    connection: socket.socket
    pid: int | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    exit_status: int | None = None  # exit code, or minus the signal number
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    def kill(self, signal_number: int) -> None:
        """Send a signal; an engine that is gone already is no error."""
        if self.pid is not None and self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


class Zygote:
    """The template process. One serves any number of engines; a dead one is replaced by the next spawn()."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._children: dict[int, Child] = {}
        self._next_key = 0
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id, None before start and after the end."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and alive else None

    async def start(self) -> None:
        """Start the process if it does not run; it imports in the background."""
        async with self._lock:
            if self.pid is not None:
                return
            await self._discard()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "llmos_operator.runtime.engine.zygote",
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=engine_environment(),
                )
            ours.setblocking(False)  # noqa: FBT003 - the socket's own signature
            self._control = ours
            self._reader = asyncio.create_task(self._listen(ours))

    async def spawn(self) -> Child:
        """Fork an engine and return it with its connected socket. Raises Retryable if the zygote dies meanwhile."""
        await self.start()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the socket's own signature
        key, self._next_key = self._next_key, self._next_key + 1
        child = self._children[key] = Child(connection=ours)
        with theirs:
            try:
                self._ask_fork(key, theirs)
            except OSError as error:
                del self._children[key]
                ours.close()
                raise Retryable(f"cannot ask the zygote for an engine: {error}") from error
        await child.started.wait()
        if child.exit_status is not None:
            ours.close()
            raise Retryable("the zygote ended before it could start an engine")
        return child

    def _ask_fork(self, key: int, engine_end: socket.socket) -> None:
        if self._control is None:
            raise OSError("the zygote is gone")
        body = msgpack.packb(("fork", key))
        socket.send_fds(self._control, [HEADER.pack(len(body)) + body], [engine_end.fileno()])

    async def close(self) -> None:
        """End the zygote and every engine it started."""
        async with self._lock:
            await self._discard()

    async def _discard(self) -> None:
        if self._control is not None:
            self._control.close()  # end of file is the zygote's order to end its engines and itself
            self._control = None
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), END_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            self._process = None
        self._lose_children()

    async def _listen(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        buffer = bytearray()
        while data := await _receive(loop, control):
            buffer += data
            while len(buffer) >= HEADER.size:
                end = HEADER.size + HEADER.unpack_from(buffer)[0]
                if len(buffer) < end:
                    break
                self._note(msgpack.unpackb(bytes(buffer[HEADER.size : end])))
                del buffer[:end]
        self._lose_children()

    def _note(self, line: list[Any]) -> None:
        kind, *values = line
        if kind == "started":
            child = self._children[values[0]]
            child.pid = values[1]
            child.started.set()
        elif kind == "exited":
            _end(self._children.pop(values[0]), values[1])

    def _lose_children(self) -> None:
        """With the zygote gone its engines are killed by the kernel (parent death signal)."""
        for child in self._children.values():
            _end(child, -9)
        self._children.clear()


def _end(child: Child, status: int) -> None:
    child.exit_status = status
    child.started.set()
    child.exited.set()


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(sock, 65536)
    except OSError:
        return b""

"""Rank 0's side of a group: orders to the other ranks, answers from them, and a thread that watches over all.

What goes wrong with one rank ends the group: a collective without it would never be right again. So the watch ends this
process, the kernel ends the others with it, and the front starts a new engine, as after any crash.
"""

from __future__ import annotations

import os
import select
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.messages import RankMemory
from llmos_operator.runtime.ipc.orders import Built, Drop, End, Fetch, RankLost, Refused
from llmos_operator.runtime.ranks.pulse import BEAT_SECONDS, ENDED, Pulse

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.backends.collective import Group
    from llmos_operator.runtime.ipc.orders import Answer, Order

log = logger(__name__)

_LOOKS, _LOOK_SECONDS = 20, 0.05  # for the exit status of a rank that has closed its sockets


@dataclass(slots=True)
class Member:
    """One other rank."""

    rank: int
    pid: int  # 0: in another pod
    orders: socket.socket
    pulse: Pulse
    weights_bytes: int = 0


class Crew:
    """The other ranks of one engine, in the order of their ranks."""

    def __init__(self, members: Iterable[Member], clock: Clock) -> None:
        self.members = tuple(members)
        self.group: Group | None = None  # what they compute together in, once they have met
        self._clock = clock
        self._frames = {member.rank: codec.FrameReader() for member in self.members}
        self._over = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="llmos-ranks-", ignore_cleanup_errors=True)

    @property
    def count(self) -> int:
        """Ranks, this one included."""
        return len(self.members) + 1

    @property
    def spread(self) -> bool:
        """Whether some ranks are in other pods."""
        return any(not member.pid for member in self.members)

    @property
    def meeting(self) -> str:
        """The file that ranks of one pod meet at, "" when they have met."""
        return "" if self.group is not None else str(Path(self._folder.name) / "meeting")

    def fetched(self, fmt: str, digest: str, waiting: Callable[[], None]) -> None:
        """Let ranks of other pods have the model's files. Raises as `built`."""
        afar = [member for member in self.members if not member.pid]
        self._send(afar, Fetch(fmt, digest))
        self._wait(afar, waiting)

    def tell(self, order: Order) -> None:
        """Send an order to every rank. Raises RankLost if one is gone."""
        self._send(self.members, order)

    @staticmethod
    def _send(members: Iterable[Member], order: Order) -> None:
        frame = codec.encode(order)
        for member in members:
            try:
                member.orders.sendall(frame)
            except OSError as error:
                raise RankLost(f"rank {member.rank} is gone: {error}") from error

    def built(self, waiting: Callable[[], None]) -> None:
        """Wait until every rank has its part of the model; ``waiting`` is called now and then.

        Raises Permanent or Retryable as the first rank that cannot have it says, RankLost if one ends.
        """
        self._wait(self.members, waiting)

    def _wait(self, members: Iterable[Member], waiting: Callable[[], None]) -> None:
        for member in members:
            answer = self._answer(member, waiting)
            match answer:
                case Built(weights_bytes):
                    member.weights_bytes = weights_bytes
                case Refused(reason, message, permanent):
                    text = f"rank {member.rank}: {message}"
                    raise Permanent(text, reason=reason) if permanent else Retryable(text)

    def _answer(self, member: Member, waiting: Callable[[], None]) -> Answer:
        while True:
            if not select.select([member.orders], [], [], BEAT_SECONDS)[0]:
                waiting()
                continue
            try:
                data = member.orders.recv(1 << 16)
            except OSError as error:
                raise RankLost(f"rank {member.rank} is gone: {error}") from error
            if not data:
                raise RankLost(f"rank {member.rank} ended while it loaded")
            for message in self._frames[member.rank].feed(data):
                return cast("Answer", message)

    def measured(self) -> tuple[RankMemory, ...]:
        """Return what the other ranks hold, as they said last."""
        return tuple(
            RankMemory(one.rank, one.weights_bytes, one.pulse.last.measured_bytes) for one in self.members
        )

    def watch(self, lost: Callable[[str], None]) -> None:
        """Watch from now on; ``lost`` is called once, by another thread, with what went wrong."""
        threading.Thread(target=self._watch, args=(lost,), name="ranks", daemon=True).start()

    def _watch(self, lost: Callable[[str], None]) -> None:
        poll = select.poll()
        for member in self.members:
            poll.register(member.pulse.connection, select.POLLIN)
        next_beat = 0.0
        while not self._over.is_set():
            poll.poll(BEAT_SECONDS * 500)
            for member in self.members:
                trouble = member.pulse.trouble()
                if trouble and not self._over.is_set():
                    how = self._how_ended(member.pid) if trouble == ENDED else trouble
                    where = f"process {member.pid}" if member.pid else "in another pod"
                    lost(f"rank {member.rank} of {self.count} ({where}) {how}")
                    return
            if self._clock.monotonic() >= next_beat:
                next_beat = self._clock.monotonic() + BEAT_SECONDS
                for member in self.members:
                    member.pulse.beat()

    def _how_ended(self, pid: int) -> str:
        """Return how a rank whose sockets are closed came to its end; the kernel knows a moment later."""
        for _ in range(_LOOKS if pid else 0):
            try:
                gone, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                break
            if gone:
                code = os.waitstatus_to_exitcode(status)
                return (
                    f"was ended by {signal.Signals(-code).name}"
                    if code < 0
                    else f"ended with exit code {code}"
                )
            self._over.wait(_LOOK_SECONDS)
        return ENDED

    def verdict(self) -> None:
        """Give the watch the time to say what is wrong, where it is a rank's end that made this process stumble."""
        self._over.wait(_LOOKS * _LOOK_SECONDS + BEAT_SECONDS)

    def drop(self) -> None:
        """Let every rank let go of the model."""
        self.tell(Drop())

    def end(self) -> None:
        """Let every rank end; those that do not are ended by the kernel with this process."""
        self._over.set()
        for member in self.members:
            try:
                member.orders.sendall(codec.encode(End()))
            except OSError:
                continue  # gone already, which is what was asked for
        self._folder.cleanup()

"""The beat between rank 0 and another rank: whoever dies or stands still is noticed by the other within SILENCE_SECONDS.

A death closes the socket. A process that is stopped, or a machine that is, sends nothing; then the silence is counted in
steps of at most one beat, so that an observer that stood still itself (a frozen container, a suspended laptop) does not
blame the others for it. A rank whose threads go on but whose computation hangs is noticed by the collective that waits
for it (backends.collective).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.orders import Beat

if TYPE_CHECKING:
    import socket

    from llmos_operator.clock import Clock

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 8.0
ENDED = "ended"


class Pulse:
    """One end of a beat. Not safe for several threads: each end has one that watches it."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        connection.setblocking(False)  # noqa: FBT003 - the socket's own signature
        self.connection = connection
        self.last = Beat()  # what the other end said last
        self._clock = clock
        self._frames = codec.FrameReader()
        self._silence = 0.0
        self._looked_at = clock.monotonic()

    def beat(self, measured_bytes: int = 0) -> None:
        """Say that this end lives. An end that does not read has stopped listening; its own silence tells the rest."""
        try:
            self.connection.send(codec.encode(Beat(measured_bytes)))
        except (BlockingIOError, ConnectionError):
            return

    def trouble(self) -> str:
        """Take what the other end has said; return "" or what is wrong with it. Call it at least once a beat."""
        now = self._clock.monotonic()
        self._silence += min(now - self._looked_at, BEAT_SECONDS)
        self._looked_at = now
        try:
            while data := self.connection.recv(4096):
                self._silence = 0.0
                for message in self._frames.feed(data):
                    if isinstance(message, Beat):
                        self.last = message
        except BlockingIOError:
            return f"was silent for {SILENCE_SECONDS:.0f} s" if self._silence >= SILENCE_SECONDS else ""
        except ConnectionError:
            return ENDED
        return ENDED

"""How ranks of other pods come to rank 0: two connections each to its rendezvous port, each begun by a Hello.

The port is open while an engine waits for its ranks. Whoever cannot show that it knows what the pods have in common (made of
the namespace's control token), or asks for a place that is not wanted, is turned away; who says nothing, after a few seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import select
import socket
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.orders import Hello, RankLost
from llmos_operator.runtime.ranks.crew import Member
from llmos_operator.runtime.ranks.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.clock import Clock

ORDERS, PULSE = 0, 1
_HELLO_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_TRY_SECONDS = 0.5


def proof(token: str, rank: int, channel: int) -> bytes:
    """Return what shows that a rank knows ``token`` without telling it."""
    return hmac.digest(token.encode(), f"llmos rank {rank} channel {channel}".encode(), hashlib.sha256)


def accept_ranks(
    at: tuple[str, int], ranks: range, token: str, clock: Clock, waiting: Callable[[], bool]
) -> list[Member]:
    """Return the members of ``ranks`` once all have come; ``waiting`` is called now and then and may end the wait.

    Raises RankLost when it does, OSError if the port is taken.
    """
    found: dict[tuple[int, int], socket.socket] = {}
    wanted = {(rank, channel) for rank in ranks for channel in (ORDERS, PULSE)}
    with socket.create_server(at, reuse_port=False) as server:
        while wanted - found.keys():
            if not waiting():
                raise RankLost("the front is gone while ranks of other pods are waited for")
            if not select.select([server], [], [], _LOOK_SECONDS)[0]:
                continue
            connection, _ = server.accept()
            key = _greeted(connection, token)
            if key not in wanted:
                connection.close()
                continue
            if key in found:  # it has started again and its former connection is dead
                found[key].close()
            found[key] = connection
    return [Member(rank, 0, found[rank, ORDERS], Pulse(found[rank, PULSE], clock)) for rank in ranks]


def _greeted(connection: socket.socket, token: str) -> tuple[int, int] | None:
    """Return rank and channel of somebody who has come, None for a stranger."""
    connection.settimeout(_HELLO_SECONDS)
    try:
        for message in codec.FrameReader().feed(connection.recv(256)):
            if isinstance(message, Hello) and hmac.compare_digest(
                message.proof, proof(token, message.rank, message.channel)
            ):
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return message.rank, message.channel
    except (OSError, Permanent, TypeError):
        return None
    return None


def join(
    at: tuple[str, int], rank: int, token: str, waiting: Callable[[], bool]
) -> tuple[socket.socket, socket.socket]:
    """Return this rank's connections for orders and beats, once rank 0 answers at its address.

    Raises RankLost when ``waiting``, which is called between tries, says that nobody waits for it.
    """
    pair = []
    for channel in (ORDERS, PULSE):
        while True:
            if not waiting():
                raise RankLost("the front is gone while rank 0 is waited for")
            with contextlib.suppress(OSError):  # not there yet, or its name is not known yet
                connection = socket.create_connection(at, timeout=_HELLO_SECONDS)
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(codec.encode(Hello(rank, channel, proof(token, rank, channel))))
                pair.append(connection)
                break
            select.select([], [], [], _TRY_SECONDS)
    return pair[0], pair[1]

"""Ranks of one machine: forks of rank 0, made before it has run anything of torch.

Rank 0 is a fork of the zygote and has loaded nothing yet, so its forks are what forks of the zygote are: imports done,
pages shared. The kernel ends them when rank 0 ends (parent death signal).
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from llmos_operator.runtime.engine.zygote import die_with_parent
from llmos_operator.runtime.ranks.crew import Member
from llmos_operator.runtime.ranks.follower import follow
from llmos_operator.runtime.ranks.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.clock import Clock


def fork_ranks(count: int, front: socket.socket, clock: Clock) -> list[Member]:
    """Return the ranks 1 to ``count`` - 1. ``front`` is rank 0's own connection, which they must not hold."""
    members: list[Member] = []
    for rank in range(1, count):
        (orders, their_orders), (pulse, their_pulse) = socket.socketpair(), socket.socketpair()
        leader = os.getpid()
        pid = os.fork()
        if not pid:
            _become(rank, their_orders, their_pulse, leader, [front, orders, pulse], members)
        their_orders.close()
        their_pulse.close()
        members.append(Member(rank, pid, orders, Pulse(pulse, clock)))
    return members


def _become(
    rank: int,
    orders: socket.socket,
    pulse: socket.socket,
    leader: int,
    inherited: Sequence[socket.socket],
    elders: Sequence[Member],
) -> None:
    """Be rank ``rank`` in this process, and end with it."""
    code = 70  # EX_SOFTWARE, if even the error path fails
    try:
        die_with_parent(leader)
        for one in (*inherited, *(s for elder in elders for s in (elder.orders, elder.pulse.connection))):
            one.close()  # a socket that somebody else holds too would not tell of its owner's end
        code = follow(rank, orders, pulse, leader)
    finally:
        os._exit(code)

"""A rank beside rank 0: computes what it is ordered to with its part of the model, and ends with rank 0."""

from __future__ import annotations

import os
import select
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.clock import Clock, SystemClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.ipc import codec
from llmos_operator.runtime.ipc.orders import (
    Build,
    Built,
    Columns,
    Drop,
    End,
    Fetch,
    Look,
    Refused,
    Release,
    Step,
    Tune,
)
from llmos_operator.runtime.loader.memory import resident_bytes
from llmos_operator.runtime.loader.part import Files, fetch, load_part
from llmos_operator.runtime.loader.pipeline import trim_memory
from llmos_operator.runtime.ranks.pulse import BEAT_SECONDS, ENDED, Pulse

if TYPE_CHECKING:
    import socket

    from llmos_operator.runtime.backends.collective import Group
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.ipc.orders import Answer, Order
    from llmos_operator.runtime.loader.part import Part

log = logger(__name__)

_LOOKS = 10  # beats between two measurements of this process's memory


class Follower:
    """One rank's orders, one after the other."""

    def __init__(
        self, rank: int, orders: socket.socket, changed: threading.Event, own: Load | None = None
    ) -> None:
        """``changed`` is set when the process's memory is another than before; ``own`` says where this pod has files."""
        self._rank = rank
        self._orders = orders
        self._changed = changed
        self._own = own
        self._files = Files("", "")
        self._frames = codec.FrameReader()
        self._group: Group | None = None
        self._part: Part | None = None

    def run(self) -> int:
        """Obey until told to end or until rank 0 is gone; the process's exit code."""
        while data := self._orders.recv(1 << 20):
            for message in self._frames.feed(data):
                if isinstance(message, End):
                    return 0
                self._obey(message)  # type: ignore[arg-type] # rank 0 sends orders alone
        return 0

    def _obey(self, order: Order) -> None:
        match order:
            case Fetch() | Build():
                self._orders.sendall(codec.encode(self._prepare(order)))
            case Drop():
                self._part = None
                trim_memory()
                self._changed.set()
            case Tune(crossovers) if self._part is not None:
                self._part.tune(dict(crossovers))
            case Step() | Look() | Columns() | Release() if self._part is not None:
                self._part.model.follow(order)
            case _:
                raise AssertionError(f"rank {self._rank} has no model for {type(order).__name__}")

    def _prepare(self, order: Fetch | Build) -> Answer:
        try:
            if isinstance(order, Build):
                self._build(order)
            elif self._own is not None:
                self._files = fetch(self._own, order)
        except Permanent as error:
            return Refused(error.reason, str(error))
        except Retryable as error:
            return Refused("LoadFailed", str(error), permanent=False)
        except MemoryError as error:
            return Refused("OutOfMemory", f"memory ran out while loading: {error}")
        except OSError as error:
            return Refused("LoadFailed", f"while loading: {error}", permanent=False)
        return Built(self._part.weights_bytes if self._part is not None else 0)

    def _build(self, order: Build) -> None:
        if self._own is not None:
            order = replace(order, folder=self._files.folder, converted=self._files.converted)
        self._part = load_part(order, self._rank, self._group)
        self._group = self._part.group
        self._changed.set()


def beat_for_ever(pulse: Pulse, clock: Clock, leader: int, changed: threading.Event) -> None:
    """Tell rank 0 that this process lives and what it holds; end it, and rank 0 with it if that has stopped."""
    poll = select.poll()
    poll.register(pulse.connection, select.POLLIN)
    next_beat, beats, measured = 0.0, 0, 0
    while not (trouble := pulse.trouble()):
        if clock.monotonic() >= next_beat:
            next_beat = clock.monotonic() + BEAT_SECONDS
            if beats % _LOOKS == 0 or changed.is_set():
                changed.clear()
                measured = resident_bytes((os.getpid(),))
            beats += 1
            pulse.beat(measured)
        poll.poll(BEAT_SECONDS * 500)
    log.warning("rank 0 is lost, and this rank ends", detail=trouble)
    if trouble != ENDED and leader and os.getppid() == leader:
        os.kill(
            leader, signal.SIGKILL
        )  # it would keep the devices, and the front waiting, for as long as it stands still
    os._exit(0)


def follow(
    rank: int, orders: socket.socket, pulse: socket.socket, leader: int, own: Load | None = None
) -> int:
    """Run rank ``rank`` of the group of process ``leader``; the exit code of this process.

    Where rank 0 is in another pod, ``leader`` is 0 and ``own`` says where to have the model's files from.
    """
    clock = SystemClock()
    changed = threading.Event()
    beating = (Pulse(pulse, clock), clock, leader, changed)
    threading.Thread(target=beat_for_ever, args=beating, name="pulse", daemon=True).start()
    try:
        return Follower(rank, orders, changed, own).run()
    except ConnectionError:
        return 0  # rank 0 is gone
    except Exception:  # logged with its trace; rank 0 sees the end and ends the group
        log.exception("rank died", rank=rank)
        return 1

"""The process that solves for prices: questions in on standard input, answers out on standard output.

A linear program of a tenth of a second holds Python's lock for a good part of it, and its library costs tens of MiB:
neither belongs beside the lease and the watches. The process keeps what the pricer learns from one question to the
next, gives way to everything else on the machine, and ends when its input does, so it cannot outlive the operator.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from llmos_operator.scheduler.fragmentation.pricer import Pricer
from llmos_operator.scheduler.fragmentation.program import NoSolution

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import DeviceKind, Prices
    from llmos_operator.scheduler.fragmentation.shapes import Mix, Stock

LENGTH_BYTES: Final = 8  # before each answer: how long it is
_NICE: Final = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What prices are made from; see `Pricer.price`."""

    stock: Stock
    mix: Mix
    kinds: tuple[DeviceKind, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Prices, or none because nothing was ever asked for, or why there are none."""

    prices: Prices | None
    error: str = ""


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends or nobody reads the answers."""
    pricer = Pricer()
    while True:
        try:
            question: Question = pickle.load(questions)  # noqa: S301 - the operator is at the other end
        except EOFError:
            return
        try:
            answer = Answer(pricer.price(question.stock, question.mix, question.kinds, question.now))
        except NoSolution as error:
            answer = Answer(None, str(error))
        body = pickle.dumps(answer)
        try:
            answers.write(len(body).to_bytes(LENGTH_BYTES, "big") + body)
            answers.flush()
        except BrokenPipeError:
            return


def main() -> None:
    """Serve on the standard streams. What a library prints goes to standard error, not between the answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the operator decides when this ends
    os.nice(_NICE)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)

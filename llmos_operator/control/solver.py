"""The process that solves for prices: questions in on standard input, answers out on standard output, a line of JSON each.

A linear program of a tenth of a second holds Python's lock for a good part of it, and its library costs tens of MiB:
neither belongs beside the lease and the watches. The process keeps what the pricer learns from one question to the
next, gives way to everything else on the machine, and ends when its input does, so it cannot outlive the operator.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from llmos_operator.scheduler.fragmentation.pricer import Pricer
from llmos_operator.scheduler.fragmentation.prices import Prices
from llmos_operator.scheduler.fragmentation.program import NoSolution
from llmos_operator.scheduler.fragmentation.shapes import Shape, Stock
from llmos_operator.scheduler.fragmentation.worth import Worth

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.fragmentation.prices import DeviceKind
    from llmos_operator.scheduler.fragmentation.shapes import Mix

_NICE: Final = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What prices are made from; see `Pricer.price`."""

    stock: Stock
    mix: Mix
    kinds: tuple[DeviceKind, ...]
    now: float

    def line(self) -> bytes:
        """Return it as a line of JSON."""
        stock = {name: getattr(self.stock, name).tolist() for name in ("kind", "cpu", "free")}
        width = self.stock.free.shape[1]
        return _line(
            {"stock": stock, "width": width, "mix": _pairs(self.mix), "kinds": self.kinds, "now": self.now}
        )

    @classmethod
    def of(cls, line: bytes) -> Question:
        """Return the question of a line."""
        found = json.loads(line)
        kind, cpu, free = (np.array(found["stock"][name], np.int64) for name in ("kind", "cpu", "free"))
        stock = Stock(kind, cpu, free.reshape(-1, found["width"]))
        kinds = tuple((product, memory) for product, memory in found["kinds"])
        return cls(stock, _shapes(found["mix"]), kinds, found["now"])


@dataclass(frozen=True, slots=True)
class Answer:
    """Prices, or none because nothing was ever asked for, or why there are none."""

    prices: Prices | None
    error: str = ""

    def line(self) -> bytes:
        """Return it as a line of JSON, without the tables, which follow from the prices."""
        return _line({"of": _pairs(self.prices.of) if self.prices is not None else None, "error": self.error})

    @classmethod
    def to(cls, question: Question, line: bytes) -> Answer:
        """Return the answer of a line, its tables made anew (some 10 ms)."""
        found = json.loads(line)
        if found["of"] is None:
            return cls(None, found["error"])
        of, kinds = _shapes(found["of"]), question.kinds
        return cls(Prices(of, kinds, Worth(of, len(kinds) + 1, question.stock.free.shape[1]), question.now))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _pairs(of: Mapping[Shape, float]) -> list[tuple[list[int], float]]:
    return [
        ([shape.devices, shape.share, shape.cpu, shape.kinds], float(value)) for shape, value in of.items()
    ]


def _shapes(pairs: list[tuple[list[int], float]]) -> dict[Shape, float]:
    return {Shape(*shape): value for shape, value in pairs}


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends or nobody reads the answers."""
    pricer = Pricer()
    for line in questions:
        question = Question.of(line)
        try:
            answer = Answer(pricer.price(question.stock, question.mix, question.kinds, question.now))
        except NoSolution as error:
            answer = Answer(None, str(error))
        try:
            answers.write(answer.line())
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

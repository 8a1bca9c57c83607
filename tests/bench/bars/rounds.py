"""Rounds in which everybody does the same jobs in turn, so that what disturbs the machine disturbs all of them.

A ratio is taken within a round, where both were measured within a minute; the median of the rounds is what counts.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.bars.contenders import ContenderLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from tests.bench.bars.contenders import Contender
    from tests.bench.bars.work import Book, Sample

DEFAULT_ROUNDS = 5
ROUND_MINUTES = 10  # on a quiet machine of two cores
AROUND_MINUTES = 7  # starting everybody, and what is measured beside the rounds
SLACK = 1.6  # times as long as on a quiet machine it may take


def wanted_rounds(text: str | None = None) -> int:
    """Return the rounds that ROUNDS asks for. Raises SystemExit naming what is wrong with it."""
    given = os.environ.get("ROUNDS", "") if text is None else text
    if not given:
        return DEFAULT_ROUNDS
    if not given.isdecimal() or not int(given):
        raise SystemExit(
            f"ROUNDS = {given!r} must be a whole number of at least 1, like ROUNDS={DEFAULT_ROUNDS}"
        )
    return int(given)


def minutes(rounds: int) -> tuple[int, int]:
    """Return about how long so many rounds take, and after how long no further one begins."""
    about = AROUND_MINUTES + rounds * ROUND_MINUTES
    return about, round(about * SLACK)


@dataclass(slots=True)
class Results:
    """Samples by contender and job, one a round; None where it could not be measured."""

    gpu: bool = False
    rounds: int = 0
    samples: dict[tuple[str, str], list[Sample | None]] = field(default_factory=lambda: defaultdict(list))

    def values(self, name: str, job: str, what: Callable[[Sample], float]) -> list[float]:
        """Return what was measured of a contender at a job, round by round."""
        return [what(one) for one in self.samples.get((name, job), []) if one is not None]

    def rates(self, name: str, job: str) -> list[float]:
        """Return tokens per second."""
        return self.values(name, job, lambda sample: sample.rate(gpu=self.gpu))

    def ratios(
        self, one: tuple[str, str], other: tuple[str, str], what: Callable[[Sample], float]
    ) -> list[float]:
        """Return ``what`` of one over the other, in the rounds that have both."""
        pairs = zip(self.samples.get(one, []), self.samples.get(other, []), strict=False)
        return [what(a) / what(b) for a, b in pairs if a is not None and b is not None and what(b)]

    def speedup(self, name: str, against: str, job: str) -> list[float]:
        """Return the ratios of two contenders' rates at a job."""
        return self.ratios((name, job), (against, job), lambda sample: sample.rate(gpu=self.gpu))

    def costs(self, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
        """Return the ratios of what a token took in two jobs; where answers have one token, what an answer took."""
        return self.ratios(one, other, lambda sample: 1 / sample.rate(gpu=self.gpu))


def middle(values: Sequence[float]) -> float | None:
    """Return the median, None of nothing."""
    return median(values) if values else None


@asynccontextmanager
async def started(
    contenders: Iterable[Contender], missing: dict[str, str], book: Book, say: Callable[[str], None]
) -> AsyncIterator[list[Contender]]:
    """Everybody who starts and does a first short job; why others do not is noted in ``missing``."""
    running: list[Contender] = []
    try:
        for one in contenders:
            running.append(one)
            began = time.monotonic()
            try:
                await one.start()
                await one.run(book.warm(1))
                say(f"{one.name}: ready after {time.monotonic() - began:.0f} s")
            except ContenderLost as error:
                await _drop(one, running, missing, error, say)
        yield running
    finally:
        for one in running:
            await one.stop()


async def play(
    running: list[Contender],
    takes: Mapping[str, Sequence[str]],
    missing: dict[str, str],
    book: Book,
    rounds: int,
    *,
    gpu: bool,
    until: float,
    say: Callable[[str], None],
) -> Results:
    """Return the samples of so many rounds, fewer if ``until`` (CLOCK_MONOTONIC) passes. Who fails takes no further part."""
    results = Results(gpu=gpu)
    for number in range(rounds):
        if number and time.monotonic() > until:
            say(f"the time is over after {number} of {rounds} rounds")
            break
        began = time.monotonic()
        for job_name, job in book.round().items():
            # Nobody is always the first after a pause, or always behind the same one.
            turn = sorted(
                (one for one in running if one.name in takes[job_name]),
                key=lambda one: (takes[job_name].index(one.name) + number) % len(takes[job_name]),
            )
            for one in turn:
                sample: Sample | None = None
                try:
                    sample = await one.run(job)
                except ContenderLost as error:
                    await _drop(one, running, missing, error, say)
                results.samples[one.name, job_name].append(sample)
        results.rounds = number + 1
        say(f"round {number + 1} of {rounds}: {time.monotonic() - began:.0f} s")
    return results


async def _drop(
    one: Contender,
    running: list[Contender],
    missing: dict[str, str],
    error: ContenderLost,
    say: Callable[[str], None],
) -> None:
    missing[one.name] = str(error)
    say(f"{one.name} takes no further part: {error}")
    running.remove(one)
    await one.stop()

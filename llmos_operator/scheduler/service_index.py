"""Whose turn it is among work of unknown length: the Gittins index of attained service, learned from finished work.

For a job that has received `a` seconds of service the index is the least expected service per completion

    index(a) = min over D > 0 of  E[min(S - a, D) | S > a] / P(S - a <= D | S > a)            (seconds; smaller first)

It minimises the mean time in an M/G/1 queue whose job lengths S are not known in advance (Gittins 1979; Aalto, Ayesta
and Righter 2009; the SOAP analysis of Scully, Harchol-Balter and Scheller-Wolf 2018; for clusters of GPUs Tiresias,
NSDI'19, in its form with a known distribution). Where long jobs are likelier to go on than short ones, which is the
rule in training clusters, it orders like least attained service; where a queue's jobs have a usual length it does not
stop those that are about to reach it.

The distribution of S is a hazard that is constant within each of 48 service bins (edges 30 s x 2^(0.4 k), so up to
some months). It is estimated as completions / exposure, where work that has not finished counts as exposure only:
without it a young history would hold short jobs alone. Every estimate leans on a wider one with the weight of `LEAN`
completions a bin: (queue, size) on size, size on everything, everything on a heavy-tailed prior. Size is the class of the
number of devices: 1, 2, 3-4, 5-8, more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

Floats: TypeAlias = NDArray[np.float64]
Key: TypeAlias = tuple[str, int]  # queue, size class

BINS: Final = 48
LEAN: Final = 2.0  # completions' worth of belief in the wider estimate, in each bin
UPPER: Final[Floats] = np.array([30.0 * 2.0 ** (0.4 * k) for k in range(BINS)])
LOWER: Final[Floats] = np.concatenate([[0.0], UPPER[:-1]])
WIDTH: Final[Floats] = UPPER - LOWER
PRIOR: Final[Floats] = 0.5 / ((LOWER + UPPER) / 2 + 600.0)  # hazard of a heavy tail: P(S > s) ~ s^-0.5
_SIZES: Final = (1, 2, 4, 8)
_LEAST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Service:
    """What a piece of work received: device count and seconds on them. Seconds are of service, not of waiting."""

    queue: str
    gpus: int
    seconds: float


class Evidence:
    """Completions and exposure by bin of attained service; grows with what is seen to finish."""

    def __init__(self) -> None:
        self.completions = np.zeros(BINS)
        self.exposure = np.zeros(BINS)

    def add(self, seconds: Floats, *, finished: bool) -> None:
        """Count service received, in seconds; `finished` says whether it was all that was needed."""
        if not len(seconds):
            return
        self.exposure += np.clip(seconds[:, None] - LOWER, 0.0, WIDTH).sum(axis=0)
        if finished:
            bins = np.minimum(np.searchsorted(UPPER, seconds, "right"), BINS - 1)
            self.completions += np.bincount(bins, minlength=BINS)

    def plus(self, other: Evidence) -> Evidence:
        """Return both together."""
        both = Evidence()
        both.completions = self.completions + other.completions
        both.exposure = self.exposure + other.exposure
        return both

    def hazard(self, wider: Floats) -> Floats:
        """Return completions per second of service, leaning on a wider estimate."""
        return (self.completions + LEAN) / (self.exposure + LEAN / wider)


class ServiceIndex:
    """The index by queue and size. `finished` is remembered; what still runs is told anew with every `refresh`."""

    def __init__(self, finished: Iterable[Service] = (), unfinished: Iterable[Service] = ()) -> None:
        self._past: dict[Key, Evidence] = {}
        self._now: dict[Key, Evidence] = {}
        self._tables: dict[Key, Floats] = {}
        self._by_size: dict[int, Floats] = {}
        for one in _grouped(finished).items():
            self.learn(one[0], one[1])
        self.refresh(_grouped(unfinished))

    def learn(self, key: Key, seconds: Floats) -> None:
        """Remember finished work of one queue and size; counts from the next `refresh` on."""
        self._past.setdefault(key, Evidence()).add(seconds, finished=True)

    def refresh(self, unfinished: dict[Key, Floats]) -> None:
        """Make the index anew from all finished work and what the unfinished has received so far."""
        self._now = {key: Evidence().plus(past) for key, past in self._past.items()}
        for key, seconds in unfinished.items():
            self._now.setdefault(key, Evidence()).add(seconds, finished=False)
        everything, sizes = Evidence(), {size: Evidence() for size in range(len(_SIZES) + 1)}
        for key in sorted(self._now):  # sums of floats: one fixed order
            everything = everything.plus(self._now[key])
            sizes[key[1]] = sizes[key[1]].plus(self._now[key])
        overall = everything.hazard(PRIOR)
        self._by_size = {size: evidence.hazard(overall) for size, evidence in sizes.items()}
        self._tables = {}

    def seconds(self, queue: str, gpus: int, attained: float) -> float:
        """Return the index of one job: expected seconds of service per completion, at least 1."""
        return float(self.of((queue, size_class(gpus)), np.array([attained]))[0])

    def of(self, key: Key, attained: Floats) -> Floats:
        """Return the index of jobs of one queue and size after `attained` seconds of service each."""
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = gittins(self._hazard(key))
        return np.maximum(1.0, np.interp(attained, LOWER, table))

    def remaining(self, queue: str, gpus: int, attained: float, part: float) -> float:
        """Return the seconds within which `part` of the jobs that have received `attained` end; inf: beyond all bins."""
        gone = np.concatenate([[0.0], np.cumsum(self._hazard((queue, size_class(gpus))) * WIDTH)])
        edges = np.concatenate([[0.0], UPPER])
        target = float(np.interp(attained, edges, gone)) - math.log1p(-part)
        if attained >= edges[-1] or target > gone[-1]:
            return math.inf
        return max(0.0, float(np.interp(target, gone, edges)) - attained)

    def _hazard(self, key: Key) -> Floats:
        wider, evidence = self._by_size[key[1]], self._now.get(key)
        return evidence.hazard(wider) if evidence is not None else wider


def size_class(gpus: int) -> int:
    """Return the class of a number of devices."""
    return int(np.searchsorted(_SIZES, gpus))


def gittins(hazard: Floats) -> Floats:
    """Return the index in seconds at the lower edge of each bin, for a hazard per second in each bin."""
    survive = np.exp(-hazard * WIDTH)
    spent = (1.0 - survive) / np.maximum(hazard, _LEAST)
    table = np.empty(BINS)
    for start in range(BINS):
        reached = np.concatenate([[1.0], np.cumprod(survive[start:])])
        expected = np.cumsum(reached[:-1] * spent[start:])
        table[start] = 1.0 / max(_LEAST, float(((1.0 - reached[1:]) / expected).max()))
    return table


def _grouped(services: Iterable[Service]) -> dict[Key, Floats]:
    found: dict[Key, list[float]] = {}
    for one in services:
        found.setdefault((one.queue, size_class(one.gpus)), []).append(one.seconds)
    return {key: np.array(sorted(seconds)) for key, seconds in sorted(found.items())}

"""What every contender is given: the same prompts, each used once, and as many new tokens for each as the others make.

A prompt is a few words from one place of the built-in sample text and then a piece from another, so nobody finds it in a
prefix cache unless the job is to find it there, and prose still goes on as prose.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmos_operator.runtime.formats.sample_text import SAMPLE_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_OPENING = 8  # tokens that make a prompt's first cache block its own
_PIECE = 48  # long prompts are made of pieces of so many tokens


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is; tokens, but for the counts of streams and answers."""

    shortest: int = 16  # of an ordinary prompt
    longest: int = 96
    fewest: int = 16  # of an ordinary answer
    most: int = 48
    long: int = 512  # about, of the prompts that TTFT is measured with
    prefix: int = 1000  # and of those that the prefix cache is
    singles: int = 3  # answers one after the other, where there is one stream
    hits: int = 4
    some: int = 8  # streams
    many: int = 32
    beside: int = 200  # of the answers that are made while adapters are swapped


FULL = Sizes()
# Enough to see that everything works; the figures mean nothing.
QUICK = Sizes(longest=24, fewest=3, most=6, long=64, prefix=96, singles=1, hits=1, some=3, many=4, beside=24)


@dataclass(frozen=True, slots=True)
class Job:
    """Answers to ``prompts``, ``streams`` at a time, of ``tokens`` new tokens each."""

    name: str
    streams: int
    prompts: tuple[str, ...]
    tokens: tuple[int, ...]

    def batches(self) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Yield what is asked for at once; a batch begins when the one before has ended."""
        for at in range(0, len(self.prompts), self.streams):
            part = slice(at, at + self.streams)
            yield self.prompts[part], self.tokens[part]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a job took: seconds of CPU of the serving processes and of the wall, tokens made."""

    tokens: int
    cpu: float
    wall: float
    first: float = 0.0  # median seconds to the first token
    front: float = 0.0  # of the CPU seconds, those of the process that was started: a server's front
    gaps: tuple[float, ...] = ()  # seconds between parts of one stream
    parts: int = 0  # in which the tokens came

    def rate(self, *, gpu: bool) -> float:
        """Return tokens per second of CPU; on a GPU, where the CPU says little, of the wall."""
        return self.tokens / max(self.wall if gpu else self.cpu, 1e-9)


class Codec(Protocol):
    """The model's tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...


class Book:
    """Prompts that were not given yet."""

    def __init__(self, codec: Codec, sizes: Sizes = FULL, seed: int = 0) -> None:
        self._codec = codec
        self._sizes = sizes
        self._ids = codec.encode(SAMPLE_TEXT)
        self._random = random.Random(seed)
        self._given: set[tuple[int, int]] = set()

    def round(self) -> dict[str, Job]:
        """Return the jobs of one round, by name."""
        sizes = self._sizes
        prefix = self._long(sizes.prefix)
        jobs = [
            self._ragged("1", 1, sizes.singles),
            self._ragged("8", sizes.some, sizes.some),
            self._ragged("32", sizes.many, sizes.many),
            Job("prompt", 1, (self._long(sizes.long), self._long(sizes.long)), (1, 1)),
            Job("cold", 1, (prefix,), (1,)),
            Job("hit", 1, (prefix,) * sizes.hits, (1,) * sizes.hits),
            self._mixed(),
            Job("copy", 1, (self._repeating(),), (sizes.most,)),
        ]
        return {job.name: job for job in jobs}

    def warm(self, streams: int) -> Job:
        """Return a short job that makes a contender ready for the others."""
        prompts = tuple(self._short(self._sizes.shortest) for _ in range(streams))
        return Job("warm", streams, prompts, (4,) * streams)

    def drained(self) -> Job:
        """Return a job that goes on long enough for a server to be told to end."""
        sizes = self._sizes
        prompts = tuple(self._short(sizes.shortest) for _ in range(sizes.some))
        return Job("drained", sizes.some, prompts, (FULL.most,) * sizes.some)

    def _ragged(self, name: str, streams: int, count: int) -> Job:
        sizes, draw = self._sizes, self._random.randint
        prompts = tuple(self._short(draw(sizes.shortest, sizes.longest)) for _ in range(count))
        return Job(name, streams, prompts, tuple(draw(sizes.fewest, sizes.most) for _ in range(count)))

    def _mixed(self) -> Job:
        """Streams that decode while a long prompt comes in."""
        sizes = self._sizes
        short = tuple(self._short(sizes.shortest) for _ in range(sizes.some - 1))
        tokens = (*((sizes.most,) * len(short)), sizes.fewest)
        return Job("mixed", sizes.some, (*short, self._long(sizes.prefix)), tokens)

    def _repeating(self) -> str:
        """Return a text that has begun to repeat itself: what follows can be guessed."""
        piece = self._short(self._sizes.longest)
        return f"{piece}\n{piece}\n" + " ".join(piece.split()[:8])

    def _long(self, tokens: int) -> str:
        return "".join(self._short(_PIECE) for _ in range(-(-tokens // _PIECE)))

    def _short(self, tokens: int) -> str:
        last = len(self._ids) - FULL.longest
        while (at := (self._random.randrange(last), self._random.randrange(last))) in self._given:
            pass
        self._given.add(at)
        opening = self._ids[at[0] : at[0] + _OPENING]
        return self._codec.decode([*opening, *self._ids[at[1] : at[1] + tokens - _OPENING]])

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

SHORTEST, LONGEST = 16, 96  # tokens of an ordinary prompt
FEWEST, MOST = 16, 48  # new tokens of an ordinary answer
_OPENING = 8  # tokens that make a prompt's first cache block its own
_PIECE = 48  # long prompts are made of pieces of so many tokens
LONG, PREFIX = 512, 1000  # tokens, about, of the prompts that TTFT and the prefix cache are measured with
_HITS = 4
_SINGLES = 3  # answers one after the other, where there is one stream
_MIXED_STREAMS = 8


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
    gaps: tuple[float, ...] = ()  # seconds between tokens of one stream

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

    def __init__(self, codec: Codec, seed: int = 0) -> None:
        self._codec = codec
        self._ids = codec.encode(SAMPLE_TEXT)
        self._random = random.Random(seed)
        self._given: set[tuple[int, int]] = set()

    def round(self) -> dict[str, Job]:
        """Return the jobs of one round, by name."""
        prefix = self._long(PREFIX)
        jobs = [
            self._ragged("1", 1, _SINGLES),
            self._ragged("8", 8, 8),
            self._ragged("32", 32, 32),
            Job("prompt", 1, (self._long(LONG), self._long(LONG)), (1, 1)),
            Job("cold", 1, (prefix,), (1,)),
            Job("hit", 1, (prefix,) * _HITS, (1,) * _HITS),
            self._mixed(),
            Job("copy", 1, (self._repeating(),), (MOST,)),
        ]
        return {job.name: job for job in jobs}

    def warm(self, streams: int) -> Job:
        """Return a short job that makes a contender ready for the others."""
        return Job("warm", streams, tuple(self._short(SHORTEST) for _ in range(streams)), (4,) * streams)

    def _ragged(self, name: str, streams: int, count: int) -> Job:
        prompts = tuple(self._short(self._random.randint(SHORTEST, LONGEST)) for _ in range(count))
        return Job(name, streams, prompts, tuple(self._random.randint(FEWEST, MOST) for _ in range(count)))

    def _mixed(self) -> Job:
        """Streams that decode while a long prompt comes in."""
        short = tuple(self._short(SHORTEST) for _ in range(_MIXED_STREAMS - 1))
        return Job("mixed", _MIXED_STREAMS, (*short, self._long(PREFIX)), (*((MOST,) * len(short)), FEWEST))

    def _repeating(self) -> str:
        """Return a text that has begun to repeat itself: what follows can be guessed."""
        piece = self._short(LONGEST)
        return f"{piece}\n{piece}\n" + " ".join(piece.split()[:8])

    def _long(self, tokens: int) -> str:
        pieces = [self._short(_PIECE) for _ in range(-(-tokens // _PIECE))]
        return "".join(pieces)

    def _short(self, tokens: int) -> str:
        last = len(self._ids) - LONGEST
        while (at := (self._random.randrange(last), self._random.randrange(last))) in self._given:
            pass
        self._given.add(at)
        opening, rest = (self._ids[at[0] : at[0] + _OPENING], self._ids[at[1] : at[1] + tokens - _OPENING])
        return self._codec.decode([*opening, *rest])

"""Tokens to text while they come: whole characters only, and stop texts found across token borders.

Pure: no I/O, one object per answer.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Utf8 = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Turns one answer's tokens into pieces of text whose concatenation is the text of all tokens.

    A piece never ends inside a character: the bytes of an unfinished one are kept for the next piece. Bytes that never
    become a character show as U+FFFD.
    """

    __slots__ = ("_bytes_of", "_decoder")

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        """``bytes_of`` maps a token to the bytes it stands for."""
        self._bytes_of = bytes_of
        self._decoder = _Utf8("replace")

    def push(self, tokens: Iterable[int]) -> str:
        """Return the text that ``tokens`` complete, "" while a character is incomplete."""
        return self._decoder.decode(b"".join(map(self._bytes_of, tokens)))

    def end(self) -> str:
        """Return what is left of an unfinished character."""
        return self._decoder.decode(b"", final=True)


@dataclass(slots=True)
class StopFinder:
    """Finds the first stop text in a text that comes in pieces; holds back what may become one."""

    stops: tuple[str, ...]
    include: bool = False  # whether the stop text itself is part of the answer
    _held: str = field(default="")

    def push(self, piece: str) -> tuple[str, bool]:
        """Return the text that is safe to show, and whether a stop text was found (then nothing may follow)."""
        if not self.stops:
            return piece, False
        text = self._held + piece
        found = min(
            ((at, -len(stop), stop) for stop in self.stops if (at := text.find(stop)) >= 0), default=None
        )
        if found is not None:
            self._held = ""
            at, _, stop = found
            return text[: at + len(stop)] if self.include else text[:at], True
        keep = self._tail(text)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep], False

    def end(self) -> str:
        """Return what was held back for a stop text that did not come."""
        held, self._held = self._held, ""
        return held

    def _tail(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop text."""
        longest = min(len(text), max(len(stop) for stop in self.stops) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self.stops):
                return length
        return 0

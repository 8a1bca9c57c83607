"""The front's side of decoding: a process for each file, a few at a time, and a bound on the sound that is held."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.runtime.admission import OVERLOADED
from llmos_operator.runtime.answers import ApiError, bad_request
from llmos_operator.runtime.confined import confined
from llmos_operator.runtime.speech.rules import RATE, SAMPLE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROCESSES = 2
HELD_FILES = 2  # sound of so many files of the longest kind is held at once
SECONDS = 60.0  # a file may take to decode
_MODULE = "llmos_operator.runtime.speech.decoding"


@dataclass(frozen=True, slots=True)
class Sound:
    """A decoded file: samples at rules.RATE, of 16 bits, and where they are cut."""

    seconds: float
    windows: tuple[tuple[int, int], ...]  # samples: begin and end
    data: bytes = field(repr=False)

    def window(self, index: int) -> bytes:
        """Return the samples of a window."""
        begin, end = self.windows[index]
        return self.data[begin * SAMPLE_BYTES : end * SAMPLE_BYTES]


class Decoder:
    """Decodes files of at most ``most_seconds``."""

    def __init__(self, most_seconds: int, *, timeout: float = SECONDS) -> None:
        self.most_seconds = most_seconds
        self.held_seconds = 0.0
        self._timeout = timeout
        self._turns = asyncio.Semaphore(PROCESSES)

    @asynccontextmanager
    async def decoded(self, data: bytes, window_samples: int) -> AsyncIterator[Sound]:
        """Give the sound of a file while the block runs. Raises ApiError: 400 naming `file`, 429."""
        if not data:
            raise bad_request("invalid_audio", "Invalid 'file': it is empty.", "file")
        async with self._turns:
            sound = await self._decode(data, window_samples)
        if self.held_seconds and self.held_seconds + sound.seconds > HELD_FILES * self.most_seconds:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "overloaded",
                f"{self.held_seconds:.0f} s of sound are being written down already. Try again later.",
                retry_after=5.0,
                refused=OVERLOADED,
            )
        self.held_seconds += sound.seconds
        try:
            yield sound
        finally:
            self.held_seconds -= sound.seconds

    async def _decode(self, data: bytes, window_samples: int) -> Sound:
        arguments = (str(self.most_seconds), str(window_samples))
        try:
            async with confined(_MODULE, arguments, data) as output, asyncio.timeout(self._timeout):
                return await self._read(output)
        except TimeoutError:
            raise bad_request(
                "invalid_audio",
                f"Invalid 'file': it could not be decoded within {self._timeout:.0f} s.",
                "file",
            ) from None
        except (asyncio.IncompleteReadError, ValueError, KeyError, TypeError):
            raise bad_request("invalid_audio", "Invalid 'file': decoding it failed.", "file") from None

    async def _read(self, output: asyncio.StreamReader) -> Sound:
        """Return what the process says; it is believed within bounds, for a file may have taken it over."""
        told = json.loads(await output.readline())
        if "error" in told:
            raise bad_request(str(told["code"])[:40], f"Invalid 'file': {str(told['error'])[:500]}.", "file")
        windows = tuple((int(begin), int(end)) for begin, end in told["windows"])
        end = windows[-1][1]
        if not 0 < end <= (self.most_seconds + 1) * RATE:
            raise ValueError("more sound than there may be")
        data = await output.readexactly(end * SAMPLE_BYTES)
        return Sound(end / RATE, windows, data)

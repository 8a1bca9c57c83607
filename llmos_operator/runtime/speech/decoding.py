"""The process that decodes one file of sound: whatever a stranger's file does to a decoder, it does it here.

Reads the file from standard input; writes one line of JSON, `{"seconds", "windows"}` or `{"error", "code"}`, then the
samples: mono, 16 kHz, 16 bits, little-endian. It has no secrets, opens no files, and limits its own memory and time.

    python -m llmos_operator.runtime.speech.decoding SECONDS WINDOW_SAMPLES
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from llmos_operator.runtime.confined import confine
from llmos_operator.runtime.speech.resampling import Resampler
from llmos_operator.runtime.speech.rules import RATE
from llmos_operator.runtime.speech.windows import windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
MAX_CHANNELS = 8
RATES = (4_000, 192_000)
MEMORY_BYTES = 2 << 30  # of address space; libraries alone take a third of it
CPU_SECONDS = 120
_BLOCK_SECONDS = 5
_FULL_SCALE = 32_768


class Undecodable(Exception):  # noqa: N818 - reads as what it is
    """The file cannot be used; ``code`` is the API's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str]) -> int:
    """Decode standard input; a file that cannot be used is an answer, not a failure."""
    seconds, window = int(argv[0]), int(argv[1])
    confine(memory_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS)
    out = sys.stdout.buffer
    try:
        samples = decode(sys.stdin.buffer.read(), seconds)
    except Undecodable as error:
        out.write(json.dumps({"error": str(error), "code": error.code}).encode() + b"\n")
        return 0
    cuts = list(windows(samples, window))
    out.write(json.dumps({"seconds": len(samples) / RATE, "windows": cuts}).encode() + b"\n")
    out.write(samples.astype("<i2", copy=False).data)
    out.flush()
    return 0


def decode(data: bytes, seconds: int) -> NDArray[np.int16]:
    """Return the samples of a file of at most ``seconds``. Raises Undecodable."""
    import soundfile  # noqa: PLC0415 - its library is loaded under the limits

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check(file, seconds)
            parts = [_narrow(part) for part in _resampled(file, seconds)]
    except soundfile.LibsndfileError as error:
        raise Undecodable(
            "invalid_audio",
            f"it is no sound in a format that is read here ({error.error_string}); send wav, flac, ogg, mp3 or aiff",
        ) from None
    if not any(map(len, parts)):
        raise Undecodable("invalid_audio", "it holds no sound")
    return np.concatenate(parts)


def _narrow(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return samples at 16 bits; those that were so before are what they were."""
    return np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _check(file: Any, seconds: int) -> None:
    if file.format not in FORMATS:
        raise Undecodable(
            "invalid_audio", f"{file.format} is not read here; send wav, flac, ogg, mp3 or aiff"
        )
    low, high = RATES
    if not (1 <= file.channels <= MAX_CHANNELS and low <= file.samplerate <= high):
        raise Undecodable(
            "invalid_audio",
            f"it has {file.channels} channels at {file.samplerate} Hz; 1 to {MAX_CHANNELS} at {low} to {high} Hz are read",
        )
    if file.frames > seconds * file.samplerate:
        raise _too_long(f"{file.frames / file.samplerate:.0f}", seconds)


def _resampled(file: Any, seconds: int) -> Iterator[NDArray[np.float32]]:
    """Yield the file's sound at RATE, counting what is really there: a header may lie."""
    resampler = None if file.samplerate == RATE else Resampler(file.samplerate, RATE)
    left = seconds * file.samplerate
    while len(block := file.read(_BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)):
        left -= len(block)
        if left < 0:
            raise _too_long(f"more than {seconds}", seconds)
        mono = np.nan_to_num(block.mean(1), nan=0.0, posinf=1.0, neginf=-1.0)
        yield mono if resampler is None else resampler.push(mono)
    if resampler is not None:
        yield resampler.end()


def _too_long(told: str, seconds: int) -> Undecodable:
    return Undecodable("audio_too_long", f"it has {told} s of sound; {seconds} s are taken")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # nothing is left to do, and a broken library may hang at its end

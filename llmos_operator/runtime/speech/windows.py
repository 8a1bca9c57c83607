"""Where a long recording is cut: at its quietest moment in the last seconds of each window. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FRAME = 320  # samples: 20 ms
QUIET_FRAMES = 10  # a pause between words
SEARCHED_FRAMES = 250  # the last 5 s of a window


def windows(samples: NDArray[np.int16], most: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of consecutive windows of at most ``most`` samples that cover ``samples``."""
    begin = 0
    while len(samples) - begin > most:
        end = _quietest(samples, begin, begin + most)
        yield begin, end
        begin = end
    yield begin, len(samples)


def _quietest(samples: NDArray[np.int16], begin: int, end: int) -> int:
    """Return the middle of the quietest pause before ``end``; never further back than half the window."""
    searched = min(SEARCHED_FRAMES * FRAME, (end - begin) // 2)
    frames = searched // FRAME
    if frames <= QUIET_FRAMES:
        return end
    start = end - frames * FRAME
    power = (samples[start:end].astype(np.float32).reshape(frames, FRAME) ** 2).mean(1)
    pauses = np.convolve(power, np.ones(QUIET_FRAMES), "valid")
    return start + (int(pauses.argmin()) + QUIET_FRAMES // 2) * FRAME

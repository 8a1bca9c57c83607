"""Sound at any rate to sound at another: a windowed sinc in polyphase form, block by block.

For a ratio of ``up / down`` output n is the sum of inputs around n * down / up, weighted by the low-pass filter's phase
(n * down) mod up. A Kaiser window of 16 zero crossings keeps what would fold back more than 80 dB down.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

_CROSSINGS = 16
_BETA = 8.6
_ROLL_OFF = 0.94  # of the lower of the two half rates


class Resampler:
    """Push blocks of samples, take what they give; the end pads with silence."""

    def __init__(self, rate: int, wanted: int) -> None:
        common = math.gcd(rate, wanted)
        self._up, self._down = wanted // common, rate // common
        # Both in units of input samples.
        cutoff = _ROLL_OFF * min(1.0, wanted / rate)
        self._half = math.ceil(_CROSSINGS / cutoff)
        self._table = _filter(self._up, self._half, cutoff)
        self._held = np.zeros(self._half - 1, np.float32)  # input from position self._first on
        self._first = -(self._half - 1)
        self._next = 0  # number of the next output
        self._seen = 0  # input samples so far

    def push(self, block: Samples) -> Samples:
        """Return the output that ``block`` completes."""
        self._seen += len(block)
        self._held = np.concatenate([self._held, block])
        return self._take(math.inf)

    def end(self) -> Samples:
        """Return the rest: an output for each whole step of the input."""
        total = -(-self._seen * self._up // self._down)
        self._held = np.concatenate([self._held, np.zeros(2 * self._half + 1, np.float32)])
        return self._take(total)

    def _take(self, limit: float) -> Samples:
        width = self._table.shape[1]
        last = self._first + len(self._held) - width + self._half - 1  # last input whose whole window is held
        count = (last * self._up + self._up - 1) // self._down + 1 - self._next
        count = int(min(count, limit - self._next))
        if count <= 0:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self._held, width)
        out = np.empty(count, np.float32)
        # Outputs ``up`` apart have the same phase, and their windows lie ``down`` inputs apart.
        for turn in range(min(self._up, count)):
            place = (self._next + turn) * self._down
            begin = place // self._up - self._half + 1 - self._first
            own = out[turn :: self._up]
            rows = windows[begin : begin + (len(own) - 1) * self._down + 1 : self._down]
            out[turn :: self._up] = rows @ self._table[place % self._up]
        self._next += count
        keep = int(self._next * self._down // self._up - self._half + 1 - self._first)
        self._held, self._first = self._held[keep:], self._first + keep
        return out


def _filter(up: int, half: int, cutoff: float) -> Samples:
    """Return the weights [phase, 2 x half] of the inputs from ``half - 1`` before a place to ``half`` after it."""
    offsets = np.arange(-half + 1, half + 1)[None] - np.arange(up)[:, None] / up
    inside = np.clip(1 - (offsets / half) ** 2, 0.0, None)
    window = np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA)
    weights = cutoff * np.sinc(cutoff * offsets) * window
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)

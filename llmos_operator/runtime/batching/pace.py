"""How many tokens a step may hold while sequences wait for their next one. Pure: it is told how long steps took.

A step takes as long as what it holds. A piece of 256 prompt tokens keeps everybody else waiting for more than a second on
one CPU core, and for 10 ms on a GPU, so the number is found by what steps took. If a step of x tokens takes f + p x, then
x times TARGET_SECONDS over those seconds leads to the x whose step takes the target, from either side and without knowing
f and p: the slope of that map at its fixed point is f over the target, below one wherever the target can be kept at all.

Shorter pieces cost the prompt f more often, which FEWEST bounds. What another process on the machine adds to one step
makes the next steps smaller than need be; as they grow twofold at most, a single quick step is not trusted either.
Decode rows are counted as prompt tokens are (Sarathi-Serve, OSDI'24): both go through the same products.
"""

from __future__ import annotations

FEWEST = 64  # tokens; half of it costs a prompt 1.8 times what whole pieces do (docs/benchmarks.md)
TARGET_SECONDS = 0.4  # between two tokens of a stream beside a long prompt
_GRAIN = 16  # products of odd row counts are slower


class Pace:
    """Finds a step's token budget, of which prompts get FEWEST at the least and what memory was planned for at the most."""

    def __init__(self, most: int) -> None:
        """``most``: prompt tokens that a step may hold in any case."""
        self._most = most
        self._fewest = min(FEWEST, most)
        self._budget = self._fewest

    def room(self, decoding: int) -> int:
        """Return how many prompt tokens the next step may have beside ``decoding`` rows that wait for a token."""
        if not decoding:
            return self._most
        left = min(max(self._budget - decoding, self._fewest), self._most)
        return left - left % _GRAIN if left > _GRAIN else left

    def took(self, tokens: int, seconds: float) -> None:
        """Learn from a step. Those of few tokens say little about the others and are left out."""
        if tokens < self._fewest:
            return
        wanted = tokens * TARGET_SECONDS / max(seconds, 1e-6)
        self._budget = int(max(min(wanted, 2 * self._budget, 2 * self._most), self._fewest))

"""Lets requests in, or tells them early that they would wait too long.

The engine queues requests itself; the front only refuses what would wait longer than `max_wait_seconds`, because a
client that is told at once can go elsewhere. The expected wait of the k-th waiting request is (k + 1) x S / C: S is the
usual time a request takes once it has started, C how many run at once. Pure but for the numbers it is fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.runtime.answers import ApiError

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc import Stats

OVERLOADED = "overloaded"
_WEIGHT = 0.2  # of the newest observation


@dataclass(slots=True)
class Admission:
    """Requests inside the runtime, and how long newcomers would wait. Seconds."""

    max_num_seqs: int
    max_queue: int
    max_wait_seconds: float
    inside: int = 0  # sequences submitted and not finished
    service_seconds: float = 0.0  # usual time from start to end of a sequence; 0: not known yet
    rejected: int = 0
    _running: int = 0
    _waiting: int = 0

    def observe(self, stats: Stats) -> None:
        """Take the engine's own count of running and waiting sequences."""
        self._running, self._waiting = stats.running, stats.waiting

    def expected_wait(self, sequences: int = 1) -> float:
        """Return the seconds until the last of so many new sequences would start."""
        ahead = self.waiting() + sequences - self._free()
        return max(0, ahead) * self.service_seconds / self._parallel()

    def enter(self, sequences: int) -> None:
        """Let so many sequences in; :meth:`leave` when they are over. Raises ApiError (429)."""
        wait = self.expected_wait(sequences)
        # A request may always use a runtime that is idle, whatever its size.
        full = self.inside > 0 and self.waiting() + sequences > self.max_queue + self._free()
        if full or (self.inside > 0 and wait > self.max_wait_seconds):
            self.rejected += 1
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "overloaded",
                f"The model is overloaded: {self.inside} answers are being made or wait already, and this request "
                f"would wait about {wait:.0f} s. Try again later.",
                retry_after=max(1.0, wait - self.max_wait_seconds, self.service_seconds / self._parallel()),
                refused=OVERLOADED,
            )
        self.inside += sequences

    def leave(self, sequences: int = 1) -> None:
        """So many sequences are over."""
        self.inside -= sequences

    def finished(self, seconds: float) -> None:
        """A sequence took so long from its start to its end."""
        if self.service_seconds == 0.0:
            self.service_seconds = seconds
        else:
            self.service_seconds += _WEIGHT * (seconds - self.service_seconds)

    def waiting(self) -> int:
        """Return how many sequences wait for their start."""
        return max(0, self.inside - self._parallel())

    def is_full(self) -> bool:
        """Whether the queue takes nobody any more."""
        return self.waiting() >= self.max_queue > 0

    def _parallel(self) -> int:
        # Memory may allow fewer than configured: then the engine says so by letting others wait.
        return max(1, self._running) if self._waiting > 0 else max(1, self.max_num_seqs)

    def _free(self) -> int:
        return max(0, self._parallel() - self.inside)

"""The circuit breaker of everything that is done to nodes because devices look sick.

A bad rule, driver or sensor can make a whole fleet look sick within minutes. However many nodes ask, at most `share` of
them, and at least one, are acted on in any `window`: what the planner takes off broken devices and what remediation does
to nodes and devices count together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Breaker:
    """Bounds of what may be acted on. Times are seconds.

    A node that is acted on again is written down again only after `renew`, so that draining a node of many pods costs
    one write; it is counted for as much longer, which keeps the promise about any window.
    """

    share: float = 0.10  # of the nodes with devices
    window: float = 600.0
    renew: float = 60.0

    def allowance(self, nodes: int) -> int:
        """Return how many of so many nodes may be acted on within the window."""
        return max(1, int(nodes * self.share)) if nodes else 0

    def recent(self, disturbed: Mapping[str, float], now: float) -> frozenset[str]:
        """Return the nodes that count at `now`; `disturbed` says when each was acted on last, in epoch seconds.

        A time in the future is that of a clock that was set back since: it counts no longer than others.
        """
        counted = self.window + self.renew
        return frozenset(name for name, at in disturbed.items() if abs(now - at) < counted)

    def admits(self, node: str, recent: frozenset[str] | set[str], nodes: int) -> bool:
        """Return whether `node` may be acted on beside those of :meth:`recent`."""
        return node in recent or len(recent) < self.allowance(nodes)

    def says(self, recent: int, nodes: int) -> str:
        """Return why nothing more may be acted on."""
        return (
            f"circuit breaker: {recent} of {nodes} nodes were acted on within {self.window:.0f} s, "
            f"{self.allowance(nodes)} are allowed"
        )

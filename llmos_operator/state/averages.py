"""What each queue has used on average, past use counting half after every half-life.

While a queue uses `u` for `t` seconds, its average goes

    average' = u + (average - u) x 2^(-t / halfLife)

(an exponentially weighted mean: what Kueue's admission fair sharing keeps, KEP-4136). It has the unit of use, exact
integers: thousandths of devices and bytes. After a restart it starts from what can still be seen: every claim says
since when it is bound, and so contributes what it had contributed before. The past of work that has gone is then lost,
in favour of whoever used much; a half-life later that makes at most half of the difference it made at first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.types import Claim, Queue

Use: TypeAlias = tuple[int, int]  # thousandths of devices, bytes of device memory
NOTHING: Use = (0, 0)


def moved(average: Use, use: Use, seconds: float, half_life: float) -> Use:
    """Return the average after `seconds` of `use`; a clock that went back moves nothing."""
    if half_life <= 0:
        return use
    kept = 2.0 ** (-max(0.0, seconds) / half_life)
    return (round(use[0] + (average[0] - use[0]) * kept), round(use[1] + (average[1] - use[1]) * kept))


def since_bound(claims: Iterable[Claim], now: float, half_life: float) -> Use:
    """Return the average that running claims alone give account of."""
    milli = held = 0
    for claim in claims:
        one = moved(NOTHING, (claim.gpu_milli, claim.charged_bytes), now - claim.bound_at, half_life)
        milli, held = milli + one[0], held + one[1]
    return milli, held


class Averages:
    """The averages of all queues with a half-life, moved on whenever somebody says what time it is."""

    def __init__(self) -> None:
        self._averages: dict[str, Use] = {}
        self._use: dict[str, Use] = {}  # since `_at`
        self._at = 0.0

    def advance(
        self, now: float, queues: Mapping[str, Queue], charged: Mapping[str, Use], claims: Iterable[Claim]
    ) -> None:
        """Move to `now` (epoch seconds); `charged` is the use from now on, `claims` is read for new queues only."""
        lasting = {name: q.half_life for name, q in queues.items() if q.half_life > 0}
        new = lasting.keys() - self._averages.keys()
        seconds = now - self._at
        averages = {
            name: moved(self._averages[name], self._use.get(name, NOTHING), seconds, lasting[name])
            for name in lasting
            if name not in new
        }
        if new:
            of_queue: dict[str, list[Claim]] = {name: [] for name in new}
            for claim in claims:
                if claim.queue in of_queue:
                    of_queue[claim.queue].append(claim)
            averages |= {name: since_bound(of_queue[name], now, lasting[name]) for name in new}
        self._averages, self._use, self._at = averages, dict(charged), max(now, self._at)

    def restore(self, averages: Mapping[str, Use]) -> None:
        """Take averages as they were and keep them: what is tried out on a copy happens in no time."""
        self._averages, self._at = dict(averages), math.inf

    def all(self) -> dict[str, Use]:
        """Return the average use by queue, as of the last `advance`."""
        return dict(self._averages)

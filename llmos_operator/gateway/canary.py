"""Which requests go to a canary: a set share of them, by turns.

The turns are nginx's smooth weighted round robin for two: spread evenly, the same every time, and exact over any hundred
requests. A side that takes no request at the moment leaves its share to the other.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from llmos_operator.gateway.catalog import Replica, Workload

WHOLE = 100  # per cent
_REMEMBERED = 1024  # workloads whose turns are kept


@dataclass(slots=True)
class Canaries:
    """Whose turn it is, by workload."""

    _credit: OrderedDict[str, int] = field(
        default_factory=OrderedDict
    )  # of the canary, by UID of the workload

    def side(
        self, workload: Workload, replicas: Collection[Replica], takes: Callable[[Iterable[Replica]], bool]
    ) -> list[Replica] | None:
        """Return those of ``replicas`` whose turn it is, None where no canary divides them or only one side can take it.

        ``takes`` says whether any of some replicas can take a request now.
        """
        if not workload.canary_percent:
            return None
        new = [one for one in replicas if is_new(workload, one)]
        old = [one for one in replicas if not is_new(workload, one)]
        if not takes(new) or not takes(old):
            return None
        return new if self._is_next(workload) else old

    def took(self, workload: Workload) -> None:
        """The side of ``workload`` whose turn it was has got its request."""
        gain = workload.canary_percent - (WHOLE if self._is_next(workload) else 0)
        self._credit[workload.uid] = self._credit.pop(workload.uid, 0) + gain
        if len(self._credit) > _REMEMBERED:
            self._credit.popitem(last=False)

    def _is_next(self, workload: Workload) -> bool:
        return 2 * (self._credit.get(workload.uid, 0) + workload.canary_percent) > WHOLE


def is_new(workload: Workload, replica: Replica) -> bool:
    """Whether ``replica`` is of the canary. One that does not say from what it was made is, as for the operator."""
    return replica.spec_hash in {"", workload.canary_hash}

"""What stands at this moment, as figures: who waits since when, which nodes are silent, what is used without a claim.

Unlike counters these are read off the store as a whole, every few seconds. Only the leader shows them: a replica that
stands by has an empty store, and a leader that loses its lease ends.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.control import gangs
from llmos_operator.control.budgets import budgets
from llmos_operator.state import loans

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.state.ledger import DeviceState
    from llmos_operator.state.snapshot import Snapshot

SECONDS = 5.0  # between looks
_PERCENT = 100
_MILLI = 1000


class Standing:
    """Shows a snapshot on the operator's metrics. Call `show` every `SECONDS` from one task."""

    def __init__(
        self,
        metrics: OperatorMetrics,
        *,
        overuse_percent: int,
        rack_label: str,
        draw: Callable[[str], int | None],
    ) -> None:
        """``overuse_percent``: of a device; what more is observed than reserved stops new placement (`Policy`).

        ``rack_label``: of nodes, names their rack. ``draw``: milliwatts of a device by UUID, None if it does not tell.
        """
        self._metrics = metrics
        self._rack_label = rack_label
        self._draw = draw
        self._overuse_percent = overuse_percent
        self._since: dict[str, float] = {}  # workload UID -> when it began to wait
        self._placed: set[str] = set()  # UIDs this process has seen with everything they want
        self._first_seen: dict[str, float] = {}  # node -> when this process first knew it

    def show(self, snapshot: Snapshot, now: float) -> None:
        """Set every figure. ``now`` in epoch seconds."""
        self._show_waiting(snapshot, now)
        self._show_gangs(snapshot)
        self._show_nodes(snapshot, now)
        self._show_power(snapshot)
        self._show_strain(snapshot)
        self._show_loans(snapshot)

    def _show_waiting(self, snapshot: Snapshot, now: float) -> None:
        """A workload waits from its creation, or from when it lost a place this process has seen it in."""
        waiting = {snapshot.workloads[key].uid: snapshot.workloads[key] for key in snapshot.unsettled}
        uids = {workload.uid for workload in snapshot.workloads.values()}
        since = {
            uid: self._since.get(uid, now if uid in self._placed else workload.created_at)
            for uid, workload in waiting.items()
        }
        self._since, self._placed = since, (self._placed & uids) | (uids - waiting.keys())
        count = dict.fromkeys(snapshot.queues, 0)
        oldest: dict[str, float] = {}
        for uid, workload in waiting.items():
            queue = workload.queue or names.DEFAULT_QUEUE
            count[queue] = count.get(queue, 0) + 1
            oldest[queue] = min(oldest.get(queue, since[uid]), since[uid])
        self._metrics.waiting.clear()
        self._metrics.waiting_since.clear()
        for queue, number in count.items():
            self._metrics.waiting.labels(queue).set(number)
        for queue, started in oldest.items():
            self._metrics.waiting_since.labels(queue).set(started)

    def _show_gangs(self, snapshot: Snapshot) -> None:
        found: Counter[gangs.GangState] = Counter()
        for workload in snapshot.workloads.values():
            found += gangs.states(workload, snapshot.pods_of.get(workload.uid, ()))
        for state in gangs.GangState:
            self._metrics.gangs.labels(state.value).set(found[state])

    def _show_power(self, snapshot: Snapshot) -> None:
        """Show budgets, and what is expected and drawn of them where every device tells."""
        gauges = self._metrics.power_budget, self._metrics.power_expected, self._metrics.power_drawn
        for gauge in gauges:
            gauge.clear()
        for one in budgets(snapshot, self._rack_label, self._draw):
            for gauge, milliwatts in zip(gauges, (one.budget, one.expected, one.drawn), strict=True):
                if milliwatts is not None:
                    gauge.labels(one.level, one.name).set(milliwatts / _MILLI)

    def _show_strain(self, snapshot: Snapshot) -> None:
        """Show the devices that count less than their like, and how many take nothing new for it."""
        strain, held_down = self._metrics.strain, self._metrics.held_down
        strain.clear()
        held_down.clear()
        for name, state in snapshot.nodes.items():
            if state.gpu is not None:
                held_down.labels(name).set(sum(one.held_down for one in state.devices))
            for one in state.devices:
                for kind, milli in (("throttled", one.throttled_milli), ("risk", one.risk_milli)):
                    if milli:
                        strain.labels(name, str(one.device.index), kind).set(milli / _MILLI)

    def _show_loans(self, snapshot: Snapshot) -> None:
        """Show what idle replicas have lent, and what of it is in use, where there is any."""
        gauge = self._metrics.lent_bytes
        gauge.clear()
        lenders = [(pod, pod.claim) for pod in snapshot.lowered if pod.claim is not None and pod.claim.lent]
        totals: dict[tuple[str, str], int] = {}
        for pod, claim in lenders:
            borrowed = loans.borrowers(snapshot.nodes[pod.node], pod.key)
            for side, held in (
                ("lent", claim.lent_bytes * len(claim.devices)),
                ("borrowed", sum(b.claim.held_bytes * len(b.claim.devices) for b in borrowed if b.claim)),
            ):
                totals[pod.node, side] = totals.get((pod.node, side), 0) + held
        for place, held in totals.items():
            gauge.labels(*place).set(held)

    def _show_nodes(self, snapshot: Snapshot, now: float) -> None:
        known = {name: state for name, state in snapshot.nodes.items() if state.gpu is not None}
        self._first_seen = {name: self._first_seen.get(name, now) for name in known}
        metrics = self._metrics
        for gauge in (metrics.telemetry_at, metrics.unreserved, metrics.overused):
            gauge.clear()
        for name, state in known.items():
            metrics.telemetry_at.labels(name).set(snapshot.heard.get(name, self._first_seen[name]))
            excess = [_excess(device) for device in state.devices]
            limits = [d.device.memory_bytes * self._overuse_percent // _PERCENT for d in state.devices]
            metrics.unreserved.labels(name).set(sum(excess))
            metrics.overused.labels(name).set(
                sum(over > limit for over, limit in zip(excess, limits, strict=True))
            )


def _excess(device: DeviceState) -> int:
    """Return the bytes in use beyond what is reserved; 0 where the device is held as a whole."""
    if device.observed_bytes is None or device.exclusive or device.foreign:
        return 0
    return max(0, device.observed_bytes - device.reserved_bytes)

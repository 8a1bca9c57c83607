"""Says what the health policy would do about sick devices now, within its circuit breaker. A dry run: nothing is done.

`telemetry.remediation` decides; here its answer becomes figures, log lines and what the console shows, so that a fleet can
be watched before anybody lets the policy touch it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.telemetry import Verdict
from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.remediation import DISRUPTIVE, Limits, SickDevice, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.telemetry.remediation import Proposal

log = logger(__name__)

STATES = ("advice", "allowed", "young", "breaker")
_SICK = frozenset({Verdict.UNHEALTHY, Verdict.DEGRADED})


class Remedies:
    """Looks at the fleet every few seconds. `proposals` is what it found last, the most urgent first."""

    def __init__(self, metrics: OperatorMetrics) -> None:
        self.proposals: tuple[Proposal, ...] = ()
        self._metrics = metrics
        self._limits = Limits(dry_run=True)
        self._since: dict[
            tuple[str, str, str], float
        ] = {}  # node, device, reason -> monotonic, first seen so
        self._told: set[tuple[str, str, str]] = set()  # node, device, action

    def look(self, snapshot: Snapshot, monotonic: float) -> None:
        """Take the verdicts as they are."""
        nodes = sum(state.gpu is not None for state in snapshot.nodes.values())
        sick = list(self._sick(snapshot, monotonic))
        self._since = {(one.node, one.uuid, one.reason): one.since for one in sick}
        # In a dry run nothing has happened before: each look tells what could begin now.
        self.proposals, _ = plan(sick, nodes, (), self._limits, monotonic)
        self._show()
        self._tell()

    def _sick(self, snapshot: Snapshot, monotonic: float) -> Iterator[SickDevice]:
        for name, state in snapshot.nodes.items():
            for one in state.devices:
                if one.verdict in _SICK:
                    since = self._since.get((name, one.uuid, one.reason), monotonic)
                    yield SickDevice(name, one.uuid, one.verdict, one.reason, since, busy=one.claims > 0)

    def _show(self) -> None:
        self._metrics.remedies.clear()
        for one in self.proposals:
            self._metrics.remedies.labels(one.action.value, state_of(one)).inc()

    def _tell(self) -> None:
        found = {(one.node, one.device, one.action.value) for one in self.proposals}
        for one in self.proposals:
            if (one.node, one.device, one.action.value) not in self._told:
                log.info(
                    "remedy proposed",
                    node=one.node,
                    device=one.device,
                    action=one.action,
                    reason=one.reason,
                    state=state_of(one),
                )
        self._told = found


def state_of(proposal: Proposal) -> str:
    """Return one of `STATES`: advice to people, allowed now, too young a verdict, or held back by the breaker."""
    if proposal.action not in DISRUPTIVE:
        return "advice"
    if proposal.held.startswith("circuit breaker"):
        return "breaker"
    return "young" if proposal.held.startswith("the verdict") else "allowed"

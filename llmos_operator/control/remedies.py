"""Looks at the fleet every few seconds: what the health policy asks for, what may be done of it, what the breaker holds.

`telemetry.remediation` decides; here its answer becomes figures, log lines, Events and what the console shows, so that a
fleet can be watched before anybody lets the policy touch it. With mode Act `control.treating` carries it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmos_operator.api.conditions import Reason
from llmos_operator.control.treating import gpu_node
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.repair import repairs
from llmos_operator.telemetry.remediation import DISRUPTIVE, Limits, plan, sick_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.cluster.events import EventRecorder
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.treating import Treating
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.telemetry.remediation import Proposal, SickDevice

log = logger(__name__)

Mode = Literal["Off", "DryRun", "Act"]
STATES = ("advice", "allowed", "young", "breaker", "treated")


class Remedies:
    """`proposals` is what the last look found, the most urgent first."""

    def __init__(
        self,
        metrics: OperatorMetrics,
        policy: Policy | None = None,
        *,
        mode: Mode = "DryRun",
        treating: Treating | None = None,
        recorder: EventRecorder | None = None,
    ) -> None:
        """Without ``treating`` nothing is done, without ``recorder`` no Event tells what the breaker holds back."""
        self.proposals: tuple[Proposal, ...] = ()
        self._metrics = metrics
        self._policy = policy or Policy()
        self._mode = mode
        self._treating = treating
        self._recorder = recorder
        self._limits = Limits(dry_run=mode != "Act")
        # node, device, reason -> when it was first seen so
        self._since: dict[tuple[str, str, str], float] = {}
        self._told: set[tuple[str, str, str]] = set()  # node, device, action

    def look(self, snapshot: Snapshot, now: float) -> None:
        """Take the verdicts as they are; ``now`` in epoch seconds."""
        nodes = sum(state.gpu is not None for state in snapshot.nodes.values())
        sick = list(self._sick(snapshot, now))
        self._since = {(one.node, one.uuid, one.reason): one.since for one in sick}
        if self._mode != "Off":
            self.proposals = plan(sick, nodes, snapshot.disturbed, self._policy.breaker, self._limits, now)
        self._show()
        self._tell()
        self._tell_held(snapshot, now)
        if self._treating is not None:
            self._treating.turn(snapshot, self.proposals, now)

    def _sick(self, snapshot: Snapshot, now: float) -> Iterator[SickDevice]:
        for state in snapshot.nodes.values():
            yield from sick_on(state, lambda *found: self._since.get(found, now))

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

    def _tell_held(self, snapshot: Snapshot, now: float) -> None:
        """Say on which nodes nothing is done because the circuit breaker holds."""
        found = repairs(snapshot, self._policy, now)
        held = {
            name: f"{count} replicas stay on broken devices; {found.says}"
            for name, count in found.held.items()
        }
        for one in self.proposals:
            if state_of(one) == "breaker":
                held.setdefault(one.node, f"{one.action} for {one.reason} is not done; {one.held}")
        breaker = self._policy.breaker
        self._metrics.breaker_held.set(len(held))
        self._metrics.breaker_acted.set(len(breaker.recent(snapshot.disturbed, now)))
        for name, note in sorted(held.items()):
            if self._recorder is not None:
                self._recorder.record(gpu_node(name), "Warning", Reason.REMEDY_HELD, note)


def state_of(proposal: Proposal) -> str:
    """Return one of `STATES`: advice to people, allowed now, too young a verdict, held back, or under treatment."""
    if proposal.action not in DISRUPTIVE:
        return "advice"
    if proposal.held.startswith("circuit breaker"):
        return "breaker"
    if proposal.held.startswith("under"):
        return "treated"
    return "young" if proposal.held.startswith("the verdict") else "allowed"

"""What should be done about sick devices across a fleet, and how much of it at once. Pure; nothing here acts.

Verdicts already keep new work away. This decides what is done beyond that: which devices to quarantine, drain and reset,
which nodes to reboot. The circuit breaker (`state.breaker`) bounds it together with what the planner takes off broken
devices. What it holds back is told with the reason, and a dry run says everything and permits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.telemetry import Verdict
from llmos_operator.state.care import NODE
from llmos_operator.telemetry.policy import Action, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from llmos_operator.state.breaker import Breaker
    from llmos_operator.state.ledger import NodeState

# Actions that disturb work or a node. The others only advise.
DISRUPTIVE: Final = frozenset({Action.DRAIN_AND_RESET, Action.EVICT_AND_RESET, Action.REBOOT_NODE})
_URGENCY: Final = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True, slots=True)
class SickDevice:
    """A device with a finding.

    `since` is when its verdict changed, in seconds; `busy` whether workloads are on it; `treated` the targets of its node
    that are being treated; `gpu` the GPU a MIG instance is cut from, which is reset as a whole or not at all.
    """

    node: str
    uuid: str
    verdict: Verdict
    reason: str
    since: float
    busy: bool = False
    treated: frozenset[str] = frozenset()
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """When something may be done. `dry_run` is the default: a fleet is watched before it is touched."""

    settle_seconds: float = 5.0  # a verdict has to stand this long before anything is done for it
    dry_run: bool = True


@dataclass(frozen=True, slots=True)
class Proposal:
    """One thing to do. `device` is "" for the whole node; `held` is "" when it may be done now, else why not."""

    node: str
    device: str
    action: Action
    reason: str
    held: str = ""

    @property
    def target(self) -> str:
        """The target of its treatment."""
        return self.device or NODE


def plan(
    sick: Iterable[SickDevice],
    nodes: int,
    disturbed: Mapping[str, float],
    breaker: Breaker,
    limits: Limits,
    now: float,
) -> tuple[Proposal, ...]:
    """Return what to do, most urgent first.

    ``nodes`` is the size of the fleet, ``disturbed`` when each node was acted on last. A node that is acted on already
    costs the breaker nothing more, so all its devices are dealt with together.
    """
    acted = set(breaker.recent(disturbed, now))
    proposals: list[Proposal] = []
    for proposal, device in _wanted(sick):
        if proposal.action not in DISRUPTIVE:
            proposals.append(proposal)
            continue
        if proposal.target in device.treated or NODE in device.treated:
            held = "under treatment"
        elif now - device.since < limits.settle_seconds:
            held = f"the verdict is younger than {limits.settle_seconds:.0f} s"
        elif not breaker.admits(proposal.node, acted, nodes):
            held = breaker.says(len(acted), nodes)
        else:
            held = "dry run" if limits.dry_run else ""
            acted.add(proposal.node)  # in a dry run, too: it tells what the breaker would hold back
        proposals.append(replace(proposal, held=held))
    return tuple(proposals)


def sick_on(state: NodeState, since: Callable[[str, str, str], float]) -> Iterator[SickDevice]:
    """Yield a node's devices with a finding; ``since`` tells from node, UUID and reason since when, in epoch seconds."""
    if state.gpu is None:
        return
    treated = frozenset(one.target for one in state.gpu.care.treatments if one.quarantined)
    for one in state.devices:
        if one.verdict in {Verdict.UNHEALTHY, Verdict.DEGRADED}:
            at = since(state.name, one.uuid, one.reason)
            busy, gpu = one.claims > 0, one.device.parent
            yield SickDevice(state.name, one.uuid, one.verdict, one.reason, at, busy, treated, gpu)


def action_of(reason: str) -> Action | None:
    """Return what a finding asks for; None for a word of another version."""
    rule = rule_of(reason)
    return rule.action if rule is not None else None


def _wanted(sick: Iterable[SickDevice]) -> list[tuple[Proposal, SickDevice]]:
    """Return one proposal a device, and one a node for what concerns the node; most urgent and oldest first."""
    wanted: dict[tuple[str, str], tuple[Proposal, SickDevice]] = {}
    for device in sorted(sick, key=lambda d: (d.since, d.node, d.uuid)):
        action = action_of(device.reason)
        if action is None or device.verdict not in {Verdict.UNHEALTHY, Verdict.DEGRADED}:
            continue
        if action is Action.RESET_WHEN_IDLE and device.busy:
            action = Action.WATCH
        if action in {Action.NONE, Action.WATCH}:
            continue
        whole = device.gpu if action in DISRUPTIVE else ""
        target = "" if action is Action.REBOOT_NODE else whole or device.uuid
        proposal = Proposal(device.node, target, action, device.reason)
        wanted.setdefault((device.node, target), (proposal, device))
    return sorted(
        wanted.values(),
        key=lambda pair: (-_URGENCY[pair[0].action], pair[1].since, pair[0].node, pair[0].device),
    )

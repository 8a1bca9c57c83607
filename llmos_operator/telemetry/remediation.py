"""What should be done about sick devices across a fleet, and how much of it at once. Pure; nothing here acts.

Verdicts already keep new work away. This decides about work that is there: which devices to drain, evict or reset, which
nodes to reboot. A circuit breaker bounds it, because a bad rule, a bad driver or a bad sensor can make a whole fleet look
sick within minutes: however many nodes ask, at most `Limits.share` of them (at least one) are disturbed in any
`Limits.window_seconds`. What the breaker holds back is told with the reason, and a dry run says everything and permits
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.policy import Action, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Actions that disturb work or a node. The others only advise.
DISRUPTIVE: Final = frozenset({Action.DRAIN_AND_RESET, Action.EVICT_AND_RESET, Action.REBOOT_NODE})
_URGENCY: Final = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True, slots=True)
class SickDevice:
    """A device with a finding. `since` is when its verdict changed, in seconds; `busy` whether workloads are on it."""

    node: str
    uuid: str
    verdict: Verdict
    reason: str
    since: float
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The circuit breaker. `dry_run` is the default: a fleet is watched before it is touched."""

    share: float = 0.10  # of the nodes
    window_seconds: float = 600.0
    settle_seconds: float = 5.0  # a verdict has to stand this long before work is disturbed for it
    dry_run: bool = True


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A node that was permitted to be disturbed, and when."""

    node: str
    at: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """One thing to do. `device` is "" for the whole node; `held` is "" when it may be done now, else why not."""

    node: str
    device: str
    action: Action
    reason: str
    held: str = ""


def allowance(nodes: int, limits: Limits) -> int:
    """Return how many nodes may be disturbed within the window: the share, rounded down, and at least one."""
    return max(1, int(nodes * limits.share)) if nodes else 0


def plan(
    sick: Iterable[SickDevice], nodes: int, history: Sequence[Disturbance], limits: Limits, now: float
) -> tuple[tuple[Proposal, ...], tuple[Disturbance, ...]]:
    """Return what to do, most urgent first, and the history to pass in next time.

    ``nodes`` is the size of the fleet. A node that is being disturbed already costs the breaker nothing more, so all
    its devices are dealt with together. In a dry run nothing enters the history.
    """
    recent = tuple(past for past in history if now - past.at < limits.window_seconds)
    disturbed = {past.node for past in recent}
    room = allowance(nodes, limits)
    permitted: list[Disturbance] = []
    proposals: list[Proposal] = []
    for proposal, device in _wanted(sick):
        held = ""
        if proposal.action in DISRUPTIVE:
            if now - device.since < limits.settle_seconds:
                held = f"the verdict is younger than {limits.settle_seconds:.0f} s"
            elif proposal.node not in disturbed and len(disturbed) >= room:
                held = (
                    f"circuit breaker: {len(disturbed)} of {nodes} nodes were disturbed within "
                    f"{limits.window_seconds:.0f} s, {room} are allowed"
                )
            elif limits.dry_run:
                held = "dry run"
            # A dry run counts within its own call, so that it tells what the breaker would hold back.
            if held in {"", "dry run"} and proposal.node not in disturbed:
                disturbed.add(proposal.node)
                permitted.append(Disturbance(proposal.node, now))
        proposals.append(Proposal(proposal.node, proposal.device, proposal.action, proposal.reason, held))
    return tuple(proposals), recent if limits.dry_run else (*recent, *permitted)


def _wanted(sick: Iterable[SickDevice]) -> list[tuple[Proposal, SickDevice]]:
    """Return one proposal a device, and one a node for what concerns the node; most urgent and oldest first."""
    wanted: dict[tuple[str, str], tuple[Proposal, SickDevice]] = {}
    for device in sorted(sick, key=lambda d: (d.since, d.node, d.uuid)):
        rule = rule_of(device.reason)
        if rule is None or device.verdict not in {Verdict.UNHEALTHY, Verdict.DEGRADED}:
            continue
        action = rule.action
        if action is Action.RESET_WHEN_IDLE and device.busy:
            action = Action.WATCH
        if action in {Action.NONE, Action.WATCH}:
            continue
        target = "" if action is Action.REBOOT_NODE else device.uuid
        proposal = Proposal(device.node, target, action, device.reason)
        wanted.setdefault((device.node, target), (proposal, device))
    return sorted(
        wanted.values(),
        key=lambda pair: (-_URGENCY[pair[0].action], pair[1].since, pair[0].node, pair[0].device),
    )

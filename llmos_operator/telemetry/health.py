"""From samples and events to a verdict: a pure fold, one state per device.

    state' = fold(state, observation, now)

Findings come in two kinds. Those a sample shows (a lost device, a pending remapping, heat) last as long as samples show
them; those an event brings (an XID) are a moment. Both become causes, and a cause stays active until its finding has
been absent for its clean time *and* the device has answered a sample cleanly since: the way back is time plus probe.
Relapses double the clean time, so a flapping device changes its verdict less and less often. Causes are kept for a week
after they cleared, because a second failure of some kinds means another card and not another reset.

Times are seconds on one axis that must not jump (the agent's own, see `node_health`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry import policy
from llmos_operator.telemetry.policy import RULES, SEVERITY, Action, Reason
from llmos_operator.telemetry.signals import Signal, is_application_fault, signals_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.telemetry.sample import Counters, DeviceEvent, Hang, Sample

HITS_KEPT: Final = 10  # the largest `window` of the rules


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known about a device in one round. ``owners`` are the pods (or workloads) on it."""

    sample: Sample | None = None
    events: tuple[DeviceEvent, ...] = ()
    hang: Hang | None = None
    owners: frozenset[str] = frozenset()
    stale: bool = False  # no sample for three intervals and nothing hangs


@dataclass(frozen=True, slots=True)
class Cause:
    """A finding over time. ``hits`` tells for the last observations, newest last, whether they showed it."""

    reason: Reason
    detail: str
    last: float  # when it was seen last
    since: float  # when it became active last
    hits: tuple[bool, ...] = ()
    active: bool = False
    full: bool = False  # has its full weight; stays so until it clears
    cleared: float | None = None
    relapses: int = 0
    repeated: bool = False  # came back within a week: does not clear by itself any more

    @property
    def action(self) -> Action:
        """What should be done about it."""
        return Action.REPLACE if self.repeated else RULES[self.reason].action

    @property
    def often(self) -> bool:
        """Whether it was seen often enough to have its full weight."""
        return sum(self.hits[-RULES[self.reason].window :]) >= RULES[self.reason].needs

    @property
    def weight(self) -> Verdict:
        """The verdict it asks for while it is active."""
        rule = RULES[self.reason]
        return rule.verdict if self.full or rule.early is None else rule.early

    @property
    def clean_seconds(self) -> float:
        """How long its finding has to be absent."""
        seconds = RULES[self.reason].clean_seconds
        doubled = seconds * float(1 << min(self.relapses, 16))
        return max(seconds, min(doubled, policy.CLEAN_LIMIT))


@dataclass(frozen=True, slots=True)
class Fault:
    """An application fault: when, and who was on the device then."""

    at: float
    owners: frozenset[str]


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """The state of the fold. ``since`` is when the verdict changed last."""

    verdict: Verdict = Verdict.UNKNOWN
    reason: Reason = Reason.NO_SAMPLES
    detail: str = "not sampled yet"
    since: float = 0.0
    causes: tuple[Cause, ...] = ()
    faults: tuple[Fault, ...] = ()
    counters: Counters | None = None  # of the last sample that had some
    answered: float | None = None  # when a sample came back clean last
    strength: tuple[tuple[Reason, Verdict], ...] = ()  # what the active causes weigh, worst first

    @property
    def action(self) -> Action:
        """The strongest action any active cause asks for."""
        order = list(Action)
        return max((c.action for c in self.causes if c.active), key=order.index, default=Action.NONE)

    @property
    def node(self) -> bool:
        """Whether an active cause puts the whole node in danger."""
        return any(cause.active and RULES[cause.reason].node for cause in self.causes)


def fold(state: DeviceHealth, seen: Observation, now: float) -> DeviceHealth:
    """Return the state after one observation."""
    signals = {s.reason: s for s in reversed(signals_of(seen.sample, state.counters, seen.events, seen.hang))}
    faults = _application_faults(state.faults, seen, now)
    if _is_suspect(faults):
        signals[Reason.SUSPECT] = _suspicion(faults)
    answered = now if seen.sample is not None and seen.sample.answered else state.answered
    # Without a sample nothing is known to be over; without this a wake-up by an event would dilute the windows.
    looked = seen.sample is not None
    causes = _causes(state.causes, signals, now, answered, looked=looked) if state.causes or signals else ()
    active = _by_weight(causes)
    verdict, reason, detail = _judge(active, stale=seen.stale, never=answered is None)
    # Built in one go and not with `replace`: this runs for each device and each round, nearly always for a healthy one.
    return DeviceHealth(
        verdict=verdict,
        reason=reason,
        detail=detail,
        since=now if verdict is not state.verdict else state.since,
        causes=causes,
        faults=faults,
        counters=(seen.sample.counters if seen.sample is not None else None) or state.counters,
        answered=answered,
        strength=tuple((cause.reason, cause.weight) for cause in active),
    )


def forget(state: DeviceHealth, now: float) -> DeviceHealth:
    """Return the state after a person said the device is repaired: no causes, no history."""
    return DeviceHealth(counters=state.counters, answered=state.answered, since=now, detail="cleared by hand")


def worst(first: DeviceHealth, second: DeviceHealth) -> DeviceHealth:
    """Return the worse of two states: a MIG instance is never better than its GPU."""
    return second if SEVERITY[second.verdict] > SEVERITY[first.verdict] else first


def _causes(
    known: Iterable[Cause], signals: dict[Reason, Signal], now: float, answered: float | None, *, looked: bool
) -> tuple[Cause, ...]:
    causes = {cause.reason: cause for cause in known}
    for reason in signals:
        causes.setdefault(reason, Cause(reason, "", last=now, since=now))
    stepped = (_step(c, signals.get(c.reason), now, answered, looked=looked) for c in causes.values())
    return tuple(
        cause
        for cause in stepped
        if cause.active or any(cause.hits) or now - (cause.cleared or cause.last) < policy.REPEAT_SECONDS
    )


def _step(cause: Cause, signal: Signal | None, now: float, answered: float | None, *, looked: bool) -> Cause:
    if looked or signal is not None:
        cause = replace(cause, hits=(*cause.hits, signal is not None)[-HITS_KEPT:])
    if signal is not None:
        cause = replace(cause, last=now, detail=signal.detail)
        cause = cause if cause.active else _activate(cause, now)
        return replace(cause, full=cause.full or cause.often)
    clean = now - cause.last >= cause.clean_seconds
    probed = answered is not None and answered > cause.last
    if cause.active and clean and probed and not cause.repeated:
        return replace(cause, active=False, full=False, cleared=now)
    return cause


def _activate(cause: Cause, now: float) -> Cause:
    rule = RULES[cause.reason]
    if not cause.often and rule.early is None:
        return cause
    away = now - cause.cleared if cause.cleared is not None else policy.REPEAT_SECONDS
    return replace(
        cause,
        active=True,
        since=now,
        relapses=cause.relapses + 1 if away < policy.FLAP_SECONDS else 0,
        repeated=cause.repeated or (rule.repeats and away < policy.REPEAT_SECONDS),
    )


def _by_weight(causes: tuple[Cause, ...]) -> list[Cause]:
    """Return the active causes: the worst first, of those the oldest."""
    active = [cause for cause in causes if cause.active]
    active.sort(key=lambda cause: (-SEVERITY[cause.weight], cause.since, cause.reason))
    return active


def _judge(active: list[Cause], *, stale: bool, never: bool) -> tuple[Verdict, Reason, str]:
    """Return verdict, reason and detail: what the first active cause says. ``never``: no sample ever came back clean."""
    verdict, reason, detail = Verdict.HEALTHY, Reason.AS_EXPECTED, ""
    if active:
        verdict, reason, detail = active[0].weight, active[0].reason, active[0].detail
        if active[0].repeated:
            detail += "; second time within a week"
    if (stale or (never and not active)) and SEVERITY[verdict] < SEVERITY[Verdict.UNKNOWN]:
        verdict, reason = Verdict.UNKNOWN, Reason.NO_SAMPLES
        detail = "no sample for three intervals" if stale else "not sampled yet"
    return verdict, reason, detail


def _application_faults(faults: tuple[Fault, ...], seen: Observation, now: float) -> tuple[Fault, ...]:
    """Add this round's application faults and drop old ones.

    One process faulting again and again is one fault: what counts is different workloads hitting the same device.
    """
    if not faults and not seen.events:
        return ()
    kept = tuple(fault for fault in faults if now - fault.at < policy.SUSPECT_SECONDS)
    if not seen.owners or not any(is_application_fault(event) for event in seen.events):
        return kept
    if any(fault.owners & seen.owners for fault in kept):
        return kept
    return (*kept, Fault(now, seen.owners))[-policy.SUSPECT_WORKLOADS :]


def _is_suspect(faults: tuple[Fault, ...]) -> bool:
    return len(faults) >= policy.SUSPECT_WORKLOADS


def _suspicion(faults: tuple[Fault, ...]) -> Signal:
    return Signal(Reason.SUSPECT, f"application faults of {len(faults)} different workloads within a day")

r"""The course of a treatment: quarantine, drain, reset, wait, probation, release. Pure.

    Draining -> Resetting -> Waiting -> Probation -> Released
        \__________________/      \        /
         (no reset Job)            sick again

The way back is time and a probe: the agent's own verdict is healthy again (its findings were absent for their clean time
and the device has answered a sample since), the agent is heard, and so it stays for the probation. A target that falls ill
again within a day of its release has a probation twice as long each time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.telemetry import Verdict
from llmos_operator.state.care import NODE, Care, Phase, Treatment
from llmos_operator.telemetry.policy import DAY
from llmos_operator.telemetry.remediation import DISRUPTIVE, action_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.state.ledger import DeviceState, NodeState

_MOST_TIMES: Final = 16
_MEMORY: Final = DAY  # for which a released target is remembered


@dataclass(frozen=True, slots=True)
class Course:
    """What an administrator decides about treatments. Times are seconds."""

    clean: float = 300.0  # of the first probation
    longest: float = DAY  # no probation is longer
    resets: int = 3  # within a day, of one target
    hook: bool = False  # whether a Job can reset things

    def probation(self, times: int) -> float:
        """Return how long a target must stay healthy that fell ill again so many times."""
        return max(self.clean, min(self.longest, self.clean * float(1 << min(times, _MOST_TIMES))))


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a step is decided on beside the node's state."""

    now: float  # epoch seconds
    fresh: bool = True  # the node's agent was heard lately
    may_act: bool = True  # the circuit breaker admits the node, and it is not a dry run
    ended: frozenset[str] = frozenset()  # targets whose reset Job has ended, however it went


def begin(state: NodeState, target: str, action: str, reason: str, now: float) -> Care:
    """Return the care of a node with a treatment of `target` begun."""
    assert state.gpu is not None  # noqa: S101 - targets are devices of GPUNodes
    care = state.gpu.care
    before = care.of(target)
    again = before is not None and now - before.since < _MEMORY
    times = min(before.times + 1, _MOST_TIMES) if before is not None and again else 0
    cordoned = care.cordoned or (target == NODE and state.node is not None and not state.node.unschedulable)
    started = Treatment(target, action, reason, Phase.DRAINING, now, times)
    return replace(care, cordoned=cordoned, treatments=_with(care, started))


def advance(state: NodeState, course: Course, seen: Circumstances) -> Care:
    """Return the care of a node after a look at it: each treatment goes one phase on, or stays."""
    if state.gpu is None or not state.gpu.care.treatments:
        return state.gpu.care if state.gpu is not None else Care()
    stepped = (_step(one, state, course, seen) for one in state.gpu.care.treatments)
    return replace(state.gpu.care, treatments=tuple(one for one in stepped if one is not None))


def acts(before: Care, after: Care) -> bool:
    """Return whether something is done to the node between the two: the circuit breaker has to admit it."""
    phases = {one.target: one.phase for one in before.treatments}
    acting = {Phase.DRAINING, Phase.RESETTING}
    return any(one.phase in acting and phases.get(one.target) is not one.phase for one in after.treatments)


def _step(one: Treatment, state: NodeState, course: Course, seen: Circumstances) -> Treatment | None:
    """Return a treatment after a look; None when it is forgotten."""
    if one.phase is not Phase.RESETTING:  # the name of its Job is made of the time
        one = replace(one, since=min(one.since, seen.now))  # a clock that was set back lengthens nothing
    if one.phase is Phase.RELEASED:
        return one if seen.now - one.since < _MEMORY else None
    if one.phase is Phase.PROBATION and _sick(state, one.target):
        again = replace(one, times=min(one.times + 1, _MOST_TIMES))
        return _to(again, Phase.DRAINING if seen.may_act else Phase.WAITING, seen)
    phase = _next(one, state, course, seen)
    return one if phase is one.phase else _to(one, phase, seen)


def _next(one: Treatment, state: NodeState, course: Course, seen: Circumstances) -> Phase:
    healthy = seen.fresh and _healthy(state, one.target)
    if one.phase is Phase.RESETTING:
        return Phase.WAITING if one.target in seen.ended else one.phase
    if one.phase is Phase.PROBATION:
        done = seen.now - one.since >= course.probation(one.times)
        return (Phase.RELEASED if done else one.phase) if healthy else Phase.WAITING
    if healthy:
        return Phase.PROBATION
    if one.phase is Phase.DRAINING and _empty(state, one.target):
        if not course.hook or one.times >= course.resets:
            return Phase.WAITING
        return Phase.RESETTING if seen.may_act else one.phase
    return one.phase


def _to(one: Treatment, phase: Phase, seen: Circumstances) -> Treatment:
    return replace(one, phase=phase, since=seen.now)


def _with(care: Care, started: Treatment) -> tuple[Treatment, ...]:
    others = [one for one in care.treatments if one.target != started.target]
    return tuple(sorted([*others, started], key=lambda one: one.target))


def _concerned(state: NodeState, target: str) -> Iterator[DeviceState]:
    return (one for one in state.devices if target in {NODE, one.uuid, one.device.parent})


def _empty(state: NodeState, target: str) -> bool:
    """Return whether nothing runs there, of anybody, nor can come: whose GPU a foreign pod has is not known."""
    if state.foreign_gpus:
        return False
    if target == NODE:
        care = state.gpu.care if state.gpu is not None else Care()
        if care.cordoned and state.node is not None and not state.node.unschedulable:
            return False  # others could still come
        return not any(True for _ in state.claims())
    return not any(one.claims for one in _concerned(state, target))


def _healthy(state: NodeState, target: str) -> bool:
    devices = list(_concerned(state, target))
    return bool(devices) and not any(one.verdict is Verdict.UNKNOWN or _needs(one, target) for one in devices)


def _sick(state: NodeState, target: str) -> bool:
    return any(_needs(one, target) for one in _concerned(state, target))


def _needs(one: DeviceState, target: str) -> bool:
    """Return whether a device is in a state that its own treatment, or that of its node, is for."""
    if one.verdict is Verdict.UNHEALTHY:
        return target != NODE or action_of(one.reason) in DISRUPTIVE or action_of(one.reason) is None
    return False

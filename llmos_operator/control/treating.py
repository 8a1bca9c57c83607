"""Carries the health policy out: begins treatments the circuit breaker admits, leads each through its phases.

What is decided goes into the store first (quarantine counts for the next plan at once), is written to the GPUNode, and only
then done. Every look compares what should be with what is, so that an operator that was restarted in between goes on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.events import Subject
from llmos_operator.observability.logging import logger
from llmos_operator.state.care import NODE, Phase
from llmos_operator.telemetry.remediation import DISRUPTIVE
from llmos_operator.telemetry.treatment import Circumstances, acts, advance, begin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.actuators.nursing import Nursing
    from llmos_operator.cluster.events import EventRecorder, EventType
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.care import Care, Treatment
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store
    from llmos_operator.telemetry.remediation import Proposal
    from llmos_operator.telemetry.treatment import Course

log = logger(__name__)

_TOLD: Final[dict[Phase, tuple[EventType, Reason, str]]] = {
    Phase.DRAINING: ("Warning", Reason.QUARANTINED, "takes no new work, what it runs is asked to leave"),
    Phase.RESETTING: ("Normal", Reason.RESETTING, "is empty, the reset Job runs"),
    Phase.WAITING: ("Warning", Reason.WAITING_FOR_REPAIR, "is empty and not healthy: a person has to look"),
    Phase.PROBATION: ("Normal", Reason.ON_PROBATION, "is healthy again, not yet for long enough"),
    Phase.RELEASED: ("Normal", Reason.RELEASED, "takes work again"),
}


class Treating:
    """Turns proposals into treatments. Call `turn` from the loop's thread, only while this process may act."""

    def __init__(
        self,
        store: Store,
        nursing: Nursing,
        recorder: EventRecorder,
        metrics: OperatorMetrics,
        policy: Policy,
        course: Course,
        *,
        act: bool,
    ) -> None:
        """``act``: whether anything may begin. What has begun is led to its end either way."""
        self._store = store
        self._nursing = nursing
        self._recorder = recorder
        self._metrics = metrics
        self._policy = policy
        self._course = course
        self._act = act
        self._ended: dict[tuple[str, str], float] = {}  # node, target -> since of the phase whose Job ended

    def turn(self, snapshot: Snapshot, proposals: Iterable[Proposal], now: float) -> None:
        """Take one look at everything that is treated or may be."""
        now = float(int(now))  # as the API keeps it: a restart must not make another Job for the same round
        for one in proposals:
            if self._act and one.action in DISRUPTIVE and not one.held:
                self._begin(one, now)
        phases: Counter[Phase] = Counter()
        for name, care in self._store.cares():
            state = self._store.node(name)
            if care.treatments and state is not None and state.gpu is not None:
                self._advance(state, snapshot, now)
                self._nurse(name)
                phases.update(one.phase for one in (self._store.care(name) or care).treatments)
        for phase in Phase:
            self._metrics.treatments.labels(phase.value).set(phases[phase])
        self._nursing.write_down()

    def reset_ended(self, node: str, one: Treatment, failure: str) -> None:
        """Take the end of a reset Job and why it failed, "" if it did not. The verdict tells whether it helped."""
        self._ended[node, one.target] = one.since
        if failure:
            self._tell(node, one, "Warning", Reason.RESET_FAILED, failure)

    def _begin(self, proposal: Proposal, now: float) -> None:
        state = self._store.node(proposal.node)
        if state is None or state.gpu is None:
            return
        if not self._store.disturb(proposal.node, now, self._policy.breaker):
            return
        state = self._store.node(proposal.node) or state
        care = begin(state, proposal.target, proposal.action.value, proposal.reason, now)
        self._change(state, care)

    def _advance(self, state: NodeState, snapshot: Snapshot, now: float) -> None:
        seen = Circumstances(
            now,
            fresh=now - snapshot.heard.get(state.name, 0.0) <= self._policy.stale_seconds,
            may_act=self._act and self._admitted(state.name, now),
            ended=frozenset(
                one.target
                for one in self._care(state).treatments
                if self._ended.get((state.name, one.target)) == one.since
            ),
        )
        care = advance(state, self._course, seen)
        if acts(self._care(state), care) and not self._store.disturb(state.name, now, self._policy.breaker):
            return
        held = self._store.care(state.name)
        if held is not None:  # the breaker may just have noted the time
            care = replace(care, disturbed_at=held.disturbed_at)
        self._change(state, care)

    def _nurse(self, name: str) -> None:
        """Do what the phases ask for and is not done yet."""
        state, care = self._store.node(name), self._store.care(name)
        if state is None or care is None:
            return
        for one in care.treatments:
            if one.phase is Phase.RESETTING and self._act:
                self._nursing.reset(name, one)
        if care.cordoned and not self._act:
            self._leave_cordon(state)
        whole = care.of(NODE)
        off = state.node is not None and state.node.unschedulable
        if whole is not None and whole.quarantined:
            # Later than this, whoever makes the node schedulable by hand means it.
            wanted = whole.phase in {Phase.DRAINING, Phase.RESETTING} and care.cordoned
            if wanted and not off and self._act:
                self._nursing.cordon(name, on=True)
        elif care.cordoned and off and self._act:
            self._nursing.cordon(name, on=False)
        elif care.cordoned and not off:
            self._store.set_care(name, replace(care, cordoned=False))

    def _leave_cordon(self, state: NodeState) -> None:
        """Say that a cordon of ours stays: only mode Act has the right to lift it."""
        if state.node is not None and state.node.unschedulable:
            note = (
                f"node {state.name} is cordoned by this operator, which may not lift it: health.mode is not Act any more; "
                f"kubectl uncordon {state.name}"
            )
            self._recorder.record(gpu_node(state.name), "Warning", Reason.CORDON_LEFT, note)

    def _admitted(self, node: str, now: float) -> bool:
        snapshot = self._store.snapshot()
        recent = self._policy.breaker.recent(snapshot.disturbed, now)
        nodes = sum(state.gpu is not None for state in snapshot.nodes.values())
        return self._policy.breaker.admits(node, recent, nodes)

    @staticmethod
    def _care(state: NodeState) -> Care:
        assert state.gpu is not None  # noqa: S101 - only nodes with devices are treated
        return state.gpu.care

    def _change(self, state: NodeState, care: Care) -> None:
        before = {one.target: one.phase for one in self._care(state).treatments}
        if not self._store.set_care(state.name, care):
            return
        for one in care.treatments:
            if before.get(one.target) is not one.phase:
                event_type, reason, text = _TOLD[one.phase]
                self._tell(state.name, one, event_type, reason, text)
                log.info(
                    "treatment",
                    node=state.name,
                    target=one.target,
                    phase=one.phase,
                    reason=one.reason,
                    times=one.times,
                )

    def _tell(self, node: str, one: Treatment, event_type: EventType, reason: Reason, text: str) -> None:
        what = f"node {node}" if one.target == NODE else _device(self._store.node(node), one.target)
        note = f"{what} ({one.reason}, {one.action}) {text}"
        self._recorder.record(gpu_node(node), event_type, reason, note, key=f"{one.target} {one.since:.0f}")


def _device(state: NodeState | None, target: str) -> str:
    """Return what a treatment is of, in words: a GPU that is cut up is named with its MIG instances."""
    devices = [one.device for one in state.devices] if state is not None else []
    parts = [one for one in devices if one.parent == target]
    if not parts:
        return f"device {target}"
    told = ", ".join(f"{one.profile or 'MIG'} {one.uuid}" for one in parts)
    return f"GPU {target} with its MIG instances {told}"


def gpu_node(name: str) -> Subject:
    """Return the subject of an Event about a node's devices."""
    return Subject(names.API_VERSION, "GPUNode", name)

"""A fleet through weeks of failures in virtual time, with the real decisions: verdicts, repairs, treatments, placement.

What runs is `sim.fleet`'s. Whatever happens is drawn beforehand (`sim.failures`). Time is spent where nobody computes: between the end of a pod and the readiness of
its successor, and as work since the last checkpoint; slow devices count half. All else, how pods end and start, is an assumption
named here.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy, ScoreKind
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.sim.failures import DAY, Effect, Fault, Noise, draw
from llmos_operator.sim.fleet import GPUS, START, Fleet, node_named
from llmos_operator.sim.ward import Ward
from llmos_operator.sim.whatif import vacate
from llmos_operator.state.care import Phase
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.store import Store
from llmos_operator.state.types import Kind, PodPhase
from llmos_operator.telemetry.policy import LOST_REASONS
from llmos_operator.telemetry.remediation import DISRUPTIVE, Limits, sick_on
from llmos_operator.telemetry.remediation import plan as propose
from llmos_operator.telemetry.treatment import Circumstances, Course, acts, advance, begin

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.plan import Evict
    from llmos_operator.state.types import Pod
    from llmos_operator.telemetry.remediation import SickDevice

LOAD: Final = 120.0  # seconds from the creation of a pod until it computes
GRACE: Final = 5.0  # seconds a pod that is asked to leave takes
CHECKPOINT: Final = 600.0  # seconds between checkpoints of jobs; services lose no work
LOOK: Final = 60.0  # seconds between looks at what is sick
QUIET: Final = 2 * DAY  # after the last fault, for everything to come back


@dataclass(slots=True)
class Outcome:
    """What came of it. Times are GPU seconds unless they say otherwise."""

    faults: int = 0
    noise: int = 0
    evictions: int = 0
    false_evictions: int = 0  # of work on devices and nodes that had no fault
    treatments: int = 0
    released: int = 0
    swaps: int = 0
    held: int = 0  # evictions the circuit breaker did not admit at once
    most_acted: int = 0  # nodes that counted for the breaker at once
    lost_workloads: int = 0  # without all their replicas at the end
    longest_wait: float = 0.0  # seconds a pod's place stayed empty
    wanted: float = 0.0
    down: float = 0.0
    redone: float = 0.0
    slowed: float = 0.0
    history: list[str] = field(default_factory=list)

    @property
    def effective(self) -> float:
        """The part of the wanted GPU time in which something useful was computed."""
        return 1.0 - (self.down + self.redone + self.slowed) / self.wanted if self.wanted else 1.0


class Month:
    """One run. The same fleet gives the same history."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.outcome = Outcome()
        self.store = Store()
        self.policy = Policy(require_queue=False, score=ScoreKind.BEST_FIT, lost_reasons=LOST_REASONS)
        self.course = Course(hook=True)
        self.ward = Ward()
        self._rng = random.Random(fleet.seed)  # noqa: S311 - a simulation
        self._table = NodeTable()
        self._now = START
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._planned = -1
        self._down: dict[str, float] = {}  # pod -> since when its place computes nothing
        self._width: dict[str, int] = {}  # pod -> GPUs
        self._unreachable: dict[str, float] = {}  # node -> until when
        self._maintained: set[str] = set()
        self._treated: set[str] = set()
        self._looking = False
        self._nodes = fleet.gpus // GPUS
        self._touched: set[str] = set()  # nodes with a fault, ever
        self._since: dict[
            tuple[str, str, str], float
        ] = {}  # node, device, reason -> when it was first seen so

    def run(self) -> Outcome:
        """Return what came of it."""
        for name in self.fleet.names():
            self._add_node(name)
        for workload in self.fleet.work():
            self.store.apply_workload(workload)
        for kind in Kind:
            self.store.mark_synced(kind)
        self._decide()
        self._down.clear()  # the first starts are no outages
        for one in draw(self._rng, self.fleet.gpus, self.fleet.days, self.fleet.rate):
            at = START + one.at
            self._at(at, lambda one=one: self._happens(one))  # type: ignore[misc]
        end = START + self.fleet.days * DAY
        while self._queue and self._queue[0][0] <= end + QUIET:
            self._now, _, act = heapq.heappop(self._queue)
            act()
            self._decide()
        return self._settle(end)

    def _add_node(self, name: str) -> None:
        node, gpus = node_named(name)
        self.store.apply_node(node)
        self.store.apply_gpu_node(gpus)

    # -- what happens ----------------------------------------------------------------------------------------

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (at, next(self._order), act))

    def _happens(self, one: Fault | Noise) -> None:
        node = f"n{one.gpu // GPUS:04}" if one.gpu // GPUS < self.fleet.gpus // GPUS else "n0000"
        uuid = f"GPU-{node}-{one.gpu % GPUS}"
        state = self.store.node(node)
        if state is None or state.node is None:
            return  # it is gone already
        self._look_soon()
        if isinstance(one, Noise):
            self.outcome.noise += 1
            pod = self._on(node, uuid)
            self.ward.noise(uuid, one.xid, pod.key if pod is not None else "", self._now)
            self._publish(node)
            return
        self.outcome.faults += 1
        self._note(f"{one.kind.name} {uuid}")
        effect = one.kind.effect
        if effect is Effect.DEVICE:
            self._touched.add(node)
            self.ward.struck(uuid, one, self._now)
            self._fails(self._on(node, uuid), starts_again=True)
            self._publish(node)
        elif effect is Effect.EXIT:
            self._fails(self._on(node, uuid), starts_again=True)
        elif effect is Effect.SLOW:
            pod = self._on(node, uuid)
            gpus = sum(self._width[mate.key] for mate in self._mates(pod)) if pod is not None else 0
            self.outcome.slowed += 0.5 * one.seconds * gpus
        elif effect is Effect.UNREACHABLE:
            self._cut_off(node, one.seconds)
        elif effect is Effect.MAINTENANCE:
            self._maintain(node, one.seconds)
        else:
            self._lose(node, one.seconds)

    def _fails(self, pod: Pod | None, *, starts_again: bool) -> None:
        """Let a pod's process end, and with it what its gang computed since the last checkpoint."""
        if pod is None:
            return
        mates = self._mates(pod)
        for mate in mates:
            self._down.setdefault(mate.key, self._now)
            if not mate.key.startswith("default/service"):
                self.outcome.redone += self._rng.uniform(0.0, CHECKPOINT) * self._width[mate.key]
            if starts_again:
                self._at(self._now + LOAD, lambda mate=mate: self._computes(mate.key, mate.uid))  # type: ignore[misc]

    def _cut_off(self, node: str, seconds: float) -> None:
        until = self._now + seconds
        self._unreachable[node] = until
        self._set_node(node, ready=False)
        for pod in self._pods(node):
            for mate in self._mates(pod):
                self._down.setdefault(mate.key, self._now)

        def back() -> None:
            self._set_node(node, ready=True)
            for pod in self._pods(node):
                for mate in self._mates(pod):
                    self._computes(mate.key, mate.uid)

        self._at(until, back)

    def _maintain(self, node: str, seconds: float) -> None:
        self._maintained.add(node)
        self._set_node(node, unschedulable=True)
        for pod in self._pods(node):
            self._ends(pod)

        def back() -> None:
            self._maintained.discard(node)
            self._set_node(node, unschedulable=False)

        self._at(self._now + seconds, back)

    def _lose(self, node: str, seconds: float) -> None:
        self._touched.add(node)
        self.store.delete_node(node)
        self.store.delete_gpu_node(node)
        for uuid in [uuid for uuid in self.ward.patients if uuid.startswith(f"GPU-{node}-")]:
            del self.ward.patients[uuid]
        for pod in self._pods(node):
            self._ends(pod)
        self._at(self._now + seconds, lambda: self._add_node(node))

    # -- what agents and the operator do ---------------------------------------------------------------------

    def _look_soon(self) -> None:
        """See to it that there is a next look, for as long as something is sick or treated."""
        if not self._looking:
            self._looking = True
            self._at(self._now + LOOK, self._look)

    def _look(self) -> None:
        self._looking = False
        active = self.ward.active()
        for uuid in active:
            self.ward.look(uuid, self._now)
        sick = sorted({_node_of(uuid) for uuid in active})
        for node in sick:
            self._publish(node)
        self._treat(sick)
        for uuid in active:
            care = self.store.care(_node_of(uuid))
            if care is not None:
                self.ward.mend(uuid, care, self._now)
        if active or self._treated:
            self._look_soon()

    def _publish(self, node: str) -> None:
        state = self.store.node(node)
        if state is None or state.gpu is None:
            return
        devices = []
        for device in state.gpu.devices:
            patient = self.ward.patients.get(device.uuid)
            if patient is not None:
                health = patient.health
                device = replace(device, verdict=health.verdict, reason=health.reason.value)  # noqa: PLW2901
            devices.append(device)
        self.store.apply_gpu_node(replace(state.gpu, devices=tuple(devices)))

    def _treat(self, names: list[str]) -> None:
        breaker = self.policy.breaker
        disturbed = self.store.snapshot().disturbed
        sick = [one for name in names for one in self._sick(name)]
        for proposal in propose(sick, self._nodes, disturbed, breaker, Limits(dry_run=False), self._now):
            if proposal.action not in DISRUPTIVE or proposal.held:
                continue
            if self.store.disturb(proposal.node, self._now, breaker):
                state = self.store.node(proposal.node)
                assert state is not None  # noqa: S101 - it was looked at a moment ago
                care = begin(state, proposal.target, proposal.action.value, proposal.reason, self._now)
                self.store.set_care(proposal.node, replace(care, cordoned=False))
                self._treated.add(proposal.node)
                self.outcome.treatments += 1
                self._note(f"treats {proposal.node} {proposal.target}")
        for name in sorted(self._treated):
            self._advance(name)
        recent = breaker.recent(self.store.snapshot().disturbed, self._now)
        self.outcome.most_acted = max(self.outcome.most_acted, len(recent))

    def _sick(self, name: str) -> list[SickDevice]:
        state = self.store.node(name)
        if state is None:
            return []
        return list(sick_on(state, lambda *found: self._since.setdefault(found, self._now)))

    def _advance(self, name: str) -> None:
        state = self.store.node(name)
        if (
            state is None
            or state.gpu is None
            or not any(one.quarantined for one in state.gpu.care.treatments)
        ):
            self._treated.discard(name)
            return
        ended = frozenset(
            one.target
            for one in state.gpu.care.treatments
            if not any(
                patient.fault is not None
                for uuid, patient in self.ward.patients.items()
                if _node_of(uuid) == name and one.target in {uuid, "node"}
            )
        )
        fresh = self._unreachable.get(name, 0.0) < self._now
        recent = self.policy.breaker.recent(self.store.snapshot().disturbed, self._now)
        may_act = self.policy.breaker.admits(name, recent, self._nodes)
        care = advance(state, self.course, Circumstances(self._now, fresh, may_act, ended))
        if acts(state.gpu.care, care) and not self.store.disturb(name, self._now, self.policy.breaker):
            return
        before = {one.target: one.phase for one in state.gpu.care.treatments}
        for one in care.treatments:
            if one.phase is Phase.RELEASED and before.get(one.target) is not Phase.RELEASED:
                self.outcome.released += 1
                self._note(f"releases {name} {one.target}")
        self.store.set_care(name, replace(care, disturbed_at=(self.store.care(name) or care).disturbed_at))

    def _decide(self) -> None:
        for _ in range(20):
            if self.store.version == self._planned:
                return
            self._planned = self.store.version
            made = plan(self.store.snapshot(), self.policy, self._now, table=self._table)
            for evict in made.evictions:
                self._evict(evict)
            for bind in made.binds:
                self.store.assume(bind.claim)
                uid = f"{bind.claim.pod} {next(self._order)}"
                pod = replace(
                    assumed_pod(bind.claim), uid=uid, phase=PodPhase.BOUND, ready=True, started_at=self._now
                )
                self.store.apply_pod(pod)
                self._width[pod.key] = len(bind.claim.devices)
                since = self._down.setdefault(pod.key, self._now)
                self.outcome.longest_wait = max(self.outcome.longest_wait, self._now - since)
                self._at(self._now + LOAD, lambda pod=pod: self._computes(pod.key, pod.uid))  # type: ignore[misc]

    def _evict(self, evict: Evict) -> None:
        pod = self.store.pod(evict.pod)
        if pod is None or pod.phase is not PodPhase.BOUND:
            return
        if evict.reason is Reason.GPU_UNHEALTHY:
            if not self.store.disturb(evict.node, self._now, self.policy.breaker):
                self.outcome.held += 1
                return
            self.outcome.evictions += 1
            if evict.node not in self._touched:
                self.outcome.false_evictions += 1
        self._note(f"evicts {evict.pod} from {evict.node}")
        self._ends(pod)

    # -- pods ------------------------------------------------------------------------------------------------

    def _ends(self, pod: Pod) -> None:
        """Let a pod leave; the mates of its gang end with it."""
        if self.store.pod(pod.key) is None:
            return
        self._fails(pod, starts_again=False)
        for mate in self._mates(pod):
            if self.store.assume_evicted(mate.key, self._now + GRACE):
                self._at(self._now + GRACE, lambda mate=mate: vacate(self.store, mate.key, self._now))  # type: ignore[misc]

    def _computes(self, key: str, uid: str) -> None:
        pod = self.store.pod(key)
        if pod is None or pod.uid != uid or key not in self._down or pod.phase is not PodPhase.BOUND:
            return
        if self._unreachable.get(pod.node, 0.0) > self._now:
            return
        self.outcome.down += (self._now - self._down.pop(key)) * self._width[key]

    def _mates(self, pod: Pod) -> list[Pod]:
        if pod.claim is None:
            return []
        return [one for one in self.store.pods_of(pod.claim.workload_uid) if one.phase is PodPhase.BOUND]

    def _pods(self, node: str) -> list[Pod]:
        state = self.store.node(node)
        return (
            [pod for pod in state.pods.values() if pod.phase is PodPhase.BOUND] if state is not None else []
        )

    def _on(self, node: str, uuid: str) -> Pod | None:
        return next((pod for pod in self._pods(node) if pod.claim and uuid in pod.claim.devices), None)

    def _set_node(self, node: str, **changes: Any) -> None:
        state = self.store.node(node)
        if state is not None and state.node is not None:
            self.store.apply_node(replace(state.node, **changes))

    # -- books -----------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self.outcome.history.append(f"{self._now - START:.0f} {text}")

    def _settle(self, end: float) -> Outcome:
        snapshot = self.store.snapshot()
        self.outcome.swaps = self.ward.swaps
        self.outcome.lost_workloads = len(snapshot.unsettled) + sum(1 for _ in self._down)
        for key, since in self._down.items():
            self.outcome.down += (end + QUIET - since) * self._width[key]
        used = sum(self._width[pod.key] for state in snapshot.nodes.values() for pod in state.pods.values())
        self.outcome.wanted = used * self.fleet.days * DAY
        return self.outcome


def _node_of(uuid: str) -> str:
    return uuid.removeprefix("GPU-").rpartition("-")[0]

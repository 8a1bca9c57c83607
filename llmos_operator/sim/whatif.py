"""What would happen if work were submitted now: `forecast(store, policy, now, asked) -> Forecast`.

The operator's `plan` is asked cycle after cycle on a private store. Between two cycles everybody does what was decided:
binds hold their claims, victims end their grace and leave or come down, and agents see the memory they leave behind as free. It ends
when nothing more happens. Nobody else arrives meanwhile, and nobody finishes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.telemetry import Verdict
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.plan import Move, Shrink, Sleep
from llmos_operator.sim import holding
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.api.conditions import Reason
    from llmos_operator.scheduler.explain import Explanation
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.plan import Bind, Decision, Evict, Plan
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store
    from llmos_operator.state.telemetry import Observation
    from llmos_operator.state.types import Pod, PodKey, WorkloadKey

YIELD_SECONDS: Final = 1.0  # a runtime comes down within a second or two
_FEWER: Final = "its workload does with one replica less until there is room again"
_MOST_CYCLES: Final = (
    24  # a claimant binds in the second, its victims in the third; of starts on one shared device one in each
)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one pod of a replica would run. Amounts are bytes and tokens, `after` is seconds from now."""

    workload: WorkloadKey
    ordinal: int
    member: int  # which pod of the replica, by rank
    node: str
    devices: tuple[str, ...]
    format: str
    bytes_per_device: int
    max_model_len: int
    kv_tokens: int
    after: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Displaced:
    """A running replica that would have to go, to move or to give up memory, and what becomes of it."""

    workload: WorkloadKey
    pod: PodKey
    node: str
    reason: Reason
    cost_milliseconds: int  # of device time
    preemptor: WorkloadKey
    explanation: str
    afterwards: (
        str  # "starts again on node n2 at int8", "waits: NoCapacity ...", "goes on with 1.2 GiB per device"
    )


@dataclass(frozen=True, slots=True)
class Delayed:
    """A waiting workload that would wait longer, or behind the new ones."""

    workload: WorkloadKey
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of one workload that was asked about."""

    outcome: str  # Starts, StartsAfterEviction, StartsInPart, Waits, NothingToPlace
    explanation: Explanation  # as the first cycle sees it
    placed: tuple[Placed, ...]
    waiting: int  # replicas without a place in the end


@dataclass(frozen=True, slots=True)
class Forecast:
    """Everything `llmos simulate` shows. `cycles` are the plans, the first is what the operator would decide now."""

    now: float
    answers: tuple[Answer, ...]
    displaced: tuple[Displaced, ...]
    delayed: tuple[Delayed, ...]
    cycles: tuple[Plan, ...]


def forecast(
    store: Store,
    policy: Policy,
    now: float,
    asked: Iterable[WorkloadKey],
    before: Plan | None = None,
    leaving: Iterable[PodKey] = (),
    prices: Prices | None = None,
) -> Forecast:
    """Return what becomes of the workloads `asked` about, which `store` holds already. The store is used up.

    `before` is the plan without them, for what they delay. `leaving` are pods that the change itself takes away, such
    as those of a spec that is changed. `prices` are those the operator places by. Raises NotSynced before every list is complete.
    """
    asked = tuple(asked)
    for key in leaving:
        vacate(store, key, now)
    first = store.snapshot()
    told = {key: explain(first, policy, now, key) for key in asked}
    cycles = unfold(store, policy, now, prices)
    binds = [(cycle, bind) for cycle in cycles for bind in cycle.binds]
    answers = tuple(_answer(told[key], binds, now) for key in asked)
    return Forecast(
        now,
        answers,
        tuple(
            _displaced(one, cycles, at)
            for at, cycle in enumerate(cycles)
            for one in (*cycle.displacements, *cycle.moves)
        ),
        _delayed(before, cycles[0], set(asked)) if before is not None else (),
        tuple(cycles),
    )


def unfold(store: Store, policy: Policy, now: float, prices: Prices | None = None) -> list[Plan]:
    """Return the plans until nothing more happens, at least one; the store then stands where they lead."""
    cycles = []
    for _ in range(_MOST_CYCLES):
        made = plan(store.snapshot(), policy, now, prices=prices)
        cycles.append(made)
        carry_out(store, made)
        snapshot = store.snapshot()
        goes_on = made.actions or made.holders
        if not goes_on and not _leaving(snapshot, policy, now) and not _changing(snapshot):
            break
        now = _settle(store, policy, now, holding.SECONDS if made.holders else 0.0)
    return cycles


def carry_out(store: Store, made: Plan) -> None:
    """Let everybody do what was decided: victims begin their grace, binds hold their claims."""
    for evict in made.evictions:
        _evict(store, evict, made.now)
    for move in made.moves:
        pod = store.pod(move.pod)
        if pod is not None:
            ends = made.now + pod.grace_seconds
            store.assume_evicted(move.pod, ends, move.beneficiary, ends, move.place(made.now, ends))
    for shrink in made.shrinks:
        store.ask_to_lower(
            shrink.pod,
            shrink.pod_uid,
            shrink.bytes_per_device,
            made.now,
            shrink.preemptor,
            made.now + YIELD_SECONDS,
            lent=shrink.loan,
            fmt=shrink.format,
        )
    for sleep in made.sleeps:
        store.ask_to_sleep(sleep.pod, sleep.pod_uid, sleep.sleeping, made.now + YIELD_SECONDS)
    for wake in made.wakes:
        store.wake(wake.pod, wake.pod_uid)
    for restore in made.restores:
        store.restore_memory(restore.pod, restore.pod_uid)
    for grow in made.grows:
        store.allow_replicas(grow.workload, grow.workload_uid, grow.replicas, made.now)
    holding.exchange(store, made)
    for bind in made.binds:
        store.assume(bind.claim)
        running = replace(assumed_pod(bind.claim), uid=f"simulated {bind.claim.pod}", phase=PodPhase.BOUND)
        store.apply_pod(replace(running, ready=True, started_at=made.now))


def _evict(store: Store, evict: Evict, now: float) -> None:
    """Let a victim begin its grace; a workload that does with fewer wants it no more."""
    pod = store.pod(evict.pod)
    if pod is None:
        return
    store.assume_evicted(evict.pod, now + (0 if evict.force else pod.grace_seconds), evict.preemptor)
    if evict.fewer:
        store.give_up_replica(evict.victim, evict.victim_uid, evict.preemptor, now)


def _settle(store: Store, policy: Policy, now: float, seconds: float) -> float:
    """Let at least so many seconds pass, and those on their way out be gone; return the time then. Agents go on reporting meanwhile."""
    snapshot = store.snapshot()
    leaving = _leaving(snapshot, policy, now)
    later = max([now + seconds, *(pod.deletion_at for pod in leaving)])
    for pod in leaving:
        vacate(store, pod.key, later)
    changing = _changing(snapshot)
    if changing:
        later = max(later, now + YIELD_SECONDS)
    for pod in changing:
        come_down(store, pod, later)
    for node, heard in snapshot.heard.items():
        if now - heard <= policy.stale_seconds:
            store.observe(node, (), later)
    return later


def _leaving(snapshot: Snapshot, policy: Policy, now: float) -> list[Pod]:
    """Return the pods that end; one that is stuck far beyond its grace is not counted on, as in a cycle."""
    return [p for p in snapshot.terminating if p.deletion_at + policy.preemption.stuck_after >= now]


def _changing(snapshot: Snapshot) -> list[Pod]:
    """Return the pods that come down, or go to sleep, and were not seen to have yet."""
    lower = [pod for pod in snapshot.lowered if pod.claim is not None and not pod.claim.yielded]
    return lower + [pod for pod in snapshot.sleeping if pod.claim is not None and not pod.claim.asleep]


def come_down(store: Store, pod: Pod, now: float) -> None:
    """Let a pod have come down to what it was asked for, or sleep, and be seen to."""
    state = store.node(pod.node)
    if state is None or pod.claim is None:
        return
    if pod.claim.sleeping is not None:
        left = state.slept(pod.key, pod.claim.sleeping)
        store.note_asleep(pod.key, pod.uid)
    else:
        left = state.lowered(pod.key, pod.claim.asked_bytes, lent=pod.claim.lent)
        store.note_yielded(pod.key, pod.uid)
    _observe(store, left, now)


def vacate(store: Store, key: PodKey, now: float) -> None:
    """Take a pod away, and with it what it was seen to use on its devices."""
    pod = store.pod(key)
    state = store.node(pod.node) if pod is not None else None
    if pod is None or state is None:
        return
    left = state.vacated(key)
    store.delete_pod(key)
    if pod.claim is not None:
        _observe(store, left, now)


def _observe(store: Store, left: NodeState, now: float) -> None:
    """Let the agent of a node report what its devices are left with, if it reports at all."""
    heard = store.snapshot().heard.get(left.name)
    if heard is None:
        return
    readings = [
        Reading(d.uuid, d.observed_bytes, d.device.memory_bytes, *_verdict(left.observed, d.uuid))
        for d in left.devices
    ]
    for _ in range(2):  # a fall is believed when it is seen twice
        store.observe(left.name, readings, max(heard, now))


def _verdict(observed: Mapping[str, Observation], uuid: str) -> tuple[Verdict, str]:
    seen = observed.get(uuid)
    return (seen.verdict or Verdict.UNKNOWN, seen.reason) if seen is not None else (Verdict.UNKNOWN, "")


def _answer(told: Explanation, binds: list[tuple[Plan, Bind]], now: float) -> Answer:
    own = [(cycle, bind) for cycle, bind in binds if bind.claim.workload == told.workload]
    placed = tuple(placed_of(bind, cycle.now - now) for cycle, bind in own)
    started = len({one.ordinal for one in placed})  # a replica may have several pods
    waiting = max(0, told.replicas_wanted - told.replicas_placed - started)
    return Answer(_outcome(placed, waiting), told, placed, waiting)


def placed_of(bind: Bind, after: float) -> Placed:
    """Return a bind as a place."""
    claim = bind.claim
    return Placed(
        claim.workload,
        claim.ordinal,
        claim.member,
        claim.node,
        claim.devices,
        claim.format,
        claim.bytes_per_device,
        claim.max_model_len,
        claim.kv_tokens,
        after,
        bind.explanation,
    )


def _outcome(placed: tuple[Placed, ...], waiting: int) -> str:
    if waiting:
        return "StartsInPart" if placed else "Waits"
    if not placed:
        return "NothingToPlace"
    return "StartsAfterEviction" if any(one.after > 0 for one in placed) else "Starts"


def _displaced(evict: Evict | Shrink | Sleep | Move, cycles: list[Plan], at: int) -> Displaced:
    if isinstance(evict, Move):
        return Displaced(
            evict.workload,
            evict.pod,
            evict.node,
            evict.reason,
            evict.cost,
            evict.beneficiary,
            evict.explanation,
            _afterwards(evict.workload, cycles[at + 1 :]),
        )
    return Displaced(
        evict.victim,
        evict.pod,
        evict.node,
        evict.reason,
        evict.cost,
        evict.preemptor,
        evict.explanation,
        _stays(evict, cycles[at + 1 :])
        if isinstance(evict, Shrink | Sleep)
        else _FEWER
        if evict.fewer
        else _afterwards(evict.victim, cycles[at + 1 :]),
    )


def _stays(one: Shrink | Sleep, cycles: list[Plan]) -> str:
    """Return what becomes of a replica whose pod stays."""
    if isinstance(one, Shrink) and one.loan:
        return f"lends, and goes on with {human_bytes(one.bytes_per_device)} per device until it works again"
    if isinstance(one, Shrink):
        at = f" at {one.format}" if one.format else ""
        return f"goes on{at} with {human_bytes(one.bytes_per_device)} per device"
    if any(wake.pod_uid == one.pod_uid for cycle in cycles for wake in cycle.wakes):
        return "sleeps, and wakes again"
    return "sleeps until its devices have room again"


def _afterwards(victim: WorkloadKey, cycles: list[Plan]) -> str:
    for cycle in cycles:
        for bind in cycle.binds:
            if bind.claim.workload == victim:
                return f"starts again on node {bind.claim.node} at {bind.claim.format}"
    for cycle in reversed(cycles):
        decision = cycle.decisions.get(victim)
        if decision is not None and decision.pending:
            return f"waits: {decision.reason}: {decision.message}"
    return "is not started again"


def _delayed(before: Plan, after: Plan, asked: set[WorkloadKey]) -> tuple[Delayed, ...]:
    found = []
    for key, was in sorted(before.decisions.items()):
        becomes = after.decisions.get(key)
        if key in asked or becomes is None:
            continue
        later = (becomes.queue_position or 0) > (was.queue_position or 0) or becomes.pending > was.pending
        if later:
            found.append(Delayed(key, _standing(was), _standing(becomes)))
    return tuple(found)


def _standing(decision: Decision) -> str:
    if decision.queue_position is None:
        return "starts now"
    return f"position {decision.queue_position} in queue {decision.queue}: {decision.reason}"

"""Spans of placements: from a workload's wait over the plan that placed it and its pod to a model that serves.

One trace for each placement, its ids derived from the claim (`manifests.traces`): a new leader goes on with the trace of its
predecessor, and a span told twice is the same span. What happened before the bind is told when the pod exists, because only then
there is a placement. The pod's runtime is told the trace and adds the load of the model.

    placement                    from apply, or from the wait for another replica, to ready
      queued                     until the plan that decided; an event for each reason to wait
      plan                       the cycle that decided
      bind                       until the pod exists
      start                      until its runtime answers for the first time
      load, load Loading, …      by the runtime
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.manifests import traces
from llmos_operator.observability.tracing import TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmos_operator.observability.tracing import Tracer, Value
    from llmos_operator.scheduler.plan import Bind, Plan, Wait
    from llmos_operator.state.types import Claim, PodKey

PLACEMENT: Final = "placement"
_REASONS: Final = 32  # changes of a wait's reason that are kept


@dataclass(frozen=True, slots=True)
class Cycle:
    """One plan: its number in this process, and when it was made (seconds since 1970)."""

    number: int
    began: float
    ended: float


@dataclass(slots=True)
class _Waiting:
    """Why a workload waited: reasons and since when."""

    reasons: list[tuple[float, str]] = field(default_factory=list)

    def note(self, now: float, reason: str) -> None:
        if not self.reasons or self.reasons[-1][1] != reason:
            self.reasons.append((now, reason))
            del self.reasons[1:-_REASONS]  # the first says since when


@dataclass(frozen=True, slots=True)
class _Decided:
    """A bind on its way to a pod."""

    bind: Bind
    cycle: Cycle
    waits: int
    waited: tuple[tuple[float, str], ...]
    wanted_at: float


class PlacementSpans:
    """Told by the loop, by what becomes of binds, and by what runtimes report."""

    def __init__(
        self, tracer: Tracer, now: Callable[[], float], placed_before: Callable[[str], bool]
    ) -> None:
        """``now`` is seconds since 1970; ``placed_before`` says of a workload (UID) whether a replica ever had a place."""
        self._tracer = tracer
        self._now = now
        self._placed_before = placed_before
        self._waiting: dict[str, _Waiting] = {}  # by workload UID
        self._decided: dict[PodKey, _Decided] = {}
        self._open: dict[PodKey, tuple[Claim, float, float]] = {}  # claim, wanted at, pod exists since

    @property
    def on(self) -> bool:
        """Whether anything is told."""
        return self._tracer.on

    def planned(self, plan: Plan, cycle: Cycle) -> None:
        """Take a plan that is about to be carried out."""
        if not self.on:
            return
        for bind in plan.binds:
            uid = bind.workload.uid
            waited = tuple(self._waiting[uid].reasons) if uid in self._waiting else ()
            wanted = waited[0][0] if waited else cycle.began
            if not self._placed_before(uid):
                wanted = min(bind.workload.created_at or wanted, wanted)
            self._decided[bind.claim.pod] = _Decided(bind, cycle, len(plan.waits), waited, wanted)
        self._note_waits(plan.waits, cycle.ended, {bind.workload.uid for bind in plan.binds})

    def _note_waits(self, waits: Iterable[Wait], now: float, placed: set[str]) -> None:
        waiting = {wait.workload_uid: wait.reason.value for wait in waits}
        for uid in placed - waiting.keys():
            self._waiting.pop(uid, None)
        for uid, reason in waiting.items():
            self._waiting.setdefault(uid, _Waiting()).note(now, reason)

    def bound(self, bind: Bind) -> None:
        """A pod exists: tell how it came about."""
        decided = self._decided.pop(bind.claim.pod, None)
        if not self.on or decided is None:
            return
        now, claim, cycle = self._now(), bind.claim, decided.cycle
        self._open[claim.pod] = (claim, decided.wanted_at, now)
        queued = self._tracer.start(
            "queued",
            parent=_root(claim),
            identity=_own(claim, "queued"),
            at=decided.wanted_at,
            attributes={"llmos.queue": claim.queue, "llmos.priority": claim.priority},
        )
        for at, reason in decided.waited:
            queued.event("llmos.waits", {"llmos.reason": reason}, at)
        queued.end(max(decided.wanted_at, cycle.began))
        plan: dict[str, Value] = {
            "llmos.cycle": cycle.number,
            "llmos.plan.waits": decided.waits,
            "llmos.reason": bind.reason.value,
            "llmos.scored_by": bind.scored_by,
        }
        self._tell(claim, "plan", cycle.began, cycle.ended, plan)
        self._tell(claim, "bind", cycle.ended, now, _place(claim))

    def dropped(self, pod: PodKey) -> None:
        """A decided pod will not be made."""
        self._decided.pop(pod, None)

    def started(self, pod: PodKey, claim: Claim) -> None:
        """A runtime answers for the first time."""
        known = self._open.get(pod)
        if self.on and known is not None:
            self._tell(claim, "start", known[2], self._now(), {"k8s.pod.name": pod.partition("/")[2]})

    def ready(self, pod: PodKey, claim: Claim, *, seen_before: bool) -> None:
        """A model is loaded: the placement has come to its end.

        A runtime that was ready when this process first heard of it (``seen_before`` is False, and another leader bound it)
        was told of by that leader. One that this leader saw load without having bound it is told from its bind on.
        """
        known = self._open.get(pod)
        for mate in [one for one, (other, _, _) in self._open.items() if _same(other, claim)]:
            del self._open[mate]  # the pods of a gang are one placement
        if self.on and (known or seen_before):
            self._end(claim, known[1] if known else claim.bound_at, "")

    def ended(self, pod: PodKey, reason: str) -> None:
        """A pod is taken away; a placement that had not come to its end failed for ``reason``, of the closed list."""
        known = self._open.pop(pod, None)
        if known is not None:
            for mate in [one for one, (other, _, _) in self._open.items() if _same(other, known[0])]:
                del self._open[mate]
            self._end(known[0], known[1], reason)

    def forget(self, workload_uid: str) -> None:
        """A workload is gone."""
        self._waiting.pop(workload_uid, None)
        for pod in [pod for pod, one in self._decided.items() if one.bind.workload.uid == workload_uid]:
            del self._decided[pod]
        for pod in [pod for pod, one in self._open.items() if one[0].workload_uid == workload_uid]:
            self.ended(pod, Reason.POD_DELETED.value)

    def _end(self, claim: Claim, wanted: float, failure: str) -> None:
        span = self._tracer.start(PLACEMENT, identity=_root(claim), at=wanted, attributes=_whole(claim))
        if failure:
            span.fail(failure)
        span.end(max(wanted, self._now()))

    def _tell(self, claim: Claim, name: str, began: float, ended: float, more: dict[str, Value]) -> None:
        span = self._tracer.start(
            name, parent=_root(claim), identity=_own(claim, name), at=began, attributes=more
        )
        span.end(max(began, ended))


def _same(one: Claim, other: Claim) -> bool:
    return traces.trace_id(one) == traces.trace_id(other)


def _root(claim: Claim) -> TraceContext:
    return TraceContext(traces.trace_id(claim), traces.span_id(claim))


def _own(claim: Claim, name: str) -> TraceContext:
    return TraceContext(traces.trace_id(claim), traces.span_id(claim, f"{name} {claim.pod}"))


def _whole(claim: Claim) -> dict[str, Value]:
    namespace, _, name = claim.workload.partition("/")
    return {
        "llmos.namespace": namespace,
        "llmos.workload": name,
        "llmos.workload.uid": claim.workload_uid,
        "llmos.replica.ordinal": claim.ordinal,
        **_place(claim),
    }


def _place(claim: Claim) -> dict[str, Value]:
    return {
        "k8s.node.name": claim.node,
        "k8s.pod.name": claim.pod.partition("/")[2],
        "llmos.devices": claim.devices,
        "llmos.format": claim.format,
        "llmos.bytes_per_device": claim.bytes_per_device or claim.memory_bytes,
        "llmos.sharing": claim.sharing.value,
    }

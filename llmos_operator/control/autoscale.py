"""Decides how many replicas each workload with `spec.scaling` wants, and remembers what it takes to decide the next time.

Gathers what gateways and runtimes say, sees what of it is out of date, feeds the autoscaler where latency is promised
(`spec.slo`), and leaves the number to :func:`llmos_operator.control.scaling.decide`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos_operator.api.quantity import parse_milliseconds
from llmos_operator.control import scaling
from llmos_operator.control.scaling import Demand, Memory, Promise
from llmos_operator.scheduler.autoscaling.autoscaler import Autoscaler
from llmos_operator.scheduler.autoscaling.capacity import Counters, Speed
from llmos_operator.scheduler.autoscaling.values import Aim, Arrivals, Capacity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.control.demand import DemandBook
    from llmos_operator.control.records import Record, Records
    from llmos_operator.manifests.observed import Scaling
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Pod, Workload

FRESH_SECONDS = 30.0  # three polls of a runtime that serves
_LEARN_SECONDS = 5.0  # shortest stretch of arrivals worth learning from
_GAP_SECONDS = 60.0  # without a look, after which what is remembered of the number is not trusted
_FIRST_SECONDS = 300.0  # of arrivals to have seen before the number may follow them down
_COLD_SECONDS = 120.0  # cold start of a model whose loads nobody has measured
_START_SECONDS = 10.0  # from the decision to a runtime that begins to load
_WAIT_PART = (
    0.5  # of the time to the first token that may be spent waiting; the rest is for reading the prompt
)
_LEARNING = "the promised latency, while it is learned what the load takes"
_WAIT_SECONDS = 5.0  # longest wait where only the time between tokens is promised


@dataclass(slots=True)
class _Scaled:
    """What is remembered of one workload."""

    uid: str
    memory: Memory
    autoscaler: Autoscaler | None = None
    speed: Speed = field(default_factory=Speed)
    looked_at: float = 0.0  # epoch seconds
    learned_at: float = 0.0  # epoch seconds up to which arrivals were taken
    arrived: int = 0  # of the demand book, up to then
    asked_since: float | None = None  # epoch seconds; None: nobody asked anything of it at the last look
    promise: Promise = field(default_factory=lambda: Promise(0, ""))


class Wanted(NamedTuple):
    """What the demand for a workload comes to."""

    replicas: int
    dozes: bool  # they may sleep
    lends: bool | None  # they may lend memory (True), call back what they lent (False), or neither
    verdict: Scaling


class Scalers:
    """The autoscaling of all workloads, by key."""

    def __init__(
        self,
        store: Store,
        records: Records,
        demand: DemandBook,
        load_seconds: Callable[[str, str], float | None],
        working: Callable[[str], str],
    ) -> None:
        """`load_seconds` returns how long a model's load takes, by URI and revision; None: nobody has measured it.

        `working` returns what shows that a workload (by UID) works without requests, "" where nothing does.
        """
        self._store = store
        self._records = records
        self._demand = demand
        self._load_seconds = load_seconds
        self._working = working
        self._scaled: dict[str, _Scaled] = {}

    def forget(self, key: str) -> None:
        """Drop what is remembered of a workload."""
        self._scaled.pop(key, None)

    def scale(self, record: Record, workload: Workload, now: float) -> Wanted | None:
        """Return what is wanted now, and why; None if somebody else owns the number of replicas."""
        spec = workload.spec.get("scaling")
        if not spec or workload.suspended or workload.finished:
            self.forget(record.key)
            return None
        # Of a gang only the leader serves: the others are no replicas of their own.
        held = self._store.pods_of(record.uid)
        pods = tuple(pod for pod in held if pod.claim is None or not pod.claim.member)
        known = self._scaled.get(record.key)
        if known is None or known.uid != record.uid:
            known = _Scaled(record.uid, scaling.begin(spec, len(pods), now))
            self._scaled[record.key] = known
        elif pods and now - known.looked_at > _GAP_SECONDS:
            # Somebody else led meanwhile, or nothing ran: what runs now is where to begin.
            known.memory = scaling.begin(spec, len(pods), now)
            known.learned_at = 0.0
        known.looked_at = now
        demand = self._look(record, pods, now)
        promise = self._promise(known, workload, demand, sum(pod.ready for pod in pods), now)
        allowed = workload.replicas if workload.wanted is not None else None
        known.memory, verdict = scaling.decide(spec, demand, known.memory, now, promise, allowed)
        if known.memory.wanted == 0 and known.autoscaler is not None:
            known.autoscaler.rest()
        dozes = bool(pods) and all(_dozes(pod) for pod in pods)
        idle = scaling.may_doze(spec, demand, known.memory, now, dozes=dozes)
        return Wanted(known.memory.wanted, idle, _lends(known, spec, demand, pods, now), verdict)

    # -- demand ---------------------------------------------------------------------------------------------

    def _look(self, record: Record, pods: tuple[Pod, ...], now: float) -> Demand:
        """Return the demand as gateways and runtimes tell it, and whose word is missing."""
        told = self._demand.demand(record.key, now)
        reports = self._records.reports_of(record.uid)
        heard = {uid: self._records.heard_at(uid) for uid in reports}
        current = [report for uid, report in reports.items() if now - heard[uid] <= FRESH_SECONDS]
        silent = min(
            (
                pod.name
                for pod in pods
                if pod.ready and now - max(heard.get(pod.uid, 0.0), pod.started_at) > FRESH_SECONDS
            ),
            default="",
        )
        # A gateway that fell silent leaves nothing unknown where every replica says that nobody is served.
        quiet = any(pod.ready for pod in pods) and not any(
            one.requests.running + one.requests.waiting for one in current
        )
        return Demand(
            waiting=max(told.waiting, sum(report.requests.waiting for report in current)),
            running=max(told.running, sum(report.requests.running for report in current)),
            per_minute=told.per_minute,
            kv_percent=sum(report.requests.kv_usage_milli for report in current) // 10,
            last_request=max(
                told.last_request, *(_last_request(one, heard[uid]) for uid, one in reports.items()), 0.0
            ),
            arrived=told.arrived,
            working=self._working(record.uid),
            lost=f"no report from {silent}" if silent else "" if quiet else told.lost,
        )

    # -- latency --------------------------------------------------------------------------------------------

    def _promise(
        self, known: _Scaled, workload: Workload, demand: Demand, ready: int, now: float
    ) -> Promise | None:
        """Return the replicas the promised latency takes; None where none is promised."""
        slo = workload.spec.get("slo") or {}
        aim, token_seconds = _aim(slo)
        if aim is None:
            known.autoscaler = None
            return None
        if known.autoscaler is None:
            known.autoscaler = Autoscaler(aim)
            known.learned_at = 0.0
        if not known.learned_at or not known.memory.wanted:
            known.learned_at, known.arrived = now, demand.arrived
        known.autoscaler.aim = aim
        known.speed.learn(self._counters(workload.uid))
        capacity = self._capacity(known.speed, workload, token_seconds)
        if capacity is not None and not demand.lost and now - known.learned_at >= _LEARN_SECONDS:
            requests = float(max(0, demand.arrived - known.arrived))
            known.autoscaler.learn(Arrivals(now, requests, now - known.learned_at), capacity)
            known.learned_at, known.arrived = now, demand.arrived
        have = known.memory.wanted if workload.wanted is None else workload.replicas
        if capacity is None or known.autoscaler.seconds < _FIRST_SECONDS:
            busy = math.ceil(
                (demand.waiting + demand.running) / known.speed.slots(workload.max_num_seqs, None)
            )
            known.promise = Promise(max(have, busy), _LEARNING)
            return known.promise
        need = known.autoscaler.need(now, capacity, have, ready, demand.waiting)
        if need.replicas != known.promise.replicas or known.promise.why == _LEARNING:
            # Said once per number: figures that move every second would be a write of the status every second.
            why = (
                f"the promised latency at {need.expected_rate:.3g} requests/s (x {need.margin:.2f} to be safe, "
                f"{capacity.slots:.0f} at a time per replica, {capacity.service_seconds:.3g} s each, "
                f"{capacity.cold_seconds:.0f} s to start one)"
            )
            known.promise = Promise(need.replicas, why)
        return known.promise

    def _counters(self, workload_uid: str) -> tuple[Counters, ...]:
        return tuple(
            Counters(
                uid,
                self._records.heard_at(uid),
                report.requests.running,
                report.requests.finished + report.requests.aborted,
                report.requests.generation_tokens,
            )
            for uid, report in self._records.reports_of(workload_uid).items()
        )

    def _capacity(self, speed: Speed, workload: Workload, token_seconds: float | None) -> Capacity | None:
        service = speed.service_seconds
        if service is None:
            return None
        load = self._load_seconds(workload.model.uri, workload.model.revision)
        cold = _START_SECONDS + (_COLD_SECONDS if load is None else load)
        return Capacity(speed.slots(workload.max_num_seqs, token_seconds), service, cold)


def _aim(slo: Mapping[str, Any]) -> tuple[Aim | None, float | None]:
    """Return what `spec.slo` promises to the queue, and the longest time between two tokens in seconds."""
    first, between = slo.get("ttft"), slo.get("itl")
    token_seconds = parse_milliseconds(str(between)) / 1000.0 if between else None
    if first:
        return Aim(_WAIT_PART * parse_milliseconds(str(first)) / 1000.0), token_seconds
    return (Aim(_WAIT_SECONDS) if between else None), token_seconds


def _lends(
    known: _Scaled, spec: Mapping[str, Any], demand: Demand, pods: tuple[Pod, ...], now: float
) -> bool | None:
    """Return whether replicas may lend memory, or call it back (False), and note since when they are asked."""
    asked = demand.waiting + demand.running > 0 or bool(demand.working)
    known.asked_since = (now if known.asked_since is None else known.asked_since) if asked else None
    asked_for = now - known.asked_since if known.asked_since is not None else 0.0
    lends = has_lent(pods)
    may = scaling.may_lend(spec, demand, known.memory, now, lends=lends, asked_for=asked_for)
    return may or (False if lends else None)


def has_lent(pods: Iterable[Pod]) -> bool:
    """Return whether a replica has lent memory, or is asked to."""
    return any(pod.claim is not None and pod.claim.lent for pod in pods)


def _dozes(pod: Pod) -> bool:
    """Return whether a replica sleeps because nobody asked anything of it."""
    sleeping = pod.claim.sleeping if pod.claim is not None else None
    return sleeping is not None and not sleeping.beneficiary


def _last_request(report: RuntimeStatus, heard_at: float) -> float:
    """Return when a runtime got its last request, 0.0 if never."""
    age = report.requests.last_request_age_seconds
    return 0.0 if age is None else heard_at - float(age)

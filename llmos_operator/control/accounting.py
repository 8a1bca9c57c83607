"""Who has had how much: devices and bytes times seconds, energy and tokens, by workload, queue, namespace and product.

Two readers: Prometheus, whose counters begin at 0 with every leader, and `status.usage`, which never goes back. After a
restart a workload goes on from what its status says, with the seconds since then taken from the claims of its pods, so
nothing but a pod that came and went meanwhile is missed. Energy and tokens cannot be made up for: a runtime's own count
is the least there was, and the energy of that time is not counted.

A claim counts as quota counts it: whole devices whole, shared ones by the part that is held. What is busy and what is
drawn is a device's and goes to those who hold it by the same parts. What work that ends has received
(`status.run.deviceSeconds`, of which its turns are made) is the same time with every device counted whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from llmos_operator.api import names
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.clock import rfc3339
from llmos_operator.control.history import time_of
from llmos_operator.control.working import QUIET_SECONDS, Work
from llmos_operator.manifests.observed import Usage
from llmos_operator.manifests.status import usage_seconds
from llmos_operator.state.types import FULL_MILLI, PodPhase, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Counter

    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.records import Records
    from llmos_operator.control.working import DeviceWork, Judgement
    from llmos_operator.scheduler.plan import Evict
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store
    from llmos_operator.state.telemetry import Reading
    from llmos_operator.state.types import Claim, Pod

KEPT_SECONDS = 600.0  # a workload's counters outlive it, so that Prometheus reads their last values
MARKS = 10  # statuses that are written for the sake of usage alone, at most, with one charge
_MILLI = 1000
_PERCENT = 100
_UNKNOWN = "unknown"
_SERVING = frozenset({RuntimeState.READY, RuntimeState.ASLEEP})
_Owner = tuple[str, str, str, str]  # namespace, workload, queue, product
_K = TypeVar("_K", bound=tuple[str, ...])


@dataclass(slots=True)
class _Meter:
    """What one device told since the last charge, and its counter as it stood last."""

    millijoules: int | None = None
    drawn: int = 0  # millijoules
    percents: int = 0  # sum over samples
    samples: int = 0
    latest: int | None = None  # percent
    draw: int | None = None  # milliwatts, of the last sample

    def take(self, reading: Reading) -> None:
        told = reading.energy_millijoules
        if told is not None:
            # A counter that fell has begun anew: with a driver, or with a reset.
            if self.millijoules is not None and told > self.millijoules:
                self.drawn += told - self.millijoules
            self.millijoules = told
        self.latest, self.draw = reading.busy_percent, reading.power_milliwatts
        if reading.busy_percent is not None:
            self.percents += reading.busy_percent
            self.samples += 1

    def read(self) -> tuple[float | None, float]:
        """Return (busy share 0..1, None if unmeasured; joules) since the last read."""
        busy = self.percents / self.samples / _PERCENT if self.samples else None
        joules = self.drawn / _MILLI
        self.drawn = self.percents = self.samples = 0
        return busy, joules


@dataclass(slots=True)
class _Spoken:
    """Tokens a runtime had counted when it was last looked at, and when they last grew (monotonic seconds)."""

    prompt: int
    generation: int
    grown_at: float


@dataclass(slots=True)
class _Total:
    """What one workload has had since its creation, as of the last charge."""

    gpu_seconds: float
    device_seconds: float  # the same time, shared devices counted whole
    joules: float
    tokens: int
    since: float  # epoch seconds when this process began to count it
    spoken: int = 0  # tokens its runtimes had counted before this process heard of them


class Accounts:
    """The books of one leader. One caller; `charge` every few seconds."""

    def __init__(self, metrics: OperatorMetrics, records: Records, work: DeviceWork) -> None:
        self._metrics = metrics
        self._work = work
        self._records = records
        self._meters: dict[str, _Meter] = {}  # by device UUID
        self._spoken: dict[str, _Spoken] = {}  # by pod UID
        self._totals: dict[str, _Total] = {}  # by workload UID
        self._charged_at: float | None = None  # monotonic
        self._now = 0.0  # epoch seconds of the last charge
        self._began = 0.0  # epoch seconds of the first charge
        self._held_at: dict[_Owner, float] = {}  # monotonic
        self._heard_at: dict[tuple[str, str, str], float] = {}  # monotonic, of token counters

    def sampled(self, readings: Iterable[Reading]) -> None:
        """Take the samples of a node's devices. Costs a few additions a device."""
        for reading in readings:
            self._meters.setdefault(reading.uuid, _Meter()).take(reading)

    def busy_percent(self, uuid: str) -> int | None:
        """Return how busy a device was in its last sample, None if it does not tell."""
        meter = self._meters.get(uuid)
        return meter.latest if meter is not None else None

    def draw(self, uuid: str) -> int | None:
        """Return the milliwatts a device drew at its last sample, None if it does not tell."""
        meter = self._meters.get(uuid)
        return meter.draw if meter is not None else None

    def usage(self, workload_uid: str, pods: Iterable[Pod], now: float) -> Usage | None:
        """Return what a workload has had until ``now`` (epoch seconds), None if nothing has been charged to it here.

        ``pods`` are its pods: what they have held since the last charge counts along, so that the end of a run is exact.
        """
        total, since = self._totals.get(workload_uid), self._now
        pods = tuple(pods)
        if total is None:
            if self._charged_at is None or not any(pod.claim is not None for pod in pods):
                return None
            total, since = self._opened(workload_uid, pods, now), now
        held = [_held(pod.claim, self._span(pod, since, now)) for pod in pods if pod.claim is not None]
        return Usage(
            gpu_seconds=int(total.gpu_seconds + sum(parts for parts, _ in held)),
            device_seconds=int(total.device_seconds + sum(whole for _, whole in held)),
            energy_joules=int(total.joules),
            tokens=total.tokens,
            since=total.since,
            time=now,
        )

    def charge(self, snapshot: Snapshot, now: float, monotonic: float) -> None:
        """Charge what is held for the time since the last call. ``now`` in epoch seconds."""
        passed = 0.0 if self._charged_at is None else monotonic - self._charged_at
        if self._charged_at is None:
            self._began = now
        self._charged_at, self._now = monotonic, now
        read = {uuid: meter.read() for uuid, meter in self._meters.items()}
        known: set[str] = set()
        pods: set[str] = set()
        for state in snapshot.nodes.values():
            known |= {one.uuid for one in state.devices}
            work = {one.uuid: self._work.judge(one, monotonic) for one in state.devices if one.claims}
            for pod in state.pods.values():
                if pod.claim is None:
                    continue
                pods.add(pod.uid)
                total = self._total(pod.claim.workload_uid, snapshot, now - passed)
                self._charge(pod, pod.claim, total, passed, state, work, read, monotonic)
        self._meters = {uuid: meter for uuid, meter in self._meters.items() if uuid in known}
        self._spoken = {uid: one for uid, one in self._spoken.items() if uid in pods}
        self._totals = {uid: t for uid, t in self._totals.items() if self._records.by_uid(uid) is not None}
        self._forget(snapshot, monotonic)

    def due(self) -> list[str]:
        """Return the workloads, oldest first, whose status should be written for their usage alone: a bounded number."""
        found: list[tuple[str, str]] = []
        for uid, total in self._totals.items():
            record = self._records.by_uid(uid)
            if record is None:
                continue
            said = record.status.get("usage") or {}
            written = str(said.get("time") or rfc3339(total.since))  # these texts order as their times do
            before = rfc3339(self._now - usage_seconds(record.stub))
            grown = int(total.gpu_seconds) > int(said.get("gpuSeconds") or 0)
            if written < before and (grown or total.tokens > int(said.get("tokens") or 0)):
                found.append((written, record.key))
        return [key for _, key in sorted(found)[:MARKS]]

    def evicted(self, evict: Evict, store: Store, now: float) -> None:
        """Count what an accepted eviction throws away: the load of a server, all that a job has done in this pod."""
        pod, workload = store.pod(evict.pod), store.workload(evict.victim)
        claim = pod.claim if pod is not None and pod.uid == evict.pod_uid else None
        if pod is None or claim is None or not claim.devices:
            return
        state = store.node(pod.node)
        device = state.device(claim.devices[0]) if state is not None else None
        held = max(0.0, now - (claim.bound_at or now))
        report = self._records.report(pod.uid)
        serves = workload is None or workload.kind is WorkloadKind.INFERENCE
        if serves and report is not None and report.state in _SERVING:
            held = min(held, sum(report.load_seconds.values()))
        owner = (*_owner(claim), device.device.product if device is not None else _UNKNOWN)
        self._metrics.gpu_lost_seconds.labels(*owner).inc(held * claim.gpu_milli / FULL_MILLI)
        if self._charged_at is not None:
            self._held_at[owner] = self._charged_at

    # -- one pod --------------------------------------------------------------------------------------------

    def _charge(
        self,
        pod: Pod,
        claim: Claim,
        total: _Total,
        passed: float,
        state: NodeState,
        work: Mapping[str, Judgement],
        read: Mapping[str, tuple[float | None, float]],
        monotonic: float,
    ) -> None:
        active = self._hear(pod, claim, total, monotonic)
        window, passed = passed, self._span(pod, self._now - passed, self._now)
        if pod.phase is PodPhase.FINISHED and not passed:
            return
        parts, whole = _held(claim, passed)
        total.gpu_seconds += parts
        total.device_seconds += whole
        drawn = passed / window if window else 0.0  # of what the device drew in this window
        for uuid in claim.devices:
            device = state.device(uuid)
            owner = (*_owner(claim), device.device.product if device and device.device.product else _UNKNOWN)
            self._open(owner, monotonic)
            part = claim.gpu_milli / FULL_MILLI / len(claim.devices)
            busy, joules = read.get(uuid, (None, 0.0))
            self._metrics.gpu_seconds.labels(*owner).inc(passed * part)
            self._metrics.gpu_memory.labels(*owner).inc(passed * claim.held_bytes)
            self._metrics.energy.labels(*owner).inc(joules * part * drawn)
            total.joules += joules * part * drawn
            alone = device is not None and device.claims == 1
            worked = _worked(busy, work.get(uuid), active=active, alone=alone)
            if worked is not None:
                self._metrics.gpu_busy_seconds.labels(*owner).inc(passed * part * worked)
                self._metrics.gpu_idle_seconds.labels(*owner).inc(passed * part * (1.0 - worked))

    def _open(self, owner: _Owner, monotonic: float) -> None:
        """Show an owner's counters at 0 before they count, so that Prometheus sees their first increase."""
        if owner not in self._held_at:
            for counter in self._counters():
                counter.labels(*owner)
        self._held_at[owner] = monotonic

    def _counters(self) -> tuple[Counter, ...]:
        metrics = self._metrics
        return (
            metrics.gpu_seconds,
            metrics.gpu_busy_seconds,
            metrics.gpu_idle_seconds,
            metrics.gpu_lost_seconds,
            metrics.gpu_memory,
            metrics.energy,
        )

    def _hear(self, pod: Pod, claim: Claim, total: _Total, monotonic: float) -> bool:
        """Count the tokens a pod's runtime has told since the last call. Returns whether it is at work."""
        report = self._records.report(pod.uid)
        if report is None:
            return True
        now = (report.requests.prompt_tokens, report.requests.generation_tokens)
        before = self._spoken.get(pod.uid)
        if before is None:
            # What a pod older than this process has told its former leader is counted already, up to the last status.
            old = claim.bound_at < self._began
            before = self._spoken[pod.uid] = _Spoken(*(now if old else (0, 0)), grown_at=monotonic)
            total.spoken += sum(now) if old else 0
            total.tokens = max(total.tokens, total.spoken)
            for kind in ("prompt", "generation"):
                self._metrics.tokens.labels(*_owner(claim), kind)  # at 0: see `_open`
            self._heard_at[_owner(claim)] = monotonic
        # A count that fell is an engine's that was started anew.
        grown = tuple(
            new - old if new >= old else new
            for new, old in zip(now, (before.prompt, before.generation), strict=True)
        )
        before.prompt, before.generation = now
        total.tokens += sum(grown)
        if any(grown):
            before.grown_at = monotonic
            owner = _owner(claim)
            self._heard_at[owner] = monotonic
            for kind, count in zip(("prompt", "generation"), grown, strict=True):
                self._metrics.tokens.labels(*owner, kind).inc(count)
        waiting = report.requests.running + report.requests.waiting > 0
        quiet = report.state in _SERVING and not waiting and monotonic - before.grown_at > QUIET_SECONDS
        return not quiet

    # -- totals ---------------------------------------------------------------------------------------------

    def _total(self, uid: str, snapshot: Snapshot, until: float) -> _Total:
        """Return a workload's total; its first time, what its status says and what its pods held from then to ``until``."""
        total = self._totals.get(uid)
        if total is None:
            total = self._totals[uid] = self._opened(uid, snapshot.pods_of.get(uid, ()), until)
        return total

    def _opened(self, uid: str, pods: Iterable[Pod], until: float) -> _Total:
        record = self._records.by_uid(uid)
        status = record.status if record is not None else {}
        said, run = status.get("usage") or {}, status.get("run") or {}
        told_at = time_of(said.get("time"))
        held = [_held(pod.claim, self._span(pod, told_at, until)) for pod in pods if pod.claim is not None]
        return _Total(
            gpu_seconds=float(said.get("gpuSeconds") or 0) + sum(parts for parts, _ in held),
            device_seconds=float(run.get("deviceSeconds") or 0) + sum(whole for _, whole in held),
            joules=float(said.get("energyJoules") or 0),
            tokens=int(said.get("tokens") or 0),
            since=self._now,
        )

    def _span(self, pod: Pod, after: float, until: float) -> float:
        """Return the seconds between two epoch times in which a pod held its claim: from its binding to its end."""
        start = (pod.claim.bound_at if pod.claim is not None else 0.0) or pod.started_at
        if pod.phase is PodPhase.FINISHED:
            replica = self._records.replica(pod.key)
            end = replica.ended if replica is not None and replica.uid == pod.uid else None
            # Without the kubelet's word on its end nothing is made up.
            until = min(until, end.finished_at if end is not None else 0.0)
        begun = max(start, after)
        return max(0.0, until - begun) if begun else 0.0

    def _forget(self, snapshot: Snapshot, monotonic: float) -> None:
        """Drop the counters of workloads that are gone, some time after they held anything."""
        for owner in list(_stale(self._held_at, snapshot, monotonic)):
            del self._held_at[owner]
            for counter in self._counters():
                counter.remove(*owner)
        for speaker in list(_stale(self._heard_at, snapshot, monotonic)):
            del self._heard_at[speaker]
            for kind in ("prompt", "generation"):
                self._metrics.tokens.remove(*speaker, kind)


def _owner(claim: Claim) -> tuple[str, str, str]:
    namespace, _, name = claim.workload.partition("/")
    return namespace, name, claim.queue or names.DEFAULT_QUEUE


def _held(claim: Claim, seconds: float) -> tuple[float, float]:
    """Return devices times seconds: shared devices by the part that is held, and counted whole."""
    return seconds * claim.gpu_milli / FULL_MILLI, seconds * len(claim.devices)


def _worked(busy: float | None, told: Judgement | None, *, active: bool, alone: bool) -> float | None:
    """Return which part of its time a device worked for one who holds it (`alone`, or with others); None: nobody can tell.

    `busy` is the utilisation counter's word, `told` what `working` makes of its other signs, which go before it; `active`
    is whether a runtime tells of work.
    """
    work = told.work if told is not None else Work.UNCLEAR
    if work is Work.QUIET:
        return 0.0
    measured = busy if busy is not None or told is None else told.share
    if measured is None:
        return None
    return measured if active or (alone and work is Work.BUSY) else 0.0


def _stale(seen: Mapping[_K, float], snapshot: Snapshot, monotonic: float) -> Iterator[_K]:
    for owner, at in seen.items():
        if monotonic - at > KEPT_SECONDS and f"{owner[0]}/{owner[1]}" not in snapshot.workloads:
            yield owner

"""What replicas lose to their neighbours on shared devices, learned from how fast they work alone and together.

A sample is the speed of one replica between two answers of its runtime: tokens it generated, or trained on, a second.
Samples compare only under a comparable load: on the same product, with as many requests in progress at both ends (in
powers of two). It was alone where nobody else on the device was at work from end to end, together where exactly one
was; every other sample is dropped, so is one beside somebody whose runtime does not tell.

    loss = 1 - median(together) / median(alone)             from 5 %, at most `MOST`, in steps of 5 %

once there are `LEAST` samples of both, of `EPISODES` separate stretches of both, and the difference is `SURE` times its
standard error (of medians, by the median absolute deviation): noise, or a load that changed once, teaches nothing. The
newest `KEPT` samples count, none older than a week: what is not seen any more is forgotten. The evidence is this
process's own, a restart collects it anew; it names pairs of models, so it belongs into no model's profile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.observability.slices import in_slices
from llmos_operator.scheduler.interference import MOST, subject_of
from llmos_operator.scheduler.redaction import without_secrets
from llmos_operator.state.types import PodPhase, Sharing, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.records import Records
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Claim, Pod, Workload

LEAST: Final = 30  # samples, of each
KEPT: Final = 256
EPISODES: Final = 3
SURE: Final = 4.0
WEEK: Final = 7 * 86_400.0
SHORTEST: Final = 4.0  # seconds of a sample
LONGEST: Final = 60.0
LONGEST_STEP: Final = 600.0  # the same, of training
SHOWN: Final = 64  # pairs on the metric, the largest losses
_STEP: Final = 50  # thousandths
_MILLI: Final = 1000
_ALONE: Final = ""


class Cell(NamedTuple):
    """Samples that compare with each other."""

    subject: str
    product: str
    load: int  # requests in progress, as the power of two; 0: it trains


class Sample(NamedTuple):
    """One speed, when it was seen (epoch seconds), and in which stretch of being alone or together."""

    at: float
    speed: float
    episode: int


@dataclass(slots=True)
class _Seen:
    """A replica at its runtime's last answer that counts."""

    at: float  # epoch seconds
    done: int
    load: int
    active: bool
    since: float  # for how long it is active, or is not
    beside: str | None = None  # of its last sample
    episode: int = 0


@dataclass(slots=True)
class Evidence:
    """The samples of one cell, by whom they were beside (`_ALONE`: nobody)."""

    samples: dict[str, deque[Sample]] = field(default_factory=dict)

    def add(self, beside: str, sample: Sample) -> None:
        """Take a sample."""
        self.samples.setdefault(beside, deque(maxlen=KEPT)).append(sample)

    def forget(self, before: float) -> set[str]:
        """Drop what is older; return beside whom less is known now."""
        less = {beside for beside, kept in self.samples.items() if kept and kept[0].at < before}
        everybody = set(self.samples)
        for beside in less:
            kept = self.samples[beside]
            while kept and kept[0].at < before:
                kept.popleft()
            if not kept:
                del self.samples[beside]
        return (everybody if _ALONE in less else less) - {_ALONE}

    def loss(self, beside: str) -> tuple[float, int] | None:
        """Return (the part of its speed that is lost beside somebody, samples it stands on); None: too little is known."""
        alone, together = self.samples.get(_ALONE, ()), self.samples.get(beside, ())
        if not _enough(alone) or not _enough(together):
            return None
        (free, spread), (slow, other) = _middle(alone), _middle(together)
        if free <= 0:
            return None
        lost = 1.0 - slow / free
        sure = lost > SURE * sqrt(spread**2 + other**2) / free
        return (lost if sure else 0.0), len(together)


def _enough(samples: Iterable[Sample]) -> bool:
    found = tuple(samples)
    return len(found) >= LEAST and len({one.episode for one in found}) >= EPISODES


def _middle(samples: Iterable[Sample]) -> tuple[float, float]:
    """Return (median, its standard error) of speeds; 1.4826 makes a deviation of the MAD, 1.2533 an error of the median."""
    speeds = [one.speed for one in samples]
    middle = median(speeds)
    deviation = 1.4826 * median(abs(one - middle) for one in speeds)
    return middle, 1.2533 * deviation / sqrt(len(speeds))


class Interference:
    """The evidence of one leader. Call `look` every few seconds from one task."""

    def __init__(self, metrics: OperatorMetrics, records: Records) -> None:
        self._metrics = metrics
        self._records = records
        self._seen: dict[str, _Seen] = {}  # by pod UID
        self._evidence: dict[Cell, Evidence] = {}
        self._names: dict[str, str] = {}  # of subjects, for people
        self._learned: dict[tuple[str, str], int] = {}  # thousandths

    async def look(self, snapshot: Snapshot, store: Store, now: float) -> None:
        """Take what runtimes have said since the last look, and tell the store what that teaches."""
        touched: set[tuple[str, str]] = set()
        pods: set[str] = set()
        async for state in in_slices(list(snapshot.nodes.values())):
            sharing = [pod for pod in state.pods.values() if pod.claim is not None and _shares(pod.claim)]
            pods |= {pod.uid for pod in sharing}
            fresh = [pod for pod in sharing if self._note(pod, snapshot)]
            for pod in fresh:
                touched |= self._sample(pod, state, snapshot, now)
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in pods}
        self._forget(now, touched)
        for pair in touched:
            self._learn(pair, store)
        self._show()

    def learned(self) -> Mapping[tuple[str, str], int]:
        """Return what is believed now, in thousandths."""
        return dict(self._learned)

    # -- samples --------------------------------------------------------------------------------------------

    def _note(self, pod: Pod, snapshot: Snapshot) -> bool:
        """Take a runtime's answer; return whether it is a new one that a sample may end with."""
        report, heard = self._records.report(pod.uid), self._records.heard_at(pod.uid)
        workload = snapshot.workloads.get(pod.claim.workload) if pod.claim is not None else None
        if report is None or workload is None or pod.phase is not PodPhase.BOUND or not subject_of(workload):
            self._seen.pop(pod.uid, None)
            return False
        seen = self._seen.get(pod.uid)
        active = _active(workload, report)
        if seen is None:
            self._seen[pod.uid] = _Seen(
                heard, _done(workload, report), _load(workload, report), active, heard
            )
            return False
        if seen.active is not active:
            seen.active, seen.since = active, heard
        return heard > seen.at

    def _sample(self, pod: Pod, state: NodeState, snapshot: Snapshot, now: float) -> set[tuple[str, str]]:
        """Take the speed of a replica since its last answer, if it is one that compares; return the pairs it bears on."""
        claim, report, seen = pod.claim, self._records.report(pod.uid), self._seen[pod.uid]
        workload = snapshot.workloads.get(claim.workload) if claim is not None else None
        if claim is None or report is None or workload is None:
            return set()
        trains = workload.kind is WorkloadKind.FINE_TUNE
        heard, done, load = self._records.heard_at(pod.uid), _done(workload, report), _load(workload, report)
        passed, grown = heard - seen.at, done - seen.done
        if trains and not grown and passed < LONGEST_STEP:
            return set()  # in the middle of a step
        steady = seen.active and seen.since <= seen.at and load == seen.load
        within = SHORTEST <= passed <= (LONGEST_STEP if trains else LONGEST)
        begun, seen.at, seen.done, seen.load = seen.at, heard, done, load
        device = state.device(claim.devices[0])
        if not (steady and within and grown > 0) or device is None:
            return set()
        beside = self._beside(pod, device, state, snapshot, begun)
        if beside is None:
            self._metrics.interference_samples.labels("unclear").inc()
            return set()
        if beside != seen.beside:
            seen.beside, seen.episode = beside, seen.episode + 1
        self._metrics.interference_samples.labels("together" if beside else "alone").inc()
        subject = self._name(workload)
        cell = Cell(subject, device.device.product, load)
        evidence = self._evidence.setdefault(cell, Evidence())
        evidence.add(beside, Sample(now, grown / passed, hash((pod.uid, seen.episode))))
        return {(subject, other) for other in evidence.samples if other and beside in {other, _ALONE}}

    def _beside(
        self,
        pod: Pod,
        device: DeviceState,
        state: NodeState,
        snapshot: Snapshot,
        begun: float,
    ) -> str | None:
        """Return beside whom a replica worked all along: the one other that did, `_ALONE` where none did; None: it is unclear."""
        if device.strange_bytes or device.foreign:
            return None
        found = []
        for other in state.pods.values():
            held = other.claim
            if other.key == pod.key or held is None or device.uuid not in held.devices or held.asleep:
                continue
            if other.phase is PodPhase.FINISHED:
                continue
            seen, workload = self._seen.get(other.uid), snapshot.workloads.get(held.workload)
            if seen is None or workload is None or seen.since > begun:
                return None  # it does not tell, or began or ended meanwhile
            if seen.active:
                found.append(self._name(workload))
        if len(found) > 1:
            return None
        return found[0] if found else _ALONE

    def _name(self, workload: Workload) -> str:
        subject = subject_of(workload)
        kind = "" if workload.kind is WorkloadKind.INFERENCE else f" ({workload.kind})"
        self._names[subject] = f"{without_secrets(workload.model.uri)}{kind}"
        return subject

    # -- what they teach ------------------------------------------------------------------------------------

    def _forget(self, now: float, touched: set[tuple[str, str]]) -> None:
        """Drop old evidence; what stood on it is worked out anew."""
        for cell, evidence in list(self._evidence.items()):
            touched |= {(cell.subject, beside) for beside in evidence.forget(now - WEEK)}
            if not evidence.samples:
                del self._evidence[cell]

    def _learn(self, pair: tuple[str, str], store: Store) -> None:
        """Work out what one loses beside the other: the mean over cells, by the samples they stand on."""
        found = [
            loss
            for cell, evidence in self._evidence.items()
            if cell.subject == pair[0] and (loss := evidence.loss(pair[1])) is not None
        ]
        count = sum(samples for _, samples in found)
        milli = sum(lost * samples for lost, samples in found) / count * _MILLI if count else 0.0
        before = self._learned.get(pair, 0)
        if milli >= _STEP and abs(milli - before) < _STEP:
            return  # not worth a new plan
        after = min(MOST, int(milli) // _STEP * _STEP) if milli >= _STEP else 0
        if after:
            self._learned[pair] = after
        else:
            self._learned.pop(pair, None)
        store.set_interference(*pair, after)

    def _show(self) -> None:
        self._metrics.interference.clear()
        largest = sorted(self._learned.items(), key=lambda one: (-one[1], one[0]))[:SHOWN]
        for (subject, beside), milli in largest:
            labels = self._names.get(subject, subject), self._names.get(beside, beside)
            self._metrics.interference.labels(*labels).set(milli / _MILLI)


def _shares(claim: Claim) -> bool:
    return claim.sharing is Sharing.SHARED and len(claim.devices) == 1


def _active(workload: Workload, report: RuntimeStatus) -> bool:
    if report.state is not RuntimeState.READY:
        return False
    return workload.kind is WorkloadKind.FINE_TUNE or report.requests.running > 0


def _done(workload: Workload, report: RuntimeStatus) -> int:
    """Return the tokens it has generated, or trained on."""
    if workload.kind is WorkloadKind.FINE_TUNE:
        return report.requests.prompt_tokens
    return report.requests.generation_tokens


def _load(workload: Workload, report: RuntimeStatus) -> int:
    """Return the requests in progress as a power of two: 1, 2 (two or three), 3 (four to seven), …; 0 of training."""
    return 0 if workload.kind is WorkloadKind.FINE_TUNE else report.requests.running.bit_length()

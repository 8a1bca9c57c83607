"""What models at work draw on devices of their own, read off the devices' energy counters.

A device that one serving claim holds as a whole, and that was busy for most of a minute, says what its model draws on
that product at that precision: energy / time of that minute. After `PROVEN_MINUTES` such minutes the highest of them
counts, an eighth more than it, and never falls again: what a busier hour draws is not known before it comes. Shares of
devices teach nothing, because nobody can tell whose energy it was.

The evidence is this process's own; a restart collects it anew, what was learned stands in the ModelProfile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from llmos_operator.state.types import FULL_MILLI, PodPhase, Sharing, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.telemetry import Reading
    from llmos_operator.state.types import Claim, Device, Workload, WorkloadKey

MINUTE: Final = 60.0
PROVEN_MINUTES: Final = 30
BUSY_PERCENT: Final = 50  # mean of a minute from which it counts as one at work
_MARGIN_SHARE: Final = 8
_NEWS_SHARE: Final = 20  # a twentieth more than known is news


class Subject(NamedTuple):
    """Whose draw it is."""

    uri: str
    revision: str
    format: str
    product: str


class Finding(NamedTuple):
    """What a model is expected to draw on one device of a product from now on."""

    subject: Subject
    milliwatts: int


@dataclass(slots=True)
class _Minute:
    """The present minute of one device: its counter as the minute began, and what was told since."""

    begun: float  # receiver's epoch seconds
    millijoules: int
    last: int
    percents: int = 0
    samples: int = 0


@dataclass(slots=True)
class _Evidence:
    minutes: int = 0
    highest: int = 0  # milliwatts
    told: int = 0


class Drawing:
    """The evidence of one leader. One caller; `sampled` for each batch of telemetry."""

    def __init__(self) -> None:
        self._minutes: dict[str, _Minute] = {}  # by device UUID
        self._evidence: dict[Subject, _Evidence] = {}

    def sampled(
        self,
        readings: Iterable[Reading],
        state: NodeState | None,
        workload_of: Callable[[WorkloadKey], Workload | None],
        now: float,
    ) -> list[Finding]:
        """Take the samples of a node's devices, and return what they teach that is news.

        ``state`` says who holds them; None: nobody is to be judged by it yet. ``now`` in epoch seconds.
        """
        found: list[Finding] = []
        for reading in readings:
            energy = reading.energy_millijoules
            if energy is None or reading.busy_percent is None:
                self._minutes.pop(reading.uuid, None)
                continue
            minute = self._minutes.get(reading.uuid)
            if minute is None or energy < minute.last or now - minute.begun > 2 * MINUTE:
                # A counter that fell has begun anew, and a gap in the samples says nothing of who drew meanwhile.
                self._minutes[reading.uuid] = _Minute(now, energy, energy)
                continue
            minute.last = energy
            minute.percents += reading.busy_percent
            minute.samples += 1
            if now - minute.begun >= MINUTE:
                subject = _subject(state, workload_of, reading.uuid, minute.begun) if state else None
                found += self._close(subject, minute, now) if subject else ()
                self._minutes[reading.uuid] = _Minute(now, energy, energy)
        return found

    def _close(self, subject: Subject, minute: _Minute, now: float) -> list[Finding]:
        if minute.percents < BUSY_PERCENT * minute.samples:
            return []
        milliwatts = int((minute.last - minute.millijoules) / (now - minute.begun))
        evidence = self._evidence.setdefault(subject, _Evidence())
        evidence.minutes += 1
        evidence.highest = max(evidence.highest, milliwatts)
        draw = evidence.highest + evidence.highest // _MARGIN_SHARE
        if evidence.minutes < PROVEN_MINUTES or draw <= evidence.told + evidence.told // _NEWS_SHARE:
            return []
        evidence.told = draw
        return [Finding(subject, draw)]


def _subject(
    state: NodeState, workload_of: Callable[[WorkloadKey], Workload | None], uuid: str, since: float
) -> Subject | None:
    """Return whose draw a device's was since a time: of the one serving claim that held it as a whole all along."""
    one = state.device(uuid)
    if one is None or one.foreign or one.claims != 1 or one.strange_bytes:
        return None
    pod = next((p for p in state.pods.values() if p.claim is not None and uuid in p.claim.devices), None)
    if pod is None or pod.claim is None or pod.phase is not PodPhase.BOUND or not pod.ready:
        return None
    workload = workload_of(pod.claim.workload)
    if workload is None or workload.kind is not WorkloadKind.INFERENCE or not _alone(pod.claim, since):
        return None
    return _of(workload.model.uri, workload.model.revision, pod.claim, one.device)


def _alone(claim: Claim, since: float) -> bool:
    whole = claim.sharing is not Sharing.SHARED and claim.compute_milli == FULL_MILLI
    return whole and 0 < claim.bound_at <= since


def _of(uri: str, revision: str, claim: Claim, device: Device) -> Subject | None:
    return Subject(uri, revision, claim.format, device.product) if claim.format and device.product else None

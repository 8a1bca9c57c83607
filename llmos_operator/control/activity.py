"""Whether workloads work or idle, and what says so.

    busy      requests are in progress or waiting, tokens or steps were done since the last look, a replica starts, or a
              device that it has for itself works (`working`)
    idle      nothing of that for `QUIET_SECONDS`, and somebody can tell: its runtimes tell of requests, or all of its
              devices are its own and are quiet
    unknown   nobody can tell: figures are out of date, or a runtime of another kind on devices that tell nothing

Busy counts at once. A shared device that is quiet is quiet for all who share it; one that works says nothing of any of
them. Idle and busy are said in the status only once the workload had been idle for `TOLD_SECONDS`: what comes and goes
every minute is no news.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.control.working import QUIET_SECONDS, Work
from llmos_operator.manifests.observed import Activity
from llmos_operator.observability.slices import in_slices
from llmos_operator.state.types import PodPhase, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.control.demand import DemandBook
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.records import Record, Records
    from llmos_operator.control.working import DeviceWork, Judgement
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Pod, Workload

TOLD_SECONDS: Final = 300.0
FRESH_SECONDS: Final = 30.0  # three polls of a runtime that serves
_SERVING: Final = frozenset({RuntimeState.READY, RuntimeState.DRAINING})


class Doing(StrEnum):
    """What a workload does."""

    BUSY = "Busy"
    IDLE = "Idle"
    UNKNOWN = "Unknown"


class Seen(NamedTuple):
    """What was found at one look. `sign`: requests, progress, start, sm, dram, power, asleep or none."""

    doing: Doing
    sign: str
    evidence: str


@dataclass(slots=True)
class _Known:
    """What is remembered of one workload."""

    seen: Seen
    since: float  # epoch seconds
    busy_at: float  # monotonic
    done: dict[str, int] = field(default_factory=dict)  # pod UID -> tokens or steps at the last look


class Activities:
    """The activity of all workloads with pods. Call `look` every few seconds from one task."""

    def __init__(
        self, metrics: OperatorMetrics, records: Records, demand: DemandBook, work: DeviceWork
    ) -> None:
        self._metrics = metrics
        self._records = records
        self._demand = demand
        self._work = work
        self._known: dict[str, _Known] = {}  # by workload UID

    async def look(self, snapshot: Snapshot, now: float, monotonic: float) -> list[str]:
        """Judge every workload as of ``now`` (epoch seconds); return those whose status has to say something new."""
        self._work.forget(d.uuid for state in snapshot.nodes.values() for d in state.devices)
        known: dict[str, _Known] = {}
        news: list[str] = []
        async for workload in in_slices(list(snapshot.workloads.values())):
            pods = tuple(p for p in snapshot.pods_of.get(workload.uid, ()) if p.phase is PodPhase.BOUND)
            if not pods:
                continue
            former = self._known.get(workload.uid)
            known[workload.uid] = self._judge(former, workload, pods, snapshot, now, monotonic)
        self._known = known
        for uid in known:
            record = self._records.by_uid(uid)
            if record is not None and self.news(record, now) is not None:
                news.append(record.key)
        self._show()
        return news

    def of(self, workload_uid: str) -> Activity | None:
        """Return what a workload does, None for one without pods, or not looked at yet."""
        known = self._known.get(workload_uid)
        return None if known is None else Activity(known.seen.doing.value, known.since, known.seen.evidence)

    def idle(self, workload_uid: str) -> bool:
        """Return whether this process has seen a workload idle."""
        known = self._known.get(workload_uid)
        return known is not None and known.seen.doing is Doing.IDLE

    def working(self, workload_uid: str) -> str:
        """Return what shows that a workload works though nobody tells of a request; "" where nothing does."""
        known = self._known.get(workload_uid)
        if known is None or known.seen.doing is not Doing.BUSY or known.seen.sign in {"requests", "start"}:
            return ""
        return known.seen.evidence

    def news(self, record: Record, now: float) -> Activity | None:
        """Return what the status of a workload has to say that it does not say yet, None if nothing."""
        found, said = self.of(record.uid), (record.status.get("activity") or {}).get("state")
        if found is None or found.state == said:
            return None
        if found.state == Doing.IDLE:
            return found if now - found.since >= TOLD_SECONDS else None
        return found if said == Doing.IDLE else None

    # -- one workload ---------------------------------------------------------------------------------------

    def _judge(
        self,
        former: _Known | None,
        workload: Workload,
        pods: tuple[Pod, ...],
        snapshot: Snapshot,
        now: float,
        monotonic: float,
    ) -> _Known:
        found, done = self._find(former, workload, pods, snapshot, now, monotonic)
        if former is None:
            unknown = Seen(Doing.UNKNOWN, "none", "it has not been watched for long enough")
            first = unknown if found.doing is Doing.IDLE else found
            return _Known(first, now, monotonic, done)
        busy_at = monotonic if found.doing is Doing.BUSY else former.busy_at
        if found.doing is Doing.IDLE and monotonic - busy_at < QUIET_SECONDS:
            found = former.seen
        if found.doing is former.seen.doing:  # the evidence of its beginning stays: it is no news every time
            return _Known(former.seen, former.since, busy_at, done)
        return _Known(found, now, busy_at, done)

    def _find(
        self,
        former: _Known | None,
        workload: Workload,
        pods: tuple[Pod, ...],
        snapshot: Snapshot,
        now: float,
        monotonic: float,
    ) -> tuple[Seen, dict[str, int]]:
        """Return what a workload does at this moment, and what its pods have done so far."""
        reports = {
            uid: report
            for uid, report in self._records.reports_of(workload.uid).items()
            if now - self._records.heard_at(uid) <= FRESH_SECONDS
        }
        done = {uid: _done(report) for uid, report in reports.items()}
        before = former.done if former is not None else done
        grown = any(count > before.get(uid, 0) for uid, count in done.items())
        asked = self._asked(workload, reports, now)
        if asked:
            return Seen(Doing.BUSY, "requests", f"{asked} requests in progress or waiting"), done
        if grown:
            serves = workload.kind is WorkloadKind.INFERENCE
            words = "it answered requests" if serves else "it came along with its work"
            return Seen(Doing.BUSY, "requests" if serves else "progress", words), done
        awake = [pod for pod in pods if pod.claim is not None and not pod.claim.asleep]
        if not awake:
            return Seen(Doing.IDLE, "asleep", "every replica sleeps"), done
        devices = self._devices(awake, snapshot, monotonic)
        works = next((one for one, own in devices if own and one.work is Work.BUSY), None)
        if works is not None and works.sign is not None:
            return Seen(Doing.BUSY, works.sign.value, f"a device of its own works: {works.evidence}"), done
        if not all(pod.ready for pod in awake):
            return Seen(Doing.BUSY, "start", "a replica starts"), done
        return _at_rest(workload, awake, reports, devices), done

    def _asked(self, workload: Workload, reports: Mapping[str, RuntimeStatus], now: float) -> int:
        told = self._demand.demand(workload.key, now)
        running = sum(one.requests.running + one.requests.waiting for one in reports.values())
        return max(told.waiting + told.running, running)

    def _devices(
        self, pods: Iterable[Pod], snapshot: Snapshot, monotonic: float
    ) -> list[tuple[Judgement, bool]]:
        """Return what each device of the pods does, and whether nobody else holds any of it."""
        found = []
        for pod in pods:
            state = snapshot.nodes.get(pod.node)
            for uuid in pod.claim.devices if pod.claim is not None and state is not None else ():
                device = state.device(uuid) if state is not None else None
                if device is not None:
                    own = device.claims == 1 and not device.foreign and not device.strange_bytes
                    found.append((self._work.judge(device, monotonic), own))
        return found

    def _show(self) -> None:
        found = Counter((one.seen.doing.value, one.seen.sign) for one in self._known.values())
        self._metrics.activity.clear()
        for (doing, sign), count in found.items():
            self._metrics.activity.labels(doing, sign).set(count)


def _at_rest(
    workload: Workload,
    pods: Iterable[Pod],
    reports: Mapping[str, RuntimeStatus],
    devices: list[tuple[Judgement, bool]],
) -> Seen:
    """Return what a workload does of which nothing says that it works."""
    evidence = next((one.evidence for one, _ in devices if one.work is Work.QUIET), "")
    quiet = bool(devices) and all(one.work is Work.QUIET for one, _ in devices)
    heads = [pod for pod in pods if pod.claim is not None and not pod.claim.member]
    told = all(pod.uid in reports and reports[pod.uid].state in _SERVING for pod in heads)
    if workload.kind is WorkloadKind.INFERENCE and told and workload.engine != "custom":
        return Seen(Doing.IDLE, "requests", "no request" + (f"; {evidence}" if evidence else ""))
    if quiet:
        sign = next(one.sign for one, _ in devices if one.sign is not None)
        return Seen(Doing.IDLE, sign.value, f"its devices are quiet: {evidence}")
    return Seen(Doing.UNKNOWN, "none", "neither its runtime nor its devices tell what it does")


def _done(report: RuntimeStatus) -> int:
    """Return what a pod has done so far, in tokens or steps."""
    steps = report.progress.done if report.progress is not None else 0
    return report.requests.prompt_tokens + report.requests.generation_tokens + steps

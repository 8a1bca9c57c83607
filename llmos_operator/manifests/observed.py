"""What a status is computed from: one value per workload, gathered by the control loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.state.types import Learned, PodPhase, WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.scheduler.plan import Decision
    from llmos_operator.state.replicas import Replica
    from llmos_operator.state.types import Hold, Pod, Workload

Json = dict[str, Any]
_LEAVING = frozenset({PodPhase.TERMINATING, PodPhase.FINISHED})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a workload cannot be accepted as it is."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of a replica."""

    reason: str
    message: str
    time: float  # epoch seconds
    exit_code: int | None = None
    generation: int = 0  # of the spec it happened with


@dataclass(frozen=True, slots=True)
class Preemption:
    """The last time a place was taken from the workload."""

    by: str
    action: str
    reason: Reason
    message: str
    time: float


@dataclass(frozen=True, slots=True)
class Tries:
    """How often the program of work that ends has failed, and the pod (its UID) whose failure was counted last."""

    failures: int = 0
    last_pod: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """How good a replica's place was when it was chosen; only comparable where the same score chose it."""

    value: int = 0
    by: str = ""  # a ScoreKind


@dataclass(frozen=True, slots=True)
class Scaling:
    """What decides the number of replicas right now."""

    active: bool = False
    reason: Reason = Reason.FIXED
    message: str = "The number of replicas is fixed by spec.replicas."


@dataclass(frozen=True, slots=True)
class Activity:
    """Whether a workload works, and what says so."""

    state: str  # Busy, Idle or Unknown
    since: float  # epoch seconds
    evidence: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What a workload has had since it was created, as of `time`."""

    gpu_seconds: int = 0  # shared devices by the part that is held
    energy_joules: int = 0
    tokens: int = 0
    since: float = 0.0  # epoch seconds when this process began to count it
    time: float = 0.0  # epoch seconds
    device_seconds: int = 0  # every device counted whole


@dataclass(frozen=True, slots=True)
class Observed:
    """One workload as everything known about it says."""

    workload: Workload  # replicas: those wanted now
    now: float
    previous: Json = field(default_factory=dict)  # the status as it stands in the API
    pods: tuple[Pod, ...] = ()
    replicas: Mapping[str, Replica] = field(default_factory=dict)  # by pod key
    reports: Mapping[str, RuntimeStatus] = field(default_factory=dict)  # by pod UID
    decision: Decision | None = None
    refusal: Refusal | None = None
    hold: Hold | None = None
    failure: Failure | None = None
    preemption: Preemption | None = None
    ended: Refusal | None = None  # its work has ended, or its time is over
    tries: Tries = field(default_factory=Tries)
    scaling: Scaling = field(default_factory=Scaling)
    degraded: Refusal | None = None  # a device's or telemetry's trouble
    scores: Mapping[str, Score] = field(default_factory=dict)  # by pod key
    products: Mapping[str, str] = field(default_factory=dict)  # device UUID -> product
    usage: Usage | None = None
    activity: Activity | None = None  # where it is to be said
    learned: Learned = field(default_factory=Learned)
    estimated_bytes: int = 0
    profile: str = ""
    priority: int = 0
    queue: str = ""
    url: str = ""
    selector: str = ""

    @property
    def serves(self) -> bool:
        """Whether it is to serve; False for work that ends."""
        return self.workload.kind is WorkloadKind.INFERENCE

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.workload.finished or self.ended is not None

    def report_of(self, pod: Pod) -> RuntimeStatus | None:
        """Return the runtime's last report of a pod."""
        return self.reports.get(pod.uid)

    @property
    def live(self) -> tuple[Pod, ...]:
        """Pods that are not on their way out."""
        return tuple(pod for pod in self.pods if pod.deletion_at == 0.0 and pod.phase not in _LEAVING)

    @property
    def current(self) -> tuple[Pod, ...]:
        """Live pods that were built from the spec as it is now."""
        return tuple(pod for pod in self.live if pod.spec_hash in {"", self.workload.template_hash})

    @property
    def live_count(self) -> int:
        """Replicas of which every pod is live."""
        return self._whole(self.live)

    @property
    def current_count(self) -> int:
        """Replicas of which every pod is live and was built from the spec as it is now."""
        return self._whole(self.current)

    @property
    def ready_count(self) -> int:
        """Replicas that serve: every pod of them is ready."""
        return self._whole(tuple(pod for pod in self.live if pod.ready))

    @property
    def all_ready(self) -> bool:
        """Whether there are live pods and every one of them is ready."""
        return bool(self.live) and all(pod.ready for pod in self.live)

    def _whole(self, pods: tuple[Pod, ...]) -> int:
        members = self.workload.members
        if members == 1:
            return len(pods)
        counts = Counter(pod.claim.ordinal for pod in pods if pod.claim is not None)
        return sum(count == members for count in counts.values())

    @property
    def asleep_count(self) -> int:
        """Live pods whose weights are in host memory: their runtimes say so, or their claims until they have been asked."""
        return sum(self._sleeps(pod) for pod in self.live)

    def _sleeps(self, pod: Pod) -> bool:
        report = self.report_of(pod)
        if report is None:
            return pod.claim is not None and pod.claim.asleep
        return report.state is RuntimeState.ASLEEP

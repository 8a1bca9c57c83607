"""What the scheduler decides: a Plan of actions, waits and one decision per workload.

Actions are what the executor turns into writes; each carries everything needed to carry it out, a reason of the closed
list and an explanation for people. Waits and decisions are what status and `explain` show. A plan never changes after
it was made; `version` says on which snapshot it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from llmos_operator.api import places
from llmos_operator.state.types import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.conditions import Reason
    from llmos_operator.api.mig import MigProfile
    from llmos_operator.state.types import Claim, PodKey, Sleeping, Workload, WorkloadKey

KEPT_SECONDS: Final = 300.0  # for which a moved replica's place is kept after its pod should be gone
_MILLISECONDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Bind:
    """Create the pod of one replica on a node. `claim` holds pod, node, devices, bytes, format and context.

    `workload` is the value the decision was made on; its `spec` is what the pod is built from.
    """

    workload: Workload
    claim: Claim
    score: int
    reason: Reason
    explanation: str
    estimated_bytes: int = 0  # per device, as sizing predicted it (the claim may reserve more)
    gang: str = ""  # binds of one plan that name the same gang are carried out all or none
    scored_by: str = ""  # the ScoreKind that `score` is of


@dataclass(frozen=True, slots=True)
class Evict:
    """Take a pod away. `preemptor` is the workload it makes room for, "" for repairs.

    `force` means the pod can no longer run (its node or device is gone): delete it rather than ask the eviction API.
    """

    pod: PodKey
    pod_uid: str
    node: str
    victim: WorkloadKey
    victim_uid: str
    cost: int  # expected loss in milliseconds of device time
    reason: Reason  # PREEMPTED, RECLAIMED, CALLED_BACK, GPU_UNHEALTHY or NODE_LOST
    explanation: str
    preemptor: WorkloadKey = ""
    force: bool = False
    fewer: bool = (
        False  # an elastic workload does with one replica less: nothing takes its place until a Grow
    )


@dataclass(frozen=True, slots=True)
class Shrink:
    """Lower the memory of a running replica to `bytes_per_device` through the runtime's control API.

    Its pod stays. Its KV cache becomes smaller, and with a `format` its weights do, too.
    """

    pod: PodKey
    pod_uid: str
    node: str
    victim: WorkloadKey
    victim_uid: str
    bytes_per_device: int
    cost: int  # expected loss in milliseconds of device time
    reason: Reason
    explanation: str
    preemptor: WorkloadKey = ""
    format: str = ""  # narrower than its own, that it serves at from then on; "": its own
    loan: bool = False  # it idles and lends it: `preemptor` stands in it until it is called back


@dataclass(frozen=True, slots=True)
class Sleep:
    """Move a replica's weights to host memory. `preemptor` is the workload it makes room for, "" where it is idle."""

    pod: PodKey
    pod_uid: str
    node: str
    victim: WorkloadKey
    victim_uid: str
    sleeping: Sleeping  # what it keeps, and what of the node's memory it takes
    cost: int  # expected loss in milliseconds of device time
    reason: Reason
    explanation: str
    preemptor: WorkloadKey = ""


@dataclass(frozen=True, slots=True)
class Wake:
    """Let a replica that sleeps serve again where it was: there is room for it."""

    pod: PodKey
    pod_uid: str
    node: str
    workload: WorkloadKey
    workload_uid: str
    reason: Reason
    explanation: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Give a replica that came down what it was bound with, `bytes_per_device`, back: there is room, and nobody waits."""

    pod: PodKey
    pod_uid: str
    node: str
    workload: WorkloadKey
    workload_uid: str
    bytes_per_device: int
    reason: Reason
    explanation: str
    loan: bool = False  # it had lent it


@dataclass(frozen=True, slots=True)
class Grow:
    """Let an elastic workload that gave up replicas have up to `replicas` again; binds of the same plan place the new ones."""

    workload: WorkloadKey
    workload_uid: str
    replicas: int
    reason: Reason
    explanation: str


@dataclass(frozen=True, slots=True)
class Move:
    """Restart a replica elsewhere so that `beneficiary` can start: evict `pod`; `target`, its place afterwards, is held until then."""

    pod: PodKey
    pod_uid: str
    node: str
    workload: WorkloadKey
    workload_uid: str
    target: Claim
    cost: int
    reason: Reason
    explanation: str
    beneficiary: WorkloadKey = ""

    def place(self, at: float, freed_at: float) -> Target:
        """Return where the replica goes, as it is kept: moved `at`, its pod gone by `freed_at` (epoch seconds)."""
        claim = self.target
        return Target(
            node=claim.node,
            devices=claim.devices,
            format=claim.format,
            max_model_len=claim.max_model_len,
            kv_tokens=claim.kv_tokens,
            at=round(at * _MILLISECONDS) / _MILLISECONDS,
            until=round((freed_at + KEPT_SECONDS) * _MILLISECONDS) / _MILLISECONDS,
            beneficiary=self.beneficiary,
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """Ask mig-manager to cut the GPUs of a node, which nobody uses, into a layout; or give up that it was asked (`abandoned`)."""

    node: str
    layout: str
    counts: tuple[tuple[MigProfile, int], ...]  # instances of each GPU
    workloads: tuple[WorkloadKey, ...]  # that wait for it
    reason: Reason
    explanation: str
    abandoned: bool = False


Action: TypeAlias = Bind | Evict | Shrink | Restore | Sleep | Wake | Move | Grow | Cut


@dataclass(frozen=True, slots=True)
class Rejection:
    """One filter's count of nodes it turned away. `nearest` is the smallest change that would help."""

    reason: str  # one CamelCase word, the filter's own: "InsufficientDeviceMemory"
    nodes: int
    nearest: str = ""  # "3 nodes short by 1.2 GiB at int8"


@dataclass(frozen=True, slots=True)
class Wait:
    """Replicas of a workload that stay pending, and why."""

    workload: WorkloadKey
    workload_uid: str
    replicas: int  # how many of them
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the plan says of one workload that had replicas to place; becomes `status.decision`."""

    workload: WorkloadKey
    workload_uid: str
    generation: int
    reason: Reason  # BOUND when nothing is left to place
    message: str
    candidates: int = 0  # nodes that could take the last replica tried
    rejected: tuple[Rejection, ...] = ()  # most nodes first
    queue: str = ""
    queue_position: int | None = None  # 1 is next; None when nothing waits
    pending: int = 0  # replicas left without a place
    format: str = ""  # of the last size tried
    bytes_per_device: int = 0
    scored_by: str = ""  # the ScoreKind that chose the last node; "" where none was chosen
    reserved: tuple[str, ...] = ()  # nodes on which a place is kept for it
    expected_start: float | None = (
        None  # epoch seconds, in whole minutes: by when it can start there; None: not known
    )
    instead: PodKey = (
        ""  # the replica of an older spec that has to go before one of the present spec can start
    )

    @property
    def told_position(self) -> int | None:
        """The place in the queue as it is told: see `api.places`."""
        return places.told(self.queue_position) if self.queue_position is not None else None

    def tells(self, other: Decision) -> bool:
        """Return whether it tells just what the other tells."""
        if self.queue_position == other.queue_position:
            return self == other
        return self.told_position == other.told_position and self == replace(
            other, queue_position=self.queue_position
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place that is kept for replicas that cannot start yet. No action: the next plans keep it again."""

    workload: WorkloadKey
    workload_uid: str
    nodes: tuple[str, ...]  # one for each pod, in order of ordinal and member
    devices: tuple[str, ...]  # UUIDs
    start: float | None  # epoch seconds: by when it is expected to be free; None: nobody knows
    waits_for: tuple[PodKey, ...]  # pods that have to leave first


@dataclass(frozen=True, slots=True)
class HolderNeed:
    """What has to become of the holder pods of a node so that replicas planned there can start. The next plans say it again."""

    take: int = 0  # devices that shared work waits for, to be taken from the device plugin
    give: int = 0  # units of nvidia.com/gpu that work waits for which needs whole devices


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of one cycle. `actions` are in the order in which they must be carried out."""

    version: int  # of the snapshot
    now: float
    actions: tuple[Action, ...] = ()
    waits: tuple[Wait, ...] = ()
    decisions: Mapping[WorkloadKey, Decision] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()  # in queue order
    interrupted: bool = False  # the budget ran out: call again soon, what is missing was not looked at
    holders: Mapping[str, HolderNeed] = field(default_factory=dict)  # by node

    @property
    def binds(self) -> tuple[Bind, ...]:
        """The Bind actions."""
        return tuple(a for a in self.actions if isinstance(a, Bind))

    @property
    def evictions(self) -> tuple[Evict, ...]:
        """The Evict actions."""
        return tuple(a for a in self.actions if isinstance(a, Evict))

    @property
    def shrinks(self) -> tuple[Shrink, ...]:
        """The Shrink actions."""
        return tuple(a for a in self.actions if isinstance(a, Shrink))

    @property
    def sleeps(self) -> tuple[Sleep, ...]:
        """The Sleep actions."""
        return tuple(a for a in self.actions if isinstance(a, Sleep))

    @property
    def wakes(self) -> tuple[Wake, ...]:
        """The Wake actions."""
        return tuple(a for a in self.actions if isinstance(a, Wake))

    @property
    def displacements(self) -> tuple[Evict | Shrink | Sleep, ...]:
        """What is done to some for others: the Evict and Shrink actions, and the Sleep actions of who is not idle."""
        found = (a for a in self.actions if isinstance(a, Evict | Shrink | Sleep))
        return tuple(a for a in found if not isinstance(a, Sleep) or a.preemptor)

    @property
    def moves(self) -> tuple[Move, ...]:
        """The Move actions."""
        return tuple(a for a in self.actions if isinstance(a, Move))

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The Cut actions."""
        return tuple(a for a in self.actions if isinstance(a, Cut))

    @property
    def grows(self) -> tuple[Grow, ...]:
        """The Grow actions."""
        return tuple(a for a in self.actions if isinstance(a, Grow))

    @property
    def restores(self) -> tuple[Restore, ...]:
        """The Restore actions."""
        return tuple(a for a in self.actions if isinstance(a, Restore))

"""What plans remember of waiting work from one to the next, so that a plan costs what has changed and not what waits.

Nothing here decides: every answer is the one a plan without memory would work out, and is given again only while all it
was made from is the same value (values never change, so the same object is enough). Of each workload only what the
last plan that looked at it needed is kept.

    shape      sizes and requests                   of workload, its namespace's sharing domain, its model's profile, the policy
    likeness   a number that workloads share        of whatever else decides whether one more like it has to be tried (`attempt`)
    victims    who may be displaced, and how        of what `victim_index` says
    word       the Wait and the Decision            of workload, queue, replicas, failure, kept place, and place in the queue
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.scheduler.claims import request_of, signature
from llmos_operator.scheduler.kept import Kept
from llmos_operator.scheduler.plan import Decision, Wait
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.scheduler.victim_index import Roll
from llmos_operator.state.finished import devices_of
from llmos_operator.state.types import WorkloadKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.scheduler.failure import Failure
    from llmos_operator.scheduler.plan import Reservation
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.sizing import Size, Sizes
    from llmos_operator.state.types import PodKey, Profile, Workload

_SPARE: Final = 1000  # shapes of work that has gone, kept before all are worked out anew
_MINUTE: Final = 60.0


@dataclass(slots=True)
class Shape:
    """The sizes and requests of all workloads that ask for the same."""

    sizes: Sizes
    options: tuple[tuple[Size, Request], ...]
    number: int  # of the options: other models of the same size share it


@dataclass(frozen=True, slots=True)
class _Known:
    """A workload's shape and likeness, and what they were made from."""

    workload: Workload
    domain: str
    profile_name: str
    profile: Profile | None
    shape: Shape
    likeness: int


@dataclass(slots=True)
class _Word:
    """What was said of a workload that waits, and what it was made from."""

    workload: Workload
    failure: Failure
    place: Reservation | None
    wait: Wait
    decision: Decision


class Recall:
    """The memory of one plan after the other; a new one makes the same plans, only slower."""

    def __init__(self) -> None:
        self._policy = Policy()
        self._forget()

    def _forget(self) -> None:
        self._known: Kept[_Known] = Kept()
        self._words: Kept[_Word] = Kept()
        self.victims = Roll()
        self._shapes: dict[tuple[object, ...], tuple[Profile | None, Shape]] = {}
        self._numbers: dict[tuple[tuple[Size, Request], ...], int] = {}
        self._likenesses: dict[tuple[object, ...], int] = {}
        self._compared: dict[tuple[int, int], tuple[Failure, Failure, bool]] = {}

    def begin(self, policy: Policy) -> None:
        """Begin a plan with a policy."""
        kept = 2 * len(self._known) + _SPARE
        crowded = any(len(one) > kept for one in (self._shapes, self._numbers, self._likenesses))
        if crowded or (self._policy is not policy and self._policy != policy):
            self._forget()
        self._policy = policy
        self._known.turn()
        self._words.turn()
        self._compared = {}

    # -- what is asked for ----------------------------------------------------------------------------------

    def shape(self, workload: Workload, domain: str, profiles: Mapping[str, Profile]) -> Shape:
        """Return sizes and requests of a workload of a sharing domain, shared by all that ask for the same."""
        return self._of(workload, domain, profiles).shape

    def standing(self, workload: Workload, domain: str, profiles: Mapping[str, Profile]) -> tuple[Shape, int]:
        """Return the same with the workload's likeness."""
        known = self._of(workload, domain, profiles)
        return known.shape, known.likeness

    def _of(self, workload: Workload, domain: str, profiles: Mapping[str, Profile]) -> _Known:
        known = self._known.get(workload.key)
        if (
            known is None
            or known.workload is not workload
            or known.domain != domain
            or profiles.get(known.profile_name) is not known.profile
        ):
            name = profile_name(workload.model.uri, workload.model.revision)
            profile = profiles.get(name)
            shape = self._shape(workload, domain, profile)
            likeness = self._likenesses.setdefault(_likeness(workload), len(self._likenesses))
            known = _Known(workload, domain, name, profile, shape, likeness)
        self._known.put(workload.key, known)
        return known

    def _shape(self, workload: Workload, domain: str, profile: Profile | None) -> Shape:
        key = signature(workload, domain)
        found = self._shapes.get(key)
        if found is not None and found[0] is profile:
            return found[1]
        policy = self._policy
        known = sizes(workload, profile, policy)
        options = tuple((size, request_of(workload, size, policy, domain, profile)) for size in known.sizes)
        number = self._numbers.setdefault(options, len(self._numbers))
        shape = Shape(known, options, number)
        self._shapes[key] = profile, shape
        return shape

    # -- what is said ---------------------------------------------------------------------------------------

    def word(
        self,
        pending: Pending,
        waiting: int,
        failure: Failure,
        place: Reservation | None,
        instead: PodKey = "",
    ) -> tuple[Wait, Decision]:
        """Return what is said of replicas that wait; the place in the queue is not settled yet (`placed`)."""
        workload = pending.workload
        known = self._words.get(workload.key)
        if (
            known is None
            or known.workload is not workload
            or known.wait.replicas != waiting
            or known.decision.queue != pending.queue
            or known.place != place
            or known.decision.instead != instead
            or not self._same(known.failure, failure)
        ):
            wait, decision = say(pending, waiting, failure, place, instead)
            known = _Word(workload, failure, place, wait, decision)
        self._words.put(workload.key, known)
        return known.wait, known.decision

    def placed(self, decision: Decision, position: int) -> Decision:
        """Return a decision with its workload's place in the queue."""
        if decision.queue_position == position:
            return decision
        found = _placed(decision, position)
        known = self._words.get(decision.workload)
        if known is not None and known.decision is decision:
            known.decision = found
        return found

    def _same(self, one: Failure, other: Failure) -> bool:
        """Return whether two failures say the same; those of a whole class are compared once in a plan."""
        if one is other:
            return True
        key = (id(one), id(other))
        found = self._compared.get(key)
        if found is None:  # both are kept: else their numbers might come to stand for others
            found = self._compared[key] = one, other, one == other
        return found[2]


def say(
    pending: Pending, waiting: int, failure: Failure, place: Reservation | None, instead: PodKey = ""
) -> tuple[Wait, Decision]:
    """Return what is said of replicas that wait, without a place in the queue."""
    workload, size = pending.workload, failure.size
    wait = Wait(workload.key, workload.uid, waiting, failure.reason, failure.message)
    decision = Decision(
        workload.key,
        workload.uid,
        workload.generation,
        failure.reason,
        failure.message,
        failure.candidates,
        failure.rejected,
        pending.queue,
        None,
        waiting,
        size.format if size is not None else "",
        size.bytes_per_device if size is not None else 0,
        reserved=tuple(sorted(set(place.nodes))) if place is not None else (),
        expected_start=_minute(place.start) if place is not None else None,
        instead=instead,
    )
    return wait, decision


def _likeness(workload: Workload) -> tuple[object, ...]:
    """Return what decides, beside the shape, queue and priority, what becomes of a replica that is placed on its own."""
    return (
        workload.key.partition("/")[0],  # disruption budgets are of namespaces
        workload.kind,
        workload.queue,
        workload.preemption,
        workload.priority_class,
        workload.disruption_order,
        workload.min_runtime,
        workload.max_runtime,
        workload.sharing,
        workload.topology,
        workload.members,
        workload.together,
        # What is learned of ends is learned of FineTune and Batch work.
        (devices_of(workload), workload.gpu_seconds) if workload.kind is not WorkloadKind.INFERENCE else None,
    )


def _minute(start: float | None) -> float | None:
    """Return a time rounded up to whole minutes, so that one that is learned does not change with every plan."""
    return None if start is None else -(-start // _MINUTE) * _MINUTE


def _placed(one: Decision, position: int) -> Decision:
    # Not `replace`, which takes twice as long: whenever the head of a line starts, everybody behind it moves up.
    return Decision(
        one.workload,
        one.workload_uid,
        one.generation,
        one.reason,
        one.message,
        one.candidates,
        one.rejected,
        one.queue,
        position,
        one.pending,
        one.format,
        one.bytes_per_device,
        one.scored_by,
        one.reserved,
        one.expected_start,
        one.instead,
    )

"""Who is next: admission to a queue, priority, and ageing inside a priority so that nothing starves.

Order of picks: work for which others were displaced, so that what was freed for it is not taken by somebody else; work
inside its queue's nominal share before work that borrows; then priority (capped by the queue's ceiling); then the queue
with the smaller weighted share; then the response ratio

    (waiting time + expected service time) / expected service time

of which the largest goes first (highest response ratio next, Brinch Hansen 1971): short work is preferred, but every
wait grows without bound. Equal ratios go by age, then by name.

FineTune and Batch work of one queue and priority keeps the places that its ratios give it, but shares them out by the
attained-service index (`training`), because nobody knows how long it will take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.quota import Amount, admitted, invalid_reason
from llmos_operator.scheduler.training import in_turn
from llmos_operator.state.snapshot import lacking, missing, ordinals_of
from llmos_operator.state.types import FULL_MILLI, Sharing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.quota import QuotaTree
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Pod, Workload


@dataclass(slots=True)
class Pending:
    """A workload with replicas that have no place."""

    workload: Workload
    queue: str
    priority: int
    ratio: float
    ordinals: tuple[int, ...]  # that may be placed now
    blocked: tuple[Pod, ...] = ()  # former pods whose names are still taken
    nominated: bool = False  # others were displaced for it
    core: int = 0  # so many of the missing replicas start together or not at all

    @property
    def held_up(self) -> int:
        """How many replicas wait for former pods."""
        return len(self.blocked) if self.workload.members == 1 else len(ordinals_of(self.blocked))

    @property
    def replicas(self) -> int:
        """How many replicas have no place."""
        return len(self.ordinals) + self.held_up

    def least_charge(self) -> Amount:
        """Return the least one pod will be charged; parts of devices are charged by their size, known when placed."""
        exclusive = self.workload.sharing is Sharing.EXCLUSIVE
        whole = self.workload.accelerators * FULL_MILLI if exclusive else 1
        return Amount(gpu_milli=whole if self.workload.accelerators else 0)

    def least_start(self) -> Amount:
        """Return the least that will be charged at once: for every pod of the replicas that start together."""
        pods = self.workload.members * max(1, self.core)
        return self.least_charge() if pods == 1 else Amount(self.least_charge().gpu_milli * pods)

    def order(self) -> tuple[bool, int, float, float, str]:
        """Return the key inside a queue: smaller goes first."""
        return (not self.nominated, -self.priority, -self.ratio, self.workload.created_at, self.workload.key)


@dataclass(frozen=True, slots=True)
class Refused:
    """A workload that no queue takes, or that is held back: it waits without a place in a line."""

    workload: Workload
    replicas: int
    reason: Reason
    message: str


@dataclass(slots=True)
class Lines:
    """Everybody who waits, by queue, in order."""

    lines: dict[str, list[Pending]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)

    def picks(self, tree: QuotaTree, total: Amount) -> Iterator[Pending]:
        """Yield who is next until all lines are empty; shares are looked at again before every pick."""
        heads = dict.fromkeys(self.lines, 0)
        while heads:
            queue = next(iter(heads))
            if len(heads) > 1:
                queue = min(heads, key=lambda q: _rank(self.lines[q][heads[q]], tree, total))
            yield self.lines[queue][heads[queue]]
            heads[queue] += 1
            if heads[queue] == len(self.lines[queue]):
                del heads[queue]


def _rank(head: Pending, tree: QuotaTree, total: Amount) -> tuple[bool, bool, int, int, float, float, str]:
    borrowing = not tree.unlimited(head.queue) and not tree.within_nominal(head.queue, head.least_start())
    share = tree.share_micro(head.queue, total)
    workload = head.workload
    return (
        not head.nominated,
        borrowing,
        -head.priority,
        share,
        -head.ratio,
        workload.created_at,
        workload.key,
    )


def lines(snapshot: Snapshot, policy: Policy, now: float, tree: QuotaTree) -> Lines:
    """Return every workload that has replicas to place, in its queue's line."""
    found = Lines()
    default_priority = _default_priority(snapshot)
    doors: dict[tuple[str, str], tuple[Reason, str] | None] = {}  # what queues say to namespaces
    for key in snapshot.unsettled:
        workload = snapshot.workloads[key]
        ordinals, blocked = missing(workload, snapshot.pods_of.get(workload.uid, ()))
        why = _held_back(snapshot, now, workload)
        if why is None:
            door = (workload.queue, workload.namespace)
            if door not in doors:
                doors[door] = _turned_away(snapshot, policy, tree, *door)
            why = doors[door]
        if why is not None:
            found.refused.append(Refused(workload, len(ordinals) + len(ordinals_of(blocked)), *why))
            continue
        queue = workload.queue or policy.default_queue
        value = snapshot.priority_of(workload) if workload.priority_class else default_priority
        priority = capped(snapshot, queue, value)
        ratio = response_ratio(policy, workload, now)
        nominated = now <= snapshot.nominated.get(key, 0.0) + policy.nomination_seconds
        core = lacking(workload, len(ordinals), blocked)
        found.lines.setdefault(queue, []).append(
            Pending(workload, queue, priority, ratio, ordinals, blocked, nominated, core)
        )
    for line in found.lines.values():
        line.sort(key=Pending.order)
    in_turn(found.lines, snapshot, policy, now)
    found.lines = dict(sorted(found.lines.items()))
    found.refused.sort(key=lambda r: r.workload.key)
    return found


def response_ratio(policy: Policy, workload: Workload, now: float) -> float:
    """Return (wait + service) / service; a creation time in the future counts as no wait."""
    service = workload.expected_seconds or policy.service_seconds[workload.kind]
    return (max(0.0, now - workload.created_at) + service) / service


def capped(snapshot: Snapshot, queue: str, priority: int) -> int:
    """Return the priority under the queue's ceiling."""
    known = snapshot.queues.get(queue)
    ceiling = known.priority_ceiling if known is not None else None
    return priority if ceiling is None else min(priority, ceiling)


def _default_priority(snapshot: Snapshot) -> int:
    return max((c.value for c in snapshot.priority_classes.values() if c.is_default), default=0)


def refusal(
    snapshot: Snapshot, policy: Policy, now: float, tree: QuotaTree, workload: Workload
) -> tuple[Reason, str] | None:
    """Return why a workload stands in no line, None if it does."""
    return _held_back(snapshot, now, workload) or _turned_away(
        snapshot, policy, tree, workload.queue, workload.namespace
    )


def _held_back(snapshot: Snapshot, now: float, workload: Workload) -> tuple[Reason, str] | None:
    """Return why a workload gets no new replicas for a while, None if nothing keeps it."""
    hold = snapshot.holds.get(workload.key)
    if hold is not None and hold.generation == workload.generation and now < hold.until:
        return hold.reason, hold.message
    return None


def _turned_away(
    snapshot: Snapshot, policy: Policy, tree: QuotaTree, asked: str, namespace: str
) -> tuple[Reason, str] | None:
    """Return why the queue that is asked for ("": the default one) does not take work of a namespace, None if it does."""
    queue = asked or policy.default_queue
    if queue not in snapshot.queues:
        if not policy.require_queue and not asked:
            return None
        known = ", ".join(sorted(snapshot.queues)) or "none"
        return Reason.QUEUE_NOT_FOUND, f"queue {queue} does not exist; existing: {known}"
    problem = invalid_reason(tree, queue)
    if problem is not None:
        return problem
    if not admitted(snapshot, queue, namespace):
        return (
            Reason.NAMESPACE_NOT_ADMITTED,
            f"queue {queue} does not take namespace {namespace}: its namespaceSelector does not match",
        )
    return None

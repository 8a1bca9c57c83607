"""Whom to displace so that a claim fits: the cheapest minimal set, found by trying it out.

Every set is tried in the later world between checkpoint and rollback, so a proposal is known to work: node, devices,
host and quota. Preferred is the set whose most important victim is least important, then the smallest expected loss,
then the fewest victims, then the better precision, then the first node. On one node the search is exact (branch and
bound from a greedy start: remove until it fits, add back what was not needed) up to `PreemptionLimits.states` sets;
nodes are tried in the order of a lower bound of their cost, so most of them are never tried.

Who may be displaced: in the same queue, strictly lower priority; in another queue, work that is beyond its nominal
share when the claimant stays within its own (reclaim), or strictly lower priority where no quota applies at all. What
is inside its nominal share is never taken by another queue.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.placement import device_fits, host_fits, pick
from llmos_operator.scheduler.quota import Amount
from llmos_operator.scheduler.search import Pool, cheapest
from llmos_operator.scheduler.table import CAPACITY
from llmos_operator.scheduler.victims import VictimIndex
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmos_operator.scheduler.budget import Budget
    from llmos_operator.scheduler.feasibility import Feasibility
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.scheduler.table import Bools
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.scheduler.world import Worlds
    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.snapshot import Snapshot

_LOWEST: Final = -(1 << 40)
_REMOTE_VICTIMS: Final = 16  # considered for quota alone, beside those on the node


@dataclass(frozen=True, slots=True)
class Proposal:
    """A set of victims after which the claimant fits."""

    size: Size
    request: Request
    node: str
    victims: tuple[Victim, ...]
    priority: int  # of the most important victim
    cost: int

    def key(self, place: int) -> tuple[int, int, int, int]:
        """Return what proposals are compared by; `place` is the size's place in the order of preference."""
        return (self.priority, self.cost, len(self.victims), place)


class Preemption:
    """The search for victims in one plan. What it proposes has not happened until the caller applies it."""

    def __init__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        now: float,
        worlds: Worlds,
        scene: Scene,
        feasibility: Feasibility,
        budget: Budget,
    ) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._now = now
        self._worlds = worlds
        self._scene = scene
        self._feasibility = feasibility
        self._budget = budget
        self._index: VictimIndex | None = None
        self._searches = 0

    @property
    def index(self) -> VictimIndex:
        """Everybody who may be displaced; made when first asked for."""
        if self._index is None:
            self._index = VictimIndex(self._snapshot, self._policy, self._now)
        return self._index

    @property
    def exhausted(self) -> bool:
        """Whether this plan has searched as often as the policy allows."""
        return self._searches >= self._policy.preemption.searches

    def find(self, pending: Pending, options: Sequence[tuple[Size, Request]]) -> Proposal | None:
        """Return the best proposal over all sizes and nodes, None if displacing cannot help."""
        if self.exhausted or not self._policy.preemption.enabled:
            return None
        if not self._snapshot.may_preempt(pending.workload):
            return None
        self._searches += 1
        rights = self._rights(pending)
        best: tuple[tuple[int, int, int, int], Proposal] | None = None
        looked_at: list[Bools] = []
        for place, (size, request) in enumerate(options):
            large_enough = self._large_enough(request)
            if best is not None and request.whole and any((large_enough == m).all() for m in looked_at):
                continue  # the same devices in question as for a better size: nobody cheaper has to go
            looked_at.append(large_enough)
            for bound, row in self._promising(pending, request, rights):
                if self._budget.exhausted() or (best is not None and _hopeless(bound, best[0])):
                    break
                found = self._on_node(pending, size, request, row, rights)
                if found is not None and (best is None or found.key(place) < best[0]):
                    best = (found.key(place), found)
        return best[1] if best is not None else None

    def _rights(self, pending: Pending) -> dict[str, list[Victim]]:
        """Return the victims the claimant may displace, by node."""
        kept = {
            node: [v for v in victims if self.right(pending, v) is not None]
            for node, victims in self.index.by_node.items()
        }
        return {node: victims for node, victims in kept.items() if victims}

    def _large_enough(self, request: Request) -> Bools:
        large: Bools = self._scene.table.fixed[CAPACITY] >= request.bytes_per_device
        return large & self._feasibility.acceptable(_displacing(request)).devices

    def right(self, pending: Pending, victim: Victim) -> Reason | None:
        """Return by what right the claimant may displace the victim as things stand, None without any."""
        if victim.claim.workload_uid == pending.workload.uid or victim.pod.key in self._worlds.leaving:
            return None
        lower = victim.priority < pending.priority
        queue, tree = self._snapshot.queues.get(pending.queue), self._worlds.later.tree
        if victim.claim.queue == pending.queue:
            within = queue is None or queue.preempt_within
            return Reason.PREEMPTED if lower and within else None
        if tree.unlimited(victim.claim.queue):
            return Reason.PREEMPTED if lower else None
        if queue is None or queue.reclaim == "Never" or (queue.reclaim == "LowerPriority" and not lower):
            return None
        if not tree.within_nominal(pending.queue, pending.least_charge()):
            return None
        return Reason.RECLAIMED if tree.borrows(victim.claim.queue) else None

    def _promising(
        self, pending: Pending, request: Request, rights: Mapping[str, list[Victim]]
    ) -> Iterable[tuple[tuple[int, int], int]]:
        """Return (lower bound of (priority, cost), row) of rows worth a search, most promising first."""
        request = _displacing(request)
        acceptable = self._feasibility.acceptable(request)
        quota_short = not self._worlds.later.tree.fits(pending.queue, pending.least_charge())
        found = []
        for row in acceptable.nodes.nonzero()[0]:
            name = self._scene.table.names[int(row)]
            victims = rights.get(name, [])
            if not victims and not quota_short:
                continue
            state = self._worlds.later.node(name)
            bound = _lower_bound(
                state, victims, request, acceptable.devices[row], self._policy.overuse_percent
            )
            if bound is not None:
                found.append((bound, int(row)))
        found.sort()
        return found[: self._policy.preemption.nodes]

    def _on_node(
        self, pending: Pending, size: Size, request: Request, row: int, rights: Mapping[str, list[Victim]]
    ) -> Proposal | None:
        later, name = self._worlds.later, self._scene.table.names[row]
        columns = self._feasibility.acceptable(_displacing(request)).devices[row]
        overuse = self._policy.overuse_percent

        def fits() -> bool:
            devices = pick(later.node(name), request, columns, overuse)
            return devices is not None and later.tree.fits(pending.queue, charge_of(request, devices))

        local = rights.get(name, [])
        pool = Pool(
            later,
            sorted([*local, *self._remote(pending, name, rights)], key=lambda v: v.order),
            dict(self.index.budgets),
            lambda v: self.right(pending, v) is not None,
            fits,
            self._policy.preemption.outage_seconds,
            self._policy.preemption.states,
        )
        found = cheapest(pool)
        if found is None or not found:
            return None
        return Proposal(size, request, name, found, max(v.priority for v in found), pool.cost(list(found)))

    def _remote(self, pending: Pending, name: str, rights: Mapping[str, list[Victim]]) -> list[Victim]:
        """Return victims elsewhere whose leaving would give quota, if quota is what is missing."""
        if self._worlds.later.tree.fits(pending.queue, pending.least_charge()):
            return []
        elsewhere = (v for node, victims in rights.items() if node != name for v in victims)
        return heapq.nsmallest(_REMOTE_VICTIMS, elsewhere, key=lambda v: v.order)


def charge_of(request: Request, devices: tuple[DeviceState, ...]) -> Amount:
    """Return what quota would be charged for the request on these devices."""
    if request.whole:
        return Amount(FULL_MILLI * len(devices), sum(d.device.memory_bytes for d in devices))
    milli = sum(
        max(request.compute_milli, -(-request.bytes_per_device * FULL_MILLI // max(1, d.device.memory_bytes)))
        for d in devices
    )
    return Amount(milli, request.bytes_per_device * len(devices))


def _displacing(request: Request) -> Request:
    return replace(request, constraints=replace(request.constraints, displacing=True))


def _hopeless(bound: tuple[int, int], best: tuple[int, int, int, int]) -> bool:
    return bound > best[:2] or (bound == best[:2] and best[2] <= 1)


def _lower_bound(
    state: NodeState, victims: list[Victim], request: Request, columns: Bools, overuse: int
) -> tuple[int, int] | None:
    """Return (priority, cost) that no victim set on this node can go below, None if displacing cannot help here.

    A victim that holds several devices counts for each of them by its part, so a sum over devices never counts more
    than it costs.
    """
    if not request.devices:
        if host_fits(state, request):
            return (_LOWEST, 0)
        return min(((v.priority, v.cost) for v in victims), default=None)
    holders: dict[str, list[Victim]] = {}
    for victim in victims:
        for uuid in victim.claim.devices:
            holders.setdefault(uuid, []).append(victim)
    bounds = []
    for column, device in enumerate(state.devices):
        if not columns[column]:
            continue
        if device_fits(device, request, overuse):
            bounds.append((_LOWEST, 0))
            continue
        on = holders.get(device.device.uuid, [])
        if not on or (request.whole and len(on) < device.claims):
            continue
        parts = [(v.priority, v.cost // len(v.claim.devices)) for v in on]
        bounds.append((max(p for p, _ in parts), sum(c for _, c in parts)) if request.whole else min(parts))
    if len(bounds) < request.devices:
        return None
    bounds.sort()
    chosen = bounds[: request.devices]
    return (max(p for p, _ in chosen), sum(sorted(c for _, c in bounds)[: request.devices]))

"""The cluster as a plan changes it: now, and as it will be when everything on its way out has gone.

What was asked to come down, or to sleep, counts with all it had now, and with what it will have left later.

A bind must fit into both worlds: into the present one, because what has not left yet still holds its memory, and into
the later one, because room that is being made for somebody must not be given away. Waiting for room means being
placed in the later world only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmos_operator.scheduler.quota import Amount, QuotaTree, charge
from llmos_operator.state.power import NO_BUDGET
from llmos_operator.state.snapshot import View

if TYPE_CHECKING:
    from llmos_operator.scheduler.power import Racks
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim, Pod, Sleeping


class World:
    """Nodes and quota together, with exact undo."""

    def __init__(self, snapshot: Snapshot, view: View, tree: QuotaTree) -> None:
        self.snapshot = snapshot
        self.view = view
        self.tree = tree
        self.racks: Racks | None = None  # those with a power budget
        self._charges: list[tuple[str, Amount, int]] = []
        self._draws: dict[
            str, tuple[NodeState, int | None]
        ] = {}  # of nodes in such racks, as last worked out

    def node(self, name: str) -> NodeState:
        """Return a node's state."""
        return self.view.nodes[name]

    def rack_room(self, node: str) -> int:
        """Return the milliwatts that the power budget of a node's rack leaves; NO_BUDGET without one."""
        if self.racks is None or node not in self.racks.of:
            return NO_BUDGET
        members = self.racks.members[self.racks.of[node]]
        return self.racks.room(node, {name: self._draw(name) for name in members})

    def _draw(self, name: str) -> int | None:
        state, known = self.view.nodes[name], self._draws.get(name)
        if known is None or known[0] is not state:
            known = self._draws[name] = state, state.power_draw()
        return known[1]

    def admits(self, claim: Claim) -> bool:
        """Return whether a claim is within what is not of its node alone: its queue's quota, its rack's power budget."""
        return self.tree.fits(claim.queue, charge(claim)) and self.powers(claim)

    def powers(self, claim: Claim) -> bool:
        """Return whether the power budget of a claim's rack takes it."""
        if self.racks is None or not claim.devices:
            return True
        return self.node(claim.node).added_by(claim) <= self.rack_room(claim.node)

    def place(self, claim: Claim) -> None:
        """Count a claim on its node and in its queue."""
        self.view.place(claim)
        self._add(claim.queue, charge(claim), 1)

    def adopt(self, state: NodeState, claim: Claim) -> None:
        """Take the state of a node on which another world has just placed a claim."""
        self.view.adopt(state)
        self._add(claim.queue, charge(claim), 1)

    def vacate(self, pod: Pod) -> None:
        """Let a pod with a claim be gone, with what it was observed to use."""
        self.view.vacate(pod.node, pod.key)
        if pod.claim is not None:
            self._add(pod.claim.queue, charge(pod.claim), -1)

    def lower(self, pod: Pod, asked_bytes: int, *, lent: bool = False) -> None:
        """Let a pod have come down to `asked_bytes` of each device; its queue is charged as before."""
        self.view.lower(pod.node, pod.key, asked_bytes, lent=lent)

    def sleep(self, pod: Pod, sleeping: Sleeping) -> None:
        """Let a pod sleep; its queue is charged as before."""
        self.view.sleep(pod.node, pod.key, sleeping)

    def displace(self, victim: Victim) -> None:
        """Let a victim have made its room: by coming down, by sleeping, or by being gone."""
        if victim.asked_bytes:
            self.lower(victim.pod, victim.asked_bytes)
        elif victim.sleeping is not None:
            self.sleep(victim.pod, victim.sleeping)
        else:
            self.vacate(victim.pod)

    def checkpoint(self) -> tuple[int, int]:
        """Return a mark to roll back to."""
        return self.view.checkpoint(), len(self._charges)

    def rollback(self, mark: tuple[int, int]) -> None:
        """Undo everything since the mark."""
        self.view.rollback(mark[0])
        while len(self._charges) > mark[1]:
            queue, amount, sign = self._charges.pop()
            self.tree.add(queue, amount, -sign)

    def _add(self, queue: str, amount: Amount, sign: int) -> None:
        self.tree.add(queue, amount, sign)
        self._charges.append((queue, amount, sign))


@dataclass(frozen=True, slots=True)
class Mark:
    """How both worlds stood at a moment."""

    now: tuple[int, int]
    later: tuple[int, int]
    leaving: dict[str, Pod]
    lowering: dict[str, Pod]
    dozing: dict[str, Pod]
    differing: set[str]


@dataclass(slots=True)
class Worlds:
    """Both worlds. `differing` are the nodes on which they are not the same."""

    now: World
    later: World
    leaving: dict[str, Pod] = field(default_factory=dict)  # terminating pods that will be gone
    differing: set[str] = field(default_factory=set)
    lowering: dict[str, Pod] = field(default_factory=dict)  # pods that come down, not seen to have yet
    dozing: dict[str, Pod] = field(default_factory=dict)  # pods that go to sleep, not seen to yet

    @classmethod
    def of(cls, snapshot: Snapshot, now: float, stuck_after: float) -> Worlds:
        """Return the worlds of a snapshot; a pod stuck in termination is not expected to leave."""
        trees = QuotaTree.of(snapshot), QuotaTree.of(snapshot)
        present, future = (World(snapshot, View(snapshot), tree) for tree in trees)
        worlds = cls(present, future)
        leaving = sorted(
            (pod for pod in snapshot.terminating if now <= pod.deletion_at + stuck_after), key=lambda p: p.key
        )
        for pod in leaving:
            worlds.leave(pod)
        for pod in snapshot.lowered:
            if pod.claim is not None and not pod.claim.yielded:
                worlds.lower(pod, pod.claim.asked_bytes, lent=pod.claim.lent)
        for pod in snapshot.sleeping:
            if pod.claim is not None and pod.claim.sleeping is not None and not pod.claim.asleep:
                worlds._doze(pod, pod.claim.sleeping)
        return worlds

    def leave(self, pod: Pod) -> None:
        """Let a pod be gone in the later world; once, however often it is said."""
        if pod.key in self.leaving:
            return
        self.later.vacate(pod)
        self.leaving[pod.key] = pod
        self.differing.add(pod.node)

    def lower(self, pod: Pod, asked_bytes: int, *, lent: bool = False) -> None:
        """Let a pod have come down in the later world."""
        self.later.lower(pod, asked_bytes, lent=lent)
        self.lowering[pod.key] = pod
        self.differing.add(pod.node)

    def has_beds_for(self, pod: Pod, sleeping: Sleeping) -> bool:
        """Return whether a node's memory can take the weights of a pod, now and later."""
        now, later, host = self.now.node(pod.node), self.later.node(pod.node), sleeping.host_bytes
        # Weights count from the moment a pod is asked, so those that are only tried in the later world count now, too.
        return later.has_beds_for(host) and now.has_beds_for(
            max(0, later.sleep_bytes - now.sleep_bytes) + host
        )

    def sleep(self, pod: Pod, sleeping: Sleeping) -> None:
        """Ask a pod to sleep: its weights take their room in the node's memory now, its devices are free later."""
        asked = self.now.node(pod.node).pods[pod.key]
        if asked.claim is not None:
            claim = replace(asked.claim, sleeping=replace(sleeping, down=False))
            self.now.view.put(replace(asked, claim=claim))
        self._doze(pod, sleeping)

    def _doze(self, pod: Pod, sleeping: Sleeping) -> None:
        self.later.sleep(pod, sleeping)
        self.dozing[pod.key] = pod
        self.differing.add(pod.node)

    def wake(self, pod: Pod) -> None:
        """Let a pod that slept be awake, in both worlds."""
        _rouse(self.now, pod)
        if pod.node in self.differing:
            _rouse(self.later, pod)
        else:
            self.later.view.adopt(self.now.node(pod.node))

    def restore(self, pod: Pod, claim: Claim) -> None:
        """Let a pod that had come down count with all it was bound with, in both worlds."""
        whole = replace(
            pod, claim=replace(claim, asked_bytes=0, asked_format="", asked_at=0.0, yielded=False, lent=False)
        )
        self.lowering.pop(pod.key, None)
        self.now.view.put(whole)
        if pod.node in self.differing:
            self.later.view.put(whole)
        else:
            self.later.view.adopt(self.now.node(pod.node))

    def bind(self, claim: Claim) -> None:
        """Place a claim in both worlds."""
        self.now.place(claim)
        if claim.node in self.differing:
            self.later.place(claim)
        else:
            self.later.adopt(self.now.node(claim.node), claim)

    def hold(self, claim: Claim) -> None:
        """Keep the room a claim waits for: place it in the later world only."""
        self.later.place(claim)
        self.differing.add(claim.node)

    def checkpoint(self) -> Mark:
        """Return a mark to roll both worlds back to."""
        return Mark(
            self.now.checkpoint(),
            self.later.checkpoint(),
            dict(self.leaving),
            dict(self.lowering),
            dict(self.dozing),
            set(self.differing),
        )

    def rollback(self, mark: Mark) -> None:
        """Undo everything since the mark, in both worlds."""
        self.now.rollback(mark.now)
        self.later.rollback(mark.later)
        self.leaving, self.lowering = dict(mark.leaving), dict(mark.lowering)
        self.dozing = dict(mark.dozing)
        self.differing = set(mark.differing)


def _rouse(world: World, pod: Pod) -> None:
    asleep = world.node(pod.node).pods[pod.key]
    if asleep.claim is not None:
        world.view.put(replace(asleep, claim=replace(asleep.claim, sleeping=None)))

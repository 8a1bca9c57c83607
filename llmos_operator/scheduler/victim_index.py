"""Everybody who may be displaced in one snapshot, as values and as arrays; made from what the last one was made from.

Victims are appraised by workload and laid out by node. An index remembers both in a :class:`Roll`, with the snapshot they
are of, and the next one appraises only the workloads for which something else is there now: it compares all mappings it
reads by identity, which for thousands of equal entries is work of a millisecond (values never change, so the same object
is enough). What is of no single workload is followed to those it concerns:

    pods, workload               that workload
    how busy a pod is            the workload of the pod
    a profile; a model that      all workloads of that model
    comes to nodes or leaves
    a disruption budget          all workloads of its namespace
    time                         those of which a clock decides (`Appraiser.is_timeless`); where it goes back, all
    the share of a queue         none: `Victim.beyond` is put in when a victim is asked for
    devices of a node            the layout of that node
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain, compress
from operator import is_not
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from llmos_operator.scheduler.victims import ENDS, FEWER, Appraiser, running
from llmos_operator.state.snapshot import Snapshot
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.quota import QuotaTree
    from llmos_operator.scheduler.table import Ints
    from llmos_operator.scheduler.victims import Replica, Victim
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Pod

_K = TypeVar("_K")
_PLANES = 9  # numbers of a victim


@dataclass(frozen=True, slots=True)
class _Block:
    """The victims on one node. `numbers` are a row of `_PLANES` each, `places` (column, victim) of each device held."""

    uuids: tuple[str, ...]
    victims: tuple[Victim, ...]
    numbers: Ints
    places: Ints


@dataclass(slots=True)
class Roll:
    """What one index leaves to the next of the same policy; it changes the cost of an index, never its content."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    copies: frozenset[str] = frozenset()
    now: float = float("-inf")
    of: dict[str, tuple[Victim, ...]] = field(default_factory=dict)  # by workload UID
    passing: set[str] = field(default_factory=set)  # UIDs for which a clock may say something else
    on: dict[str, dict[str, tuple[Victim, ...]]] = field(default_factory=dict)  # by node, then UID
    blocks: dict[str, _Block] = field(default_factory=dict)  # by node
    queues: dict[str, int] = field(default_factory=dict)  # numbers of queues


class VictimIndex:
    """Everybody who may be displaced at all in one snapshot: as values, and as arrays in the same order.

    `device_rows`, `device_columns` and `device_victims` list every device of every victim, for sums over devices. `ends`
    tells victims that would end from those that would stay, `first_ends` is the mildest such entry of each pod, `yields`
    how many bytes of each device those give up.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        now: float,
        row_of: Mapping[str, int],
        tree: QuotaTree,
        roll: Roll | None = None,
    ) -> None:
        """`roll` is that of the last index of the same policy, and is of this one afterwards."""
        self._roll = roll = roll if roll is not None else Roll()
        self._row_of = row_of
        self._pods_of = snapshot.pods_of
        self._appraiser = Appraiser(snapshot, policy, now)
        self._beyond = {queue: tree.beyond_milli(queue) for queue in snapshot.charged}
        self.budgets = {key: budget.allowed for key, budget in snapshot.budgets.items()}  # left in this plan
        self.reload_seconds = self._appraiser.reload_seconds
        stale = _stale(roll, snapshot, self._appraiser.copies, now)
        nodes = self._appraise(stale)
        self._lay_out(nodes, snapshot.nodes)
        roll.snapshot, roll.copies, roll.now = snapshot, self._appraiser.copies, now
        self._gather()

    def _appraise(self, uids: Collection[str]) -> set[str]:
        """Appraise workloads anew; return the nodes on which their victims stand, or stood."""
        roll, touched = self._roll, set()
        for uid in uids:
            pods = self._pods_of.get(uid, ())
            awake, found, passes = running(pods), [], False
            for pod in pods:
                victims = self._appraiser.victims(pod, awake)
                passes |= not self._appraiser.is_timeless(pod, victims)
                found += victims
            (roll.passing.add if passes else roll.passing.discard)(uid)
            former = roll.of.pop(uid, ())
            if found:
                roll.of[uid] = tuple(found)
            if former == tuple(found):
                continue
            for node in {victim.pod.node for victim in former}:
                del roll.on[node][uid]
                touched.add(node)
            for victim in found:
                mine = roll.on.setdefault(victim.pod.node, {})
                mine[uid] = (*mine.get(uid, ()), victim)
                touched.add(victim.pod.node)
        return touched

    def _lay_out(self, touched: set[str], nodes: Mapping[str, NodeState]) -> None:
        """Lay out anew what has changed on nodes, or nodes that have other devices now."""
        roll = self._roll
        for name in touched.union(_differing(roll.snapshot.nodes, nodes)):
            uuids = tuple(d.device.uuid for d in nodes[name].devices) if name in nodes else ()
            known = roll.blocks.get(name)
            if name not in touched and (known is None or known.uuids == uuids):
                continue
            roll.blocks.pop(name, None)
            if not roll.on.get(name):
                roll.on.pop(name, None)
                continue
            victims = sorted(chain.from_iterable(roll.on[name].values()), key=_order)
            roll.blocks[name] = _block(
                victims, uuids, lambda queue: roll.queues.setdefault(queue, len(roll.queues))
            )

    def _gather(self) -> None:
        """Put the blocks of all nodes together, in the order of the rows."""
        blocks, row_of = self._roll.blocks, self._row_of
        rows = sorted((row_of[name], name) for name in blocks if name in row_of)
        there = [blocks[name] for _, name in rows]
        at = np.array([row for row, _ in rows], np.int64)
        sizes = np.array([len(block.victims) for block in there], np.int64)
        held = np.array([len(block.places) for block in there], np.int64)
        self._victims = list(chain.from_iterable(block.victims for block in there))
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.rows = np.repeat(at, sizes)
        numbers = np.concatenate([np.zeros((0, _PLANES), np.int64), *(block.numbers for block in there)])
        (
            self.costs,
            self.parts,
            self.priorities,
            self.depths,
            self.grades,
            self.yields,
            ends,
            first,
            self.queues,
        ) = np.ascontiguousarray(numbers.T)
        self.ends, self.first_ends = ends.astype(np.bool_), first.astype(np.bool_)
        self.queue_names = list(self._roll.queues)
        places = np.concatenate([np.zeros((0, 2), np.int64), *(block.places for block in there)])
        self.device_rows = np.repeat(at, held)
        self.device_columns = np.ascontiguousarray(places[:, 0])
        self.device_victims = places[:, 1] + np.repeat(self._starts[:-1], held)

    def __len__(self) -> int:
        return len(self._victims)

    def victim(self, place: int) -> Victim:
        """Return the victim at a place of the arrays."""
        found = self._victims[place]
        beyond = self._beyond.get(found.claim.queue, 0)
        if found.beyond != beyond:
            found = self._victims[place] = replace(found, beyond=beyond)
        return found

    @property
    def victims(self) -> Sequence[Victim]:
        """All of them, in the order of the arrays."""
        return [self.victim(place) for place in range(len(self))]

    def on_row(self, row: int) -> range:
        """Return the places of the victims on a row."""
        return range(int(np.searchsorted(self.rows, row)), int(np.searchsorted(self.rows, row, "right")))

    def place_of(self, pod: Pod, depth: int) -> int | None:
        """Return the place of a pod as one of whom so much is asked, None if that must not be asked of it."""
        row = self._row_of.get(pod.node)
        there = self.on_row(row) if row is not None else ()
        return next((i for i in there if self._victims[i].key == (pod.key, depth)), None)

    def company(self, victim: Victim, gone: Collection[Replica]) -> list[Victim] | None:
        """Return who goes when a victim does, itself first; None if one of them must not be displaced.

        The members of a replica go together. So do all replicas of a workload that would be left with fewer than start
        together; `gone` are those displaced before.
        """
        found = [victim]
        workload = self._appraiser.workload(victim.claim.workload_uid) if victim.tied else None
        if workload is None:
            return found
        lost = {r for r in gone if r[0] == workload.uid} | {victim.replica}
        everybody = workload.together > 1 and len(lost) > victim.spare
        for pod in self._pods_of[workload.uid]:
            if pod.claim is None or pod.phase is not PodPhase.BOUND or pod.key == victim.pod.key:
                continue
            replica = (workload.uid, pod.claim.ordinal)
            if replica != victim.replica and (not everybody or replica in gone):
                continue
            place = self.place_of(pod, ENDS)
            if place is None:
                return None
            found.append(self.victim(place))
        return found


def _stale(roll: Roll, snapshot: Snapshot, copies: frozenset[str], now: float) -> set[str]:
    """Return the UIDs of workloads that may have other victims than the roll says."""
    before = roll.snapshot
    if now < roll.now:
        return {*before.pods_of, *snapshot.pods_of}
    found = {*_differing(before.pods_of, snapshot.pods_of), *roll.passing}
    for key in _differing(before.workloads, snapshot.workloads):
        found |= {one.workloads[key].uid for one in (before, snapshot) if key in one.workloads}
    busy = _differing(before.busy, snapshot.busy)
    if busy:
        owner = {pod.key: uid for uid, pods in snapshot.pods_of.items() for pod in pods}
        found |= {owner[key] for key in busy if key in owner}
    return found | _of_models(before, snapshot, roll.copies ^ copies) | _of_budgets(before, snapshot)


def _of_models(before: Snapshot, snapshot: Snapshot, moved: frozenset[str]) -> set[str]:
    """Return the UIDs of workloads whose model has another profile, or is one that came to nodes or left them."""
    changed = _differing(before.profiles, snapshot.profiles)
    if not changed and not moved:
        return set()
    profiles = [one.profiles[key] for one in (before, snapshot) for key in changed if key in one.profiles]
    measured = {(profile.uri, profile.revision) for profile in profiles}
    return {
        workload.uid
        for workload in snapshot.workloads.values()
        if workload.model.key in moved or (workload.model.uri, workload.model.revision) in measured
    }


def _of_budgets(before: Snapshot, snapshot: Snapshot) -> set[str]:
    """Return the UIDs of workloads with pods in namespaces where a disruption budget is another one."""
    changed = _differing(before.budgets, snapshot.budgets)
    if not changed:
        return set()
    namespaces = {key.partition("/")[0] for key in changed}
    return {uid for uid, pods in snapshot.pods_of.items() if any(pod.namespace in namespaces for pod in pods)}


def _differing(before: Mapping[_K, object], after: Mapping[_K, object]) -> list[_K]:
    """Return the keys under which another object is, or one on one side only."""
    found = list(compress(after, map(is_not, map(before.get, after), after.values())))
    return found + [key for key in before if key not in after]


def _order(victim: Victim) -> tuple[int, int, str, int]:
    return (victim.priority, victim.cost, victim.pod.key, victim.depth)


def _block(victims: Sequence[Victim], uuids: tuple[str, ...], number_of: Callable[[str], int]) -> _Block:
    columns = {uuid: column for column, uuid in enumerate(uuids)}
    fewer = {victim.pod.key for victim in victims if victim.depth == FEWER}
    numbers = [
        (
            victim.cost,
            victim.cost // max(1, len(victim.claim.devices)),
            victim.priority,
            victim.depth,
            victim.grade,
            victim.given_bytes,
            victim.ends,
            victim.ends and (victim.fewer or victim.pod.key not in fewer),
            number_of(victim.claim.queue),
        )
        for victim in victims
    ]
    places = [
        (columns[uuid], i)
        for i, victim in enumerate(victims)
        for uuid in victim.claim.devices
        if uuid in columns
    ]
    return _Block(
        uuids,
        tuple(victims),
        np.array(numbers, np.int64).reshape(-1, _PLANES),
        np.array(places, np.int64).reshape(-1, 2),
    )

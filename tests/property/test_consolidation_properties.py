"""Moves against an exhaustive oracle: the cheapest rearrangement is found, everybody ends up with a place, undo is exact."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.cycle import plan, prepare
from llmos_operator.scheduler.policy import ConsolidationPolicy, Policy
from llmos_operator.scheduler.queueing import Pending
from llmos_operator.scheduler.victims import total_cost
from llmos_operator.state.types import Sharing
from tests.support.builders import GIB, NOW, ClusterBuilder, a_node, a_workload
from tests.support.plans import MOST_CYCLES, carry_out
from tests.support.strategies import PRIORITIES

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.state.types import Claim, Workload
    from tests.support.builders import WorkloadBuilder

POLICY = Policy(require_queue=False, consolidation=ConsolidationPolicy(part=1.0))
AGES = 1e7  # seconds: whatever a move costs, this wait is worth more
MOST = 2
CLAIMANT = "mid"
CAPACITY = 80 * GIB
TENANTS = 10  # of a device: each is charged a tenth of its compute


@st.composite
def scattered(draw: st.DrawFn) -> tuple[ClusterBuilder, Workload]:
    """Nodes on which replicas run here and there, and a claimant that wants a little more than any of them has."""
    cluster = ClusterBuilder().with_priorities(**PRIORITIES)
    nodes = draw(st.integers(2, 3))
    for number in range(nodes):
        cluster.add(a_node(f"n{number}").with_gpus(draw(st.integers(1, 3)), "A100-80G", "80Gi"))
    for number in range(draw(st.integers(1, 6))):
        builder = a_workload(f"r{number}").priority(draw(st.sampled_from(["low", "mid", "mid", "high"])))
        builder, count = sized(draw, builder)
        name = f"n{draw(st.integers(0, nodes - 1))}"
        states = cluster.snapshot().nodes[name].devices
        indexes = [
            d.device.index for d in states if can_hold(builder.value, d.claims, d.exclusive, d.reserved_bytes)
        ]
        if len(indexes) >= count:
            first = draw(st.integers(0, len(indexes) - count))
            cluster.running(builder, name, tuple(indexes[first : first + count]))
    builder = a_workload("asked").priority(CLAIMANT).created(AGES)
    states = cluster.snapshot().nodes.values()
    idle = max(sum(d.claims == 0 for d in state.devices) for state in states)
    if idle and draw(st.booleans()):
        builder.gpus(idle + 1).with_(memory_bytes=10 * GIB)
    else:
        free = max(d.headroom_bytes() for state in states for d in state.devices)
        builder.shared().with_(memory_bytes=min(CAPACITY, free + draw(st.integers(1, 4)) * 10 * GIB))
    return cluster, builder.value


def sized(draw: st.DrawFn, builder: WorkloadBuilder) -> tuple[WorkloadBuilder, int]:
    """Let a workload ask for a part of a device, or for one or two; return it and how many."""
    shared = draw(st.booleans())
    count = 1 if shared else draw(st.integers(1, 2))
    memory = draw(st.sampled_from([10, 20, 30, 40, 60])) * GIB
    builder.gpus(count).with_(
        memory_bytes=memory,
        sharing=Sharing.SHARED if shared else Sharing.EXCLUSIVE,
        min_replicas=draw(st.integers(0, 1)),  # without a replica to spare a move is an outage, too
    )
    return builder, count


def can_hold(workload: Workload, claims: int, exclusive: bool, reserved: int) -> bool:
    if workload.sharing is Sharing.EXCLUSIVE:
        return claims == 0
    assert workload.memory_bytes is not None
    return not exclusive and claims < TENANTS and reserved + workload.memory_bytes <= CAPACITY


class Board:
    """Who holds what of each device, in sums of its own."""

    def __init__(self, attempts: Attempts) -> None:
        self.devices: dict[str, list[str]] = {}
        self.held: dict[str, list[Workload]] = {}
        workloads = attempts.snapshot.workloads
        for state in attempts.snapshot.nodes.values():
            self.devices[state.name] = [d.uuid for d in state.devices]
            for device in state.devices:
                holders = (claim.workload for claim in state.claims() if device.uuid in claim.devices)
                self.held[device.uuid] = [workloads[key] for key in holders]

    def places(self, workload: Workload, nodes: list[str]) -> list[tuple[str, ...]]:
        found = []
        for name in nodes:
            free = [uuid for uuid in self.devices[name] if self._fits(workload, self.held[uuid])]
            found += list(combinations(free, workload.accelerators))
        return found

    def _fits(self, workload: Workload, holders: list[Workload]) -> bool:
        whole = any(one.sharing is Sharing.EXCLUSIVE for one in holders)
        return can_hold(workload, len(holders), whole, sum(one.memory_bytes or 0 for one in holders))

    def put(self, workload: Workload, devices: tuple[str, ...]) -> None:
        for uuid in devices:
            self.held[uuid].append(workload)

    def take(self, workload: Workload, devices: tuple[str, ...]) -> None:
        for uuid in devices:
            self.held[uuid].remove(workload)


def settle(board: Board, movers: list[tuple[Workload, Claim]]) -> bool:
    """Return whether all who move find another place than they had."""
    if not movers:
        return True
    (workload, former), *rest = movers
    for devices in board.places(workload, sorted(board.devices)):
        if set(devices) == set(former.devices):
            continue
        board.put(workload, devices)
        done = settle(board, rest)
        board.take(workload, devices)
        if done:
            return True
    return False


def oracle(attempts: Attempts, asked: Workload) -> int | None:
    """Return the least cost of moving at most two replicas of one node, by trying all sets, places and targets."""
    board, best = Board(attempts), None
    workloads = attempts.snapshot.workloads
    priority = PRIORITIES[CLAIMANT]
    movable = [v for v in attempts.preemption.index.victims if not v.asked_bytes and v.priority <= priority]
    for node in sorted(board.devices):
        here = [victim for victim in movable if victim.pod.node == node]
        for chosen in (*combinations(here, 1), *combinations(here, MOST)):
            cost = total_cost(chosen, POLICY.preemption.outage_seconds)
            movers = [(workloads[v.claim.workload], v.claim) for v in chosen]
            if best is not None and cost >= best:
                continue
            for workload, claim in movers:
                board.take(workload, claim.devices)
            for devices in board.places(asked, [node]):
                board.put(asked, devices)
                if settle(board, movers):
                    best = cost
                board.take(asked, devices)
            for workload, claim in movers:
                board.put(workload, claim.devices)
    return best


def state_of(attempts: Attempts) -> tuple[object, ...]:
    worlds = attempts.worlds
    charges = [(q, world.tree.use(q)) for world in (worlds.now, worlds.later) for q in ("default", "")]
    nodes = [dict(world.view.nodes) for world in (worlds.now, worlds.later)]
    return nodes, charges, dict(worlds.leaving), set(worlds.differing)


@given(scattered())
def test_the_cheapest_rearrangement_is_found_and_the_search_leaves_no_trace(
    case: tuple[ClusterBuilder, Workload],
) -> None:
    cluster, asked = case
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    assume(not Board(attempts).places(asked, sorted(attempts.snapshot.nodes)))
    pending = Pending(asked, "default", PRIORITIES[CLAIMANT], 1.0, (0,))
    before = state_of(attempts)
    found = attempts.consolidation.search(pending, attempts.shape(asked), (0,), sys.maxsize, MOST)
    assert state_of(attempts) == before
    assert (found.cost if found is not None else None) == oracle(attempts, asked)


@given(scattered())
def test_everybody_has_a_place_when_the_moves_are_done(case: tuple[ClusterBuilder, Workload]) -> None:
    cluster, asked = case
    cluster.add(asked)
    made = plan(cluster.snapshot(), POLICY, NOW)
    if not made.moves:
        return
    assert not made.evictions
    assert not made.binds
    held = {(m.workload, m.target.node, m.target.devices) for m in made.moves}
    for _ in range(MOST_CYCLES):
        if not made.actions:
            break
        carry_out(cluster, made)
        made = plan(cluster.snapshot(), POLICY, NOW)
    snapshot = cluster.snapshot()
    assert not snapshot.unsettled, "somebody was left without a place"
    claims = [pod.claim for pods in snapshot.pods_of.values() for pod in pods if pod.claim is not None]
    assert {(c.workload, c.node, c.devices) for c in claims if c.moved_at} == held

"""Undo of views and worlds, arrays against exact values, and quota arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.claims import request_of
from llmos_operator.scheduler.cycle import prepare
from llmos_operator.scheduler.placement import INFEASIBLE, pick
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.quota import Amount, QuotaTree
from llmos_operator.scheduler.sizing import Size
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.scheduler.world import Worlds
from llmos_operator.state.types import Queue
from tests.support.builders import NOW
from tests.support.strategies import clusters, workloads

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload
    from tests.support.builders import ClusterBuilder

POLICY = Policy()
ARRAYS = ("node", "device", "fixed", "schedulable", "exists", "mig", "healthy", "degraded", "device_count")


@given(clusters(pending=0, instances=True), st.data())
def test_rollback_restores_equal_state_at_every_depth(cluster: ClusterBuilder, data: st.DataObject) -> None:
    snapshot = cluster.snapshot()
    world = Worlds.of(snapshot, NOW, 30.0).now
    pods = [p for ps in snapshot.pods_of.values() for p in ps]
    marks = []
    for _ in range(data.draw(st.integers(0, 12))):
        action = data.draw(st.sampled_from(["mark", "vacate", "put", "remove", "rollback"]))
        if action == "mark":
            queues = {q: world.tree.use(q) for q in snapshot.queues}
            marks.append((world.checkpoint(), dict(world.view.nodes), queues))
        elif action == "rollback" and marks:
            mark, nodes, queues = marks.pop()
            world.rollback(mark)
            assert dict(world.view.nodes) == nodes
            assert {q: world.tree.use(q) for q in snapshot.queues} == queues
        elif pods:
            pod = data.draw(st.sampled_from(pods))
            if action == "vacate" and pod.key in world.node(pod.node).pods:
                world.vacate(pod)
            elif action == "remove":
                world.view.remove(pod.node, pod.key)
            elif action == "put":
                world.view.put(pod)
    if marks:
        mark, nodes, _ = marks[0]
        world.rollback(mark)
        assert dict(world.view.nodes) == nodes


@given(clusters(pending=0, instances=True), st.data())
def test_a_table_that_follows_equals_a_table_built_anew(cluster: ClusterBuilder, data: st.DataObject) -> None:
    followed = NodeTable()
    followed.sync(cluster.snapshot().nodes)
    for _ in range(data.draw(st.integers(0, 4))):
        pods = [p for ps in cluster.snapshot().pods_of.values() for p in ps]
        if pods:
            pod = data.draw(st.sampled_from(pods))
            cluster.store.delete_pod(pod.key, pod.uid)
        followed.sync(cluster.snapshot().nodes)
    built = NodeTable()
    built.sync(cluster.snapshot().nodes)
    assert followed.names == built.names
    for array in ARRAYS:
        if array == "device":  # numbers of sharing domains depend on the order in which they were seen
            continue
        assert np.array_equal(getattr(followed, array), getattr(built, array)), array
    for plane in (0, 1, 2, 4, 5):
        assert np.array_equal(followed.device[plane], built.device[plane])


@given(clusters(pending=0), workloads("asked"), st.booleans())
def test_arrays_and_exact_values_agree_on_what_fits(
    cluster: ClusterBuilder, asked: Workload, other: bool
) -> None:
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    size = Size("bf16", asked.memory_bytes or 0)
    request = request_of(asked, size, POLICY, "elsewhere" if other else "default")
    fits, candidates = attempts.feasibility.check(request, slice(None))
    acceptable = attempts.feasibility.acceptable(request)
    for row, name in enumerate(attempts.scene.table.names):
        state = attempts.worlds.now.node(name)
        devices = None
        if acceptable.nodes[row]:
            devices = pick(state, request, acceptable.devices[row], POLICY.overuse_percent)
        assert bool(fits[row]) == (devices is not None)
        if devices:
            columns = {i for i, d in enumerate(state.devices) if d in devices}
            assert all(candidates.devices[row, c] for c in columns)
    best = attempts.placer.best(request)
    assert (best is not None) == bool(fits.any())
    if best is not None:
        waste = [
            attempts.placer.best(request, {r: INFEASIBLE for r in range(len(fits)) if r != row})
            for row in range(len(fits))
        ]
        assert best[1] == min(w[1] for w in waste if w is not None)
    rejected, passed = attempts.feasibility.rejections(request)
    assert passed == int(fits.sum())
    assert sum(r.nodes for r in rejected) + passed == len(fits)


AMOUNTS = st.none() | st.integers(0, 8)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Queue]:
    """A root, inner queues and leaves, each with limits or without."""
    found = {}
    for i in range(draw(st.integers(1, 7))):
        parent = draw(st.sampled_from(["", *found])) if found else ""
        nominal = draw(AMOUNTS)
        found[f"q{i}"] = Queue(
            f"q{i}",
            parent,
            nominal_gpu_milli=nominal,
            borrowing_gpu_milli=draw(AMOUNTS) if parent and nominal is not None else None,
            lending_gpu_milli=draw(AMOUNTS) if parent and nominal is not None else None,
        )
    return found


@given(trees(), st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5), st.booleans()), max_size=25))
def test_admitted_work_never_exceeds_any_limit(
    queues: dict[str, Queue], events: list[tuple[int, int, bool]]
) -> None:
    tree, held = QuotaTree(queues), []
    for number, amount, releases in events:
        queue = f"q{number % len(queues)}"
        if releases and held:
            name, size = held.pop(number % len(held))
            tree.add(name, Amount(size), -1)
        elif tree.fits(queue, Amount(amount)):
            tree.add(queue, Amount(amount))
            held.append((queue, amount))
        for node in tree._gpus.values():
            if node.parent is None and node.sets_nominal:
                assert node.use <= node.subtree
            if (
                node.parent is not None
                and node.limits.borrowing is not None
                and node.limits.nominal is not None
            ):
                assert node.use <= node.subtree + node.limits.borrowing
            lent = sum(max(0, c.use - c.kept) for c in node.children)
            own = sum(size for name, size in held if name == node.name)
            assert node.use == own + lent
    for name, size in held:
        tree.add(name, Amount(size), -1)
    assert all(node.use == 0 for node in tree._gpus.values())


@given(trees())
def test_a_queue_can_always_use_its_nominal_share_when_nobody_borrows(queues: dict[str, Queue]) -> None:
    for name, queue in queues.items():
        if queue.nominal_gpu_milli:
            assert QuotaTree(queues).fits(name, Amount(queue.nominal_gpu_milli))
